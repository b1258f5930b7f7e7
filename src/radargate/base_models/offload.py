"""Bases that accelerate keeps elsewhere: layers without data, whose weights its hooks bring from memory or disk for each call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def real_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, once, with its data also where a hook holds it."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            yield name, parameter
        elif name not in tied:  # such have a place of their own only while they are elsewhere
            owner, _, own = name.rpartition(".")
            kept = _weights(modules[owner])
            yield name, parameter if kept is None else kept[own]


def real_tensor(model: nn.Module, name: str) -> Tensor:
    """One parameter or buffer by name, with its data also where a hook holds it; without data where nobody does."""
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    there, kept = getattr(module, own), _weights(module)
    return kept[own] if there.is_meta and kept is not None else there


def place_of(module: nn.Module) -> torch.device:
    """The device that a layer computes on."""
    device = next(module.parameters()).device
    hook = getattr(module, "_hf_hook", None)
    found = getattr(hook, "execution_device", None)
    return device if device.type != "meta" or found is None else torch.device(found)


def device_of(model: Any) -> torch.device:
    """The device that a model takes its inputs on: that of its first weights that are there, or that hooks bring them to."""
    there = next((p.device for p in model.parameters() if not p.is_meta), None)
    owners = (module for module in model.modules() if next(module.parameters(recurse=False), None) is not None)
    return place_of(next(owners)) if there is None else there


@contextlib.contextmanager
def without_map(model: Any) -> Iterator[None]:
    """Hide where a model's parts lie: PEFT would hand them out anew, which fails for those on disk, and ours place themselves."""
    place = model.__dict__.get("hf_device_map")
    hidden = place is not None and any(parameter.is_meta for parameter in model.parameters())
    if hidden:
        del model.hf_device_map
    try:
        yield
    finally:
        if hidden:
            model.hf_device_map = place


def _weights(module: nn.Module) -> Any:
    return getattr(getattr(module, "_hf_hook", None), "weights_map", None)
