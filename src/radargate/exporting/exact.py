"""One ordinary LoRA from a composition whose weights are constant: exact, and loaded by PEFT alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radargate.architectures import ARCHITECTURES
from radargate.composition.composing import expert_bank, radar_config, radar_layers
from radargate.composition.config import gate_class
from radargate.composition.heads import kept_head
from radargate.composition.layer import RadarLayer
from radargate.errors import RadarGateError
from radargate.experts.bank import write_expert
from radargate.experts.plain import plain_bank
from radargate.gates import GATES
from radargate.gates.base import OneExpert
from radargate.gates.rules import RULES
from radargate.gates.rules.base import StaticRule, combined_lora


@torch.no_grad()
def save_as_lora(model: Any, folder: str | Path, adapter_name: str = "default") -> None:
    """Save a composition under a static rule as one PEFT LoRA folder that gives the same outputs.

    Rules that mix outputs become the experts' A and weighted B stacked, of rank Σ r_i; those that mix A and B apart
    keep the experts' own rank. Arithmetic in float64, stored in float32 (or wider where the experts are).

    Args:
        model: a composed model.
        folder: where the adapter goes; ``PeftModel.from_pretrained(base, folder)`` loads it.
        adapter_name: the composition's name inside the model.

    Raises:
        RadarGateError: weights differ from token to token, so no single LoRA equals the composition.
        AdapterError: the folder already holds an adapter, or the composition changes nothing.
    """
    config = radar_config(model, adapter_name)
    if not ARCHITECTURES.get(config.architecture).mergeable:
        raise RadarGateError(
            f"architecture {config.architecture!r} makes outputs orthogonal for each token, so no single LoRA equals "
            "this composition. Save it as a bundle with save_pretrained, or fit one to data (`rank` and `data`)."
        )
    factors = {
        layer.site: _factors(layer, adapter_name) for layer in radar_layers(model) if adapter_name in layer.entries
    }
    bank = plain_bank(
        "lora", factors, expert_bank(model, adapter_name), f"{config.gate} of {', '.join(config.experts)}"
    )
    write_expert(bank, "lora", folder, kept_head(model, adapter_name))


def _factors(layer: RadarLayer, adapter_name: str) -> tuple[Tensor, Tensor]:
    gate, bank = layer.gate(adapter_name), layer.bank(adapter_name)
    A, B = bank.A.detach().double(), bank.B.detach().double()
    if isinstance(gate, OneExpert):
        return combined_lora(A, B, bank.ranks, bank.scales)
    if isinstance(gate, StaticRule):
        return gate.lora(A, B)
    names = [name for name in (*RULES, *GATES) if gate_class(name).static]
    raise RadarGateError(
        f"gate {layer.entries[adapter_name][0].gate!r} weighs experts differently for each token (here at {layer.site}), so no "
        "single LoRA equals it. Save it as a bundle with save_pretrained, or fit one to data (`rank` and `data`); "
        f"one LoRA is exact for: {', '.join(names)}."
    )
