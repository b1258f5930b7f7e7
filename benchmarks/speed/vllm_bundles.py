"""Bundles of the shipped experts over SmolLM2-135M whose gates do something, for what is measured and compared in vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import radargate
from radargate.experts.shipped import BASE, shipped_experts

TEXTS = (
    "Once upon a time there was",
    "The history of the city begins with",
    "To bake bread, first take",
    "The river flows from the mountains to",
    "def add(a, b):",
    "Is a whale a fish? Answer:",
    "If a train leaves at 12 and drives 90 km an hour,",
    "Translate to German: the house is small.",
)
KINDS: dict[str, dict[str, Any]] = {
    "stretch": {"gate": "stretch"},
    "radar": {"gate": "radar"},
    "radar with router": {"gate": "radar", "router": "text"},
    "radar with router of prompts": {"gate": "radar", "router": "prompt"},
}


def save_bundle(kind: str, folder: Path) -> Path:
    """Compose the shipped experts and draw the gates' parameters at random, wide enough that outputs differ plainly.

    Args:
        kind: of `KINDS`.
        folder: for the bundle.
    """
    model = radargate.compose(BASE, shipped_experts(), top_k=2, dtype="float32", **KINDS[kind])
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".router." in name:
                parameter.normal_(std=2.0)
            elif ".radar_gate." in name:
                parameter.normal_(std=0.1 if "rotation_up" in name else 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("text_spread") and not buffer:
                buffer.fill_(0.05)
    model.save_pretrained(folder)
    return folder


def prompts(tokenizer: Any) -> list[list[int]]:
    """Nine prompts of 6 to some 330 tokens; three begin with the same 300."""
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    long = (ids[0] + ids[1] + ids[3]) * 20
    return [
        *ids[:5],
        [token for text in ids for token in text] * 2,
        long[:300],
        [*long[:300], *ids[4]],
        [*long[:300], *ids[6]],
    ]
