"""Rows to fit to and rows to measure on, and what a composition does with them, batch by batch."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radargate.base_models.offload import device_of
from radargate.composition.composing import radar_layers
from radargate.composition.layer import RadarLayer, real_tokens
from radargate.data.batches import EncodedRows, encode_rows
from radargate.data.options import Batching
from radargate.data.rows import Row
from radargate.data.sources import has_split, load_rows
from radargate.errors import DataError
from radargate.gates.call_state import current

HELD_OUT = 5  # of a source without splits, every fifth row is measured on

ByTask = Mapping[str, Sequence[Row]]
Batches = list[dict[str, Tensor]]


def fit_and_held_out(
    source: str | Path, tasks: list[str] | None, fit_rows: int | None, limit: int | None
) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Rows to fit to and others to measure on: splits ``train`` and ``test``, or of a source without splits every fifth row.

    Args:
        source: as `radargate.data.sources.load_rows` takes it.
        tasks: only these.
        fit_rows: of each task to fit to, the first ones.
        limit: of each task to measure on, the first ones.

    Raises:
        DataError: nothing is there, a row does not fit, or no row is left to measure on.
    """
    if str(source).startswith("builtin:") or has_split(source, "test"):
        return load_rows(source, "train", tasks, fit_rows), load_rows(source, "test", tasks, limit)
    everything = load_rows(source, "train", tasks)
    fit = {task: [row for i, row in enumerate(rows, 1) if i % HELD_OUT] for task, rows in everything.items()}
    held = {task: rows[HELD_OUT - 1 :: HELD_OUT] for task, rows in everything.items() if len(rows) >= HELD_OUT}
    if not held:
        most = max(len(rows) for rows in everything.values())
        raise DataError(
            f"{source} has no split of its own to measure on, and its largest task has {most} rows: every {HELD_OUT}th is "
            f"held out. Give at least {HELD_OUT} rows of a task, or a folder with TASK.train.jsonl and TASK.test.jsonl."
        )
    return {task: rows[:fit_rows] for task, rows in fit.items()}, {task: rows[:limit] for task, rows in held.items()}


def make_batches(model: Any, tokenizer: Any, rows: Sequence[Row], options: Batching) -> tuple[Batches, EncodedRows]:
    """Rows as model inputs, prompt and gold answer, similar lengths together; and what was kept of them.

    Raises:
        DataError: every row is too long.
    """
    inner = model.get_base_model()
    seq2seq, accepted = bool(inner.config.is_encoder_decoder), set(inspect.signature(inner.forward).parameters)
    encoded = encode_rows(rows, tokenizer, options, encoder_decoder=seq2seq)
    ordered = sorted(encoded.rows, key=lambda row: row.length)
    batches = []
    for start in range(0, len(ordered), options.batch_size):
        batch: dict[str, Any] = encoded.collator(ordered[start : start + options.batch_size])
        if not seq2seq:
            del batch["labels"]  # nobody asks for a loss, nor for the logits behind it
            batch["logits_to_keep"] = 1
        batches.append({name: value for name, value in batch.items() if name in accepted})
    return batches, encoded


def rows_that_fit(by_task: ByTask, encoded: EncodedRows) -> dict[str, list[Row]]:
    """Task → those of its rows that were kept; a task without any is left out."""
    there = {id(row) for row in encoded.rows.source}
    kept = {task: [row for row in rows if id(row) in there] for task, rows in by_task.items()}
    return {task: rows for task, rows in kept.items() if rows}


@torch.no_grad()
def read(model: Any, batches: Batches) -> Iterator[int]:
    """Let a model read batches; gives how many it has read after each."""
    device = device_of(model)
    for count, batch in enumerate(batches, 1):
        model(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.items()}, use_cache=False)
        yield count


@contextlib.contextmanager
def watching(model: Any, name: str, see: Callable[[RadarLayer, Tensor, Tensor], None]) -> Iterator[None]:
    """While the block runs, ``see(layer, x [tokens, d_in], u [tokens, d_out])`` gets what every site reads and adds.

    Padding is left out.
    """

    def look(layer: RadarLayer, args: tuple[Any, ...], output: Tensor) -> None:
        x = args[0]
        u = torch.zeros_like(output) if layer.silent(name) else layer.update(x, name)
        real = real_tokens(current.get().masks or (None, None), layer.site, layer.two_stacks, x.shape[:-1])
        if real is None:
            see(layer, x.reshape(-1, x.shape[-1]), u.reshape(-1, u.shape[-1]))
        else:
            see(layer, x[real], u[real])

    hooks = [layer.register_forward_hook(look) for layer in radar_layers(model) if name in layer.radar_gate]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
