"""Training examples and batches: loss on the answer only, no target ever cut, batches of similar length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch

from radargate.data.options import Batching
from radargate.data.prompts import Conversation, encode_row, end_token, render_context
from radargate.data.rows import Row
from radargate.errors import DataError

SPECIAL = 16  # tokens that a tokenizer may add around a text, at most
CHUNK = 16  # batches that are sorted by length together


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


class Examples(Sequence[EncodedRow]):
    """Rows as training examples, each encoded when it is first asked for: a short training uses few of many rows."""

    def __init__(self, rows: Sequence[Row], encode: Callable[[Row], EncodedRow]) -> None:
        self.source, self._encode = rows, encode
        self._done: dict[int, EncodedRow] = {}

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index not in self._done:
            self._done[index] = self._encode(self.source[index])
        return self._done[index]


@dataclass(frozen=True)
class AnswerCollator:
    """Pads examples into a batch.

    Causal models are padded on the left, so that all answers end at the last position and logits are
    needed only for the last few; positions count from each row's first real token.
    """

    pad_token_id: int
    encoder_decoder: bool

    def __call__(self, rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
        left = not self.encoder_decoder
        ids, mask = pad([row.input_ids for row in rows], self.pad_token_id, left)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": pad([row.labels for row in rows], -100, left)[0]}
        if not self.encoder_decoder:
            batch["position_ids"] = positions(batch["attention_mask"])
        return batch


@dataclass(frozen=True)
class EncodedRows:
    """Training examples, how many rows were dropped as too long, and what pads the others."""

    rows: Examples
    dropped: dict[str, int]
    options: Batching
    collator: AnswerCollator

    def of_task(self, task: str) -> list[int]:
        """Indices of a task's rows."""
        return [i for i, row in enumerate(self.rows.source) if row.task == task]

    def report(self) -> str:
        """One line about what is kept and dropped."""
        kept = f"{len(self.rows)} training rows"
        if not self.dropped:
            return f"{kept}, none dropped."
        lost = ", ".join(f"{count} of {task}" for task, count in self.dropped.items())
        return f"{kept}; dropped whole, being {self.options.too_long}: {lost}."


def encode_rows(rows: Iterable[Row], tokenizer: Any, options: Batching, *, encoder_decoder: bool) -> EncodedRows:
    """Turn rows into training examples that end as the chat template ends an answer, else with the end of sequence.

    Raises:
        DataError: nothing is left.
    """
    last = end_token(tokenizer)
    end = [] if last is None else [last]

    def encode(row: Row) -> EncodedRow:
        pair = encode_row(row.prompt, row.target, tokenizer, encoder_decoder)
        answer = pair.continuation + end
        if encoder_decoder:
            return EncodedRow(pair.context, answer, row.task)
        ignored = [-100] * (len(pair.context) + pair.lead)
        return EncodedRow(pair.context + answer, ignored + answer[pair.lead :], row.task)

    around = len(render_context("", tokenizer)) + SPECIAL

    def fits(row: Row) -> bool:
        # a token holds at least one character of plain text, so most rows need no tokenizer to be known as short
        plain = (row.prompt + row.target).isascii() and not isinstance(row.prompt, Conversation)
        if plain and options.fits(len(row.prompt) + len(row.target) + around):
            return True
        example = encode(row)
        return options.fits(max(len(example.input_ids), len(example.labels)))

    collator = AnswerCollator(tokenizer.pad_token_id, encoder_decoder)
    return keep_fitting(rows, fits, encode, options, collator)


def keep_fitting(
    rows: Iterable[Row],
    fits: Callable[[Row], bool],
    encode: Callable[[Row], EncodedRow],
    options: Batching,
    collator: Any,
) -> EncodedRows:
    """Drop rows that are too long whole, and count them: a cut prompt or target would teach the wrong thing.

    Raises:
        DataError: nothing is left.
    """
    kept: list[Row] = []
    dropped: dict[str, int] = {}
    for row in rows:
        if fits(row):
            kept.append(row)
        else:
            dropped[row.task] = dropped.get(row.task, 0) + 1
    if not kept:
        raise DataError(
            f"No row is left: all {sum(dropped.values())} of {', '.join(dropped)} are {options.too_long}. "
            "Raise it, or leave them out."
        )
    return EncodedRows(Examples(kept, encode), dropped, options, collator)


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids that count real tokens only, for either padding side: [batch, length]."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def step_order(length: Callable[[int], int], count: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Choose the rows of every training step beforehand, so that a resumed run sees the same ones.

    Each pass over the data is shuffled, sorted by length within chunks of 16 batches, and its batches
    are shuffled again: similar lengths share a batch. Rows that fill no batch are left out of a pass, others in
    each, whatever their length.

    Args:
        length: of a row; asked for the chunks that a step comes from only.
        count: of rows.
        batch_size: rows a step.
        steps: how many.
        seed: of the shuffles.

    Returns:
        ``steps`` lists of ``batch_size`` row indices (fewer only where there are fewer rows).
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[list[int]] = []
    while len(order) < steps:
        shuffled = torch.randperm(count, generator=generator).tolist()
        shuffled = shuffled[: count // batch_size * batch_size] or shuffled
        batches, sorted_chunks = math.ceil(len(shuffled) / batch_size), dict[int, list[int]]()
        for batch in torch.randperm(batches, generator=generator).tolist()[: steps - len(order)]:
            chunk, place = divmod(batch, CHUNK)
            if chunk not in sorted_chunks:
                block = shuffled[chunk * CHUNK * batch_size : (chunk + 1) * CHUNK * batch_size]
                sorted_chunks[chunk] = sorted(block, key=lambda i: -length(i))
            order.append(sorted_chunks[chunk][place * batch_size : (place + 1) * batch_size])
    return order


def pad(rows: Sequence[Sequence[int]], value: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unequal length as one tensor, filled with a value on the left or right, and the mask of their own entries."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span], mask[i, span] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask
