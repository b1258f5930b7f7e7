"""How much of each expert a composition uses, task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from radargate.composition import radar_config, radar_layers
from radargate.data.prompts import encode_row
from radargate.data.rows import Row
from radargate.ops import dense_weights


@torch.no_grad()
def expert_usage(model: Any, tokenizer: Any, by_task: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, float]]:
    """Mean weight of every expert over sites and tokens of prompts and answers, for each task.

    Sites with one expert have nothing to choose and are left out.

    Args:
        model: a composed model.
        tokenizer: its tokenizer.
        by_task: rows of each task.

    Returns:
        task → expert → mean weight; the weights of a task sum to 1 where the gate's do.
    """
    config = radar_config(model)
    sums = torch.zeros(len(config.experts))
    count = 0

    def look(layer: Any, args: tuple[Any, ...]) -> None:
        nonlocal count
        entry = layer.entries["default"][1]
        if len(entry["experts"]) > 1:
            gated = layer.gated(args[0], "default")
            dense = dense_weights(gated.weights, gated.indices, len(entry["experts"]))
            sums[entry["experts"]] += dense.flatten(0, -2).sum(0).cpu().float()
            count += dense.flatten(0, -2).shape[0]

    seq2seq = bool(model.get_base_model().config.is_encoder_decoder)
    hooks = [layer.register_forward_pre_hook(look) for layer in radar_layers(model)]
    usage: dict[str, dict[str, float]] = {}
    try:
        for task, rows in by_task.items():
            sums.zero_()
            count = 0
            for row in rows:
                pair = encode_row(row.prompt, row.target, tokenizer, seq2seq)
                extra = {"decoder_input_ids": torch.tensor([pair.continuation])} if seq2seq else {}
                ids = pair.context if seq2seq else pair.context + pair.continuation
                model(input_ids=torch.tensor([ids], device=next(model.parameters()).device), **extra)
            usage[task] = {name: float(s) / max(count, 1) for name, s in zip(config.experts, sums, strict=True)}
    finally:
        for hook in hooks:
            hook.remove()
    return usage
