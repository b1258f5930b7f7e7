"""The systems that are compared, each over the same base and the same adapter files, each checked to do something."""

from __future__ import annotations

import os
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import ArrowConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model
from torch import Tensor, nn

from radargate.composition.composing import compose, radar_layers
from radargate.errors import RadarGateError
from radargate.ops import compute_dtype
from radargate.ops import reference as literal
from speed.models import Bases

TOP_K = 2


def build(name: str, bases: Bases, adapters: Mapping[str, str]) -> nn.Module:
    """One system ready to train and to answer.

    Args:
        name: ``"base"``, ``"lora"``, ``"xlora"``, ``"arrow"``, ``"loramoe"``, ``"literal"``, or a gate of RadarGate.
        bases: where models come from.
        adapters: name → folder; ``"lora"`` takes the first.

    Raises:
        RadarGateError: the system answers as the bare base does, so it would be measured doing nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _BUILDERS[name](bases, dict(adapters)) if name in _BUILDERS else _gate(bases, dict(adapters), name)
    if name != "base":
        _check_acts(name, model, bases)
    return model


def _base(bases: Bases, adapters: dict[str, str]) -> nn.Module:
    return bases.new()


def _lora(bases: Bases, adapters: dict[str, str]) -> nn.Module:
    return PeftModel.from_pretrained(bases.new(), next(iter(adapters.values())), is_trainable=True)


def _xlora(bases: Bases, adapters: dict[str, str]) -> nn.Module:
    config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=bases.config.hidden_size, adapters=adapters)
    return get_peft_model(bases.new(), config)


def _arrow(bases: Bases, adapters: dict[str, str]) -> nn.Module:
    config = ArrowConfig(top_k=min(TOP_K, len(adapters)), router_temperature=1.0)
    return create_arrow_model(bases.new(), list(adapters.values()), config)


def _loramoe(bases: Bases, adapters: dict[str, str]) -> nn.Module:
    model = compose(bases.new(), adapters, gate="stretch", top_k=len(adapters))
    for layer in radar_layers(model):
        layer.update = types.MethodType(_loramoe_update, layer)  # type: ignore[method-assign]
    return model


def _literal(bases: Bases, adapters: dict[str, str]) -> nn.Module:
    model = _gate(bases, adapters, "radar")
    for layer in radar_layers(model):
        layer.update = types.MethodType(literal_update, layer)  # type: ignore[method-assign]
    return model


def _gate(bases: Bases, adapters: dict[str, str], name: str) -> Any:
    model = compose(bases.new(), adapters, gate=name, top_k=min(TOP_K, len(adapters)))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("rotation_up"):  # starts at zero, which would turn nothing
            nn.init.normal_(parameter, std=0.1)
    return model


_BUILDERS: dict[str, Callable[[Bases, dict[str, str]], nn.Module]] = {
    "base": _base,
    "lora": _lora,
    "xlora": _xlora,
    "arrow": _arrow,
    "loramoe": _loramoe,
    "literal": _literal,
}


def _loramoe_update(self: Any, x: Tensor, name: str, onto: Tensor) -> Tensor:
    """Every expert computed, each weighed by a softmax router: LoRAMoE as MoE-PEFT (TUDB-Labs, 40f8cb7) writes it."""
    bank, gate = self.bank(name), self.gate(name)
    route = torch.softmax(x.to(gate.softmax_theta) @ gate.softmax_theta.T, -1).to(x.dtype)
    start = 0
    for i, (rank, scale) in enumerate(zip(bank.ranks, bank.scales, strict=True)):
        A, B = bank.A[start : start + rank], bank.B[start : start + rank]
        onto = onto + route[..., i : i + 1] * (((x @ A.T) @ B) * scale)
        start += rank
    return onto


def literal_update(self: Any, x: Tensor, name: str, onto: Tensor) -> Tensor:
    """The paper's equations, every expert in output space."""
    bank, gate = self.bank(name), self.gate(name)
    dtype = compute_dtype(x, bank.A)
    A, B = (t.to(dtype).split(list(bank.ranks)) for t in (bank.A, bank.B))
    update = literal.radar(
        x.to(dtype),
        list(A),
        [s * b.T for s, b in zip(bank.scales, B, strict=True)],
        gate.softmax_theta,
        gate.rotation_down * gate.rotation_down.shape[-2] ** -0.5,
        gate.rotation_up,
        top_k=gate.site.top_k,
        angle_norm=gate.options.angle_norm,
    )
    return onto + update.to(onto.dtype)


@torch.no_grad()
def _check_acts(name: str, model: nn.Module, bases: Bases) -> None:
    ids = torch.arange(2, 18, device=bases.first.device).unsqueeze(0)
    difference = (model(input_ids=ids).logits - bases.first(input_ids=ids).logits).abs().max()
    if not difference > 1e-4:
        raise RadarGateError(f"{name} answers as the bare base model does, so there is nothing to measure.")


@contextmanager
def compiled(wanted: bool) -> Iterator[None]:
    """Inside the block RadarGate uses its compiled operations, or PyTorch alone."""
    before = os.environ.get("RADARGATE_FUSED")
    os.environ["RADARGATE_FUSED"] = "1" if wanted else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["RADARGATE_FUSED"]
        else:
            os.environ["RADARGATE_FUSED"] = before
