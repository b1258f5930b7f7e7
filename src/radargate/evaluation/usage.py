"""How much of each expert a composition uses, task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from radargate.base_models.kinds import answers_with
from radargate.base_models.offload import device_of
from radargate.composition.composing import radar_config, radar_layers
from radargate.data.prompts import encode_row
from radargate.data.rows import Row
from radargate.gates.call_state import current
from radargate.ops import dense_weights


@dataclass(frozen=True)
class Usage:
    """What a gate does with its experts.

    Attributes:
        by_task: task → expert → mean weight over sites and tokens; a task's weights sum to 1 where the gate's do.
        entropy: mean over sites and tokens of the entropy of the weights' sizes, in nats.
        experts_in_use: exp of the entropy of the mean weights' sizes: 1 where one expert does all, n where all are used alike.
    """

    by_task: dict[str, dict[str, float]]
    entropy: float | None
    experts_in_use: float | None


@torch.no_grad()
def read_rows(model: Any, tokenizer: Any, rows: Sequence[Row]) -> None:
    """Let a composed model read rows one by one, prompt and gold answer, for hooks to look at."""
    model.eval()
    base = model.get_base_model()
    seq2seq, label = bool(base.config.is_encoder_decoder), answers_with(base) == "label"
    device = device_of(model)
    for row in rows:
        if label:
            model(input_ids=torch.tensor([tokenizer.encode(row.prompt)], device=device))
            continue
        pair = encode_row(row.prompt, row.target, tokenizer, seq2seq)
        extra = {"decoder_input_ids": torch.tensor([pair.continuation], device=device)} if seq2seq else {}
        ids = pair.context if seq2seq else pair.context + pair.continuation
        answers = torch.arange(len(ids))[None] >= len(pair.context)
        with current.block(answers=answers):
            model(input_ids=torch.tensor([ids], device=device), **extra)


def expert_usage(
    model: Any, tokenizer: Any, by_task: Mapping[str, Sequence[Row]], before: Callable[[str], None] | None = None
) -> Usage:
    """Which experts a composition uses for which task, over tokens of prompts and answers.

    Sites with one expert have nothing to choose and are left out.

    Args:
        model: a composed model.
        tokenizer: its tokenizer.
        by_task: rows of each task.
        before: called with a task's name before its rows are read.
    """
    config = radar_config(model)
    sums, sizes = torch.zeros(len(config.experts)), torch.zeros(len(config.experts))
    count = tokens = entropy = 0.0

    def look(layer: Any, args: tuple[Any, ...]) -> None:
        nonlocal count, tokens, entropy
        entry = layer.entries["default"][1]
        if len(entry["experts"]) > 1:
            gated = layer.gated(args[0], "default")
            dense = dense_weights(gated.weights, gated.indices, len(entry["experts"])).flatten(0, -2).cpu().float()
            sums[entry["experts"]] += dense.sum(0)
            sizes[entry["experts"]] += dense.abs().sum(0)
            count += dense.shape[0]
            share = dense.abs() / dense.abs().sum(-1, keepdim=True).clamp(min=1e-12)
            entropy -= float(torch.xlogy(share, share).sum())
            tokens += dense.shape[0]

    hooks = [layer.register_forward_pre_hook(look) for layer in radar_layers(model)]
    usage: dict[str, dict[str, float]] = {}
    try:
        for task, rows in by_task.items():
            sums.zero_()
            count = 0
            if before is not None:
                before(task)
            read_rows(model, tokenizer, rows)
            usage[task] = {name: float(s) / max(count, 1) for name, s in zip(config.experts, sums, strict=True)}
    finally:
        for hook in hooks:
            hook.remove()
    share = sizes / sizes.sum().clamp(min=1e-12)
    in_use = float((-torch.xlogy(share, share).sum()).exp()) if tokens else None
    return Usage(usage, entropy / tokens if tokens else None, in_use)
