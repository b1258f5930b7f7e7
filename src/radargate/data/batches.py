"""Training examples and batches: loss on the answer only, no target ever cut, batches of similar length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from radargate.data.prompts import encode_row
from radargate.data.rows import Row
from radargate.errors import DataError


@dataclass(frozen=True)
class EncodedRow:
    """One training example: model input and labels (-100 where no loss is taken)."""

    input_ids: list[int]
    labels: list[int]
    task: str

    @property
    def length(self) -> int:
        """Tokens read by the model."""
        return len(self.input_ids)

    def prompt(self, encoder_decoder: bool) -> list[int]:
        """Tokens before the first label: all of an encoder–decoder's input, which has its labels apart."""
        if encoder_decoder:
            return self.input_ids
        return self.input_ids[: next((i for i, label in enumerate(self.labels) if label != -100), len(self.labels))]


@dataclass(frozen=True)
class EncodedRows:
    """Training examples, the rows they come from, and how many were left out, being longer than ``max_length``."""

    rows: list[EncodedRow]
    kept: list[Row]
    dropped: dict[str, int]

    def report(self, max_length: int) -> str:
        """One line about what is kept and dropped."""
        kept = f"{len(self.rows)} training rows"
        if not self.dropped:
            return f"{kept}, none dropped."
        lost = ", ".join(f"{count} of {task}" for task, count in self.dropped.items())
        return f"{kept}; dropped whole, being longer than --max-length {max_length} tokens: {lost}."


def encode_rows(rows: Iterable[Row], tokenizer: Any, *, max_length: int, encoder_decoder: bool) -> EncodedRows:
    """Turn rows into training examples that end with the tokenizer's end token.

    Rows longer than ``max_length`` tokens are dropped whole and counted: a cut prompt or target would
    teach the wrong thing.

    Raises:
        DataError: nothing is left.
    """
    encoded: list[EncodedRow] = []
    kept: list[Row] = []
    dropped: dict[str, int] = {}
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for row in rows:
        pair = encode_row(row.prompt, row.target, tokenizer, encoder_decoder)
        answer = pair.continuation + end
        if encoder_decoder:
            example = EncodedRow(pair.context, answer, row.task)
        else:
            ignored = [-100] * (len(pair.context) + pair.lead)
            example = EncodedRow(pair.context + answer, ignored + answer[pair.lead :], row.task)
        if max(len(example.input_ids), len(example.labels)) > max_length:
            dropped[row.task] = dropped.get(row.task, 0) + 1
        else:
            encoded.append(example)
            kept.append(row)
    if not encoded:
        raise DataError(
            f"No row is left: all {sum(dropped.values())} of {', '.join(dropped)} are longer than --max-length {max_length} tokens. "
            "Raise it, or leave them out."
        )
    return EncodedRows(encoded, kept, dropped)


@dataclass(frozen=True)
class AnswerCollator:
    """Pads examples into a batch.

    Causal models are padded on the left, so that all answers end at the last position and logits are
    needed only for the last few; positions count from each row's first real token.
    """

    pad_token_id: int
    encoder_decoder: bool

    def __call__(self, rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
        width = max(row.length for row in rows)
        left = not self.encoder_decoder
        batch = {
            "input_ids": _pad([row.input_ids for row in rows], width, self.pad_token_id, left),
            "attention_mask": _pad([[1] * row.length for row in rows], width, 0, left),
            "labels": _pad([row.labels for row in rows], max(len(row.labels) for row in rows), -100, left),
        }
        if not self.encoder_decoder:
            batch["position_ids"] = positions(batch["attention_mask"])
        return batch


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids that count real tokens only, for either padding side: [batch, length]."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def step_order(lengths: list[int], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Choose the rows of every training step beforehand, so that a resumed run sees the same ones.

    Each pass over the data is shuffled, sorted by length within chunks of 16 batches, and its batches
    are shuffled again: similar lengths share a batch. Rows that fill no batch are left out of a pass, others in
    each, whatever their length.

    Returns:
        ``steps`` lists of ``batch_size`` row indices (fewer only where there are fewer rows).
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[list[int]] = []
    while len(order) < steps:
        shuffled = torch.randperm(len(lengths), generator=generator).tolist()
        shuffled = shuffled[: len(shuffled) // batch_size * batch_size] or shuffled
        batches: list[list[int]] = []
        chunk = 16 * batch_size
        for start in range(0, len(shuffled), chunk):
            block = sorted(shuffled[start : start + chunk], key=lambda i: -lengths[i])
            batches += [block[i : i + batch_size] for i in range(0, len(block), batch_size)]
        order += [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return order[:steps]


def _pad(rows: list[list[int]], width: int, value: int, left: bool) -> torch.Tensor:
    filled = [([value] * (width - len(r)) + r) if left else (r + [value] * (width - len(r))) for r in rows]
    return torch.tensor(filled, dtype=torch.long)
