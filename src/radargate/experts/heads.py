"""Trained heads: whole modules of the base, such as a classifier, that adapters bring beside their LoRA (``modules_to_save``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from radargate.errors import AdapterError, OptionError, shown
from radargate.experts.files import CONFIG_FILE, WEIGHTS_FILE, TensorInfo
from radargate.experts.names import PREFIX
from radargate.registry import unknown_name

# PEFT writes these into every config of its task types, whatever the base calls its head
_AUTOMATIC = {"classifier", "score", "qa_outputs"}


class Brings(Protocol):
    """What an adapter is here (`radargate.experts.adapters.Adapter`)."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its adapter_config.json."""

    @property
    def sites(self) -> Mapping[str, Any]:
        """Layers that it adapts."""

    @property
    def head(self) -> Mapping[str, TensorInfo]:
        """Tensors of its file that replace modules of the base."""

    def tensor(self, name: str) -> Tensor:
        """A tensor by its plain name."""


@dataclass(frozen=True)
class Head:
    """Modules of the base that a composition replaces.

    Attributes:
        expert: whose they are; the first one's where all experts agree.
        modules: the modules' names in the base.
        tensors: the base's parameters and buffers below them, by their names in the base.
    """

    expert: str
    modules: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    @property
    def labels(self) -> int | None:
        """How many labels it tells apart."""
        return labels_of(tuple(tensor.shape) for tensor in self.tensors.values())


def labels_of(shapes: Iterable[tuple[int, ...]]) -> int | None:
    """How many labels a head of these tensors tells apart: the rows of its last matrix, which has the fewest."""
    return min((shape[0] for shape in shapes if len(shape) == 2), default=None)


def wanted_base(adapters: Sequence[Brings], head: Head | None) -> dict[str, Any]:
    """What `load_base` is to make of a checkpoint for these adapters: ``task``, ``labels`` and ``site``."""
    tasks = {adapter.config.get("task_type") for adapter in adapters}
    task = tasks.pop() if len(tasks) == 1 else None
    site = next((site for adapter in adapters for site in adapter.sites), None)
    if head is None:
        return {"task": task if task == "FEATURE_EXTRACTION" else None, "site": site}
    return {"task": task, "site": site, "labels": None if task == "QUESTION_ANS" else head.labels}


def split_head(
    config: Mapping[str, Any], header: Mapping[str, TensorInfo]
) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """The tensors of an adapter's file that belong to its ``modules_to_save``, and all others.

    Raises:
        AdapterError: the config's field is no list of names, or names a module that the file has no tensor of.
    """
    named = config.get("modules_to_save") or []
    if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
        raise AdapterError(
            f"{CONFIG_FILE}: modules_to_save is {shown(named, 60)}, expected a list of names. Save it again with PEFT."
        )
    head = {name: info for name, info in header.items() if _module(name, named)}
    found = {module for name in head if (module := _module(name, named))}
    for name in named:
        if name not in _AUTOMATIC and not any(f".{module}".endswith(f".{name}") for module in found):
            raise AdapterError(
                f"{CONFIG_FILE} uses modules_to_save={shown(named, 60)}, which replaces whole modules of the base, and "
                f"{WEIGHTS_FILE} holds no tensor of {shown(name)}. Save it again with PEFT, or train it again without "
                "modules_to_save."
            )
    return head, {name: info for name, info in header.items() if name not in head}


def choose_head(adapters: Sequence[Brings], wanted: str | None = None) -> Head | None:
    """The one head that a composition keeps; None where no adapter brings one.

    Args:
        adapters: the experts.
        wanted: name of the expert whose head it is; None asks all to agree.

    Raises:
        OptionError: no expert has that name.
        AdapterError: the experts disagree and nobody said whose head it is.
    """
    if wanted is not None and wanted not in [adapter.name for adapter in adapters]:
        raise OptionError(unknown_name("expert (head)", wanted, [adapter.name for adapter in adapters]))
    if wanted is not None:
        return read_head(next(adapter for adapter in adapters if adapter.name == wanted))
    heads = {adapter.name: read_head(adapter) for adapter in adapters}
    brought = [head for head in heads.values() if head is not None]
    if not brought:
        return None
    without = [name for name, head in heads.items() if head is None]
    if without or not all(_same(brought[0], head) for head in brought):
        modules = ", ".join(dict.fromkeys(module for head in brought for module in head.modules))
        fault = f"{', '.join(map(repr, without))} has none" if without else "each its own"
        raise AdapterError(
            f"adapters {', '.join(repr(head.expert) for head in brought)} bring a trained head ({shown(modules)}; {fault}), and "
            f"a composition keeps one. Say whose with `head`, such as head={brought[0].expert!r}."
        )
    return brought[0]


def read_head(adapter: Brings) -> Head | None:
    """The head that an adapter brings, if it brings one.

    Raises:
        AdapterError: a value is not finite.
    """
    if not adapter.head:
        return None
    named = adapter.config["modules_to_save"]
    tensors = {name.removeprefix(PREFIX): adapter.tensor(name) for name in adapter.head}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(
                f"adapter {adapter.name!r}: {name} of its trained head holds NaN or infinite values. Train it again, or "
                "download it again."
            )
    return Head(adapter.name, tuple(dict.fromkeys(filter(None, (_module(n, named) for n in tensors)))), tensors)


def with_head(config: Mapping[str, Any], head: Head | None) -> dict[str, Any]:
    """An adapter's config as it is written with that head, or without any: PEFT then must not look for one."""
    if head is not None:
        return {**config, "modules_to_save": list(head.modules)}
    return {**config, "modules_to_save": None, "task_type": None} if config.get("modules_to_save") else dict(config)


def check_head(head: Head, base: nn.Module) -> None:
    """Check that a head fits into a base.

    Raises:
        AdapterError: a module is not there, or has other parameters; found and expected shapes are named.
    """
    modules = dict(base.named_modules())
    for module in head.modules:
        if module not in modules:
            raise AdapterError(
                f"adapter {head.expert!r} brings a trained head {shown(module)}, which {type(base).__name__} does not have. Give "
                "a base of the class that it was trained on."
            )
        there = {f"{module}.{name}": tensor for name, tensor in modules[module].state_dict().items()}
        brought = {name: tensor for name, tensor in head.tensors.items() if name.startswith(f"{module}.")}
        for name in {**there, **brought}:
            found, expected = (tuple(t[name].shape) if name in t else "none" for t in (brought, there))
            if found != expected:
                raise AdapterError(
                    f"adapter {head.expert!r}: {shown(name)} of its trained head has shape {found}, the base's has {expected}. "
                    "Give a base with as many labels, or the base that it was trained on."
                )


def _module(tensor: str, named: Iterable[str]) -> str | None:
    """The module that a tensor of the file belongs to, where it is one that is named."""
    plain = tensor.removeprefix(PREFIX)
    for name in named:
        match = re.match(rf"((?:.*?\.)?{re.escape(name)})\.", plain)
        if match and ".lora_" not in plain:
            return match[1]
    return None


def _same(one: Head, other: Head) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        one.tensors[name].dtype == other.tensors[name].dtype and torch.equal(one.tensors[name], other.tensors[name])
        for name in one.tensors
    )
