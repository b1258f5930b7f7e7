"""Rows whose answer is a label of a classification head: their form, and as training examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from radargate.data.batches import EncodedRow, EncodedRows, keep_fitting, pad
from radargate.data.options import Batching
from radargate.data.rows import Row
from radargate.errors import DataError, shown


@dataclass(frozen=True)
class Labels:
    """What a classification head tells apart.

    Attributes:
        names: name → class, as the checkpoint's config has them.
        count: of classes; with one, the head says a number (a reward model's score), and so do rows.
    """

    names: Mapping[str, int]
    count: int

    @classmethod
    def of(cls, config: Any) -> Labels:
        """Those of a checkpoint's config."""
        return cls(dict(sorted((config.label2id or {}).items(), key=lambda pair: pair[1])), int(config.num_labels))

    def target(self, row: Row) -> float | int:
        """A row's class, or its number where the head says one.

        Raises:
            DataError: its label is neither a name nor a class of this head.
        """
        try:
            found = float(row.target) if self.count == 1 else self.names.get(row.target, None)
            found = int(row.target) if found is None else found
            if self.count == 1 or 0 <= found < self.count:
                return found
        except ValueError:
            pass
        known = "a number" if self.count == 1 else f"0 to {self.count - 1}, or one of {', '.join(self.names)}"
        raise DataError(f"row {row.id}: label is {shown(row.target, 60)!r}, expected {shown(known)}.")

    def name(self, index: int) -> str:
        """The name of a class; its number where it has none."""
        return next((name for name, number in self.names.items() if number == index), str(index))


@dataclass(frozen=True)
class LabelCollator:
    """Pads examples on the right, each with its one label."""

    pad_token_id: int
    scalar: bool
    encoder_decoder: bool = True  # as far as training asks: labels stand apart from what is read

    def __call__(self, rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
        ids, mask = pad([row.input_ids for row in rows], self.pad_token_id, left=False)
        labels = torch.tensor([row.labels[0] for row in rows], dtype=torch.float32 if self.scalar else torch.long)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def encode_labels(rows: Iterable[Row], tokenizer: Any, options: Batching, labels: Labels) -> EncodedRows:
    """Turn rows into training examples of a classifier, which reads the prompt as it is, without a chat template.

    Raises:
        DataError: nothing is left, or a label is not one of the head's.
    """

    def fits(row: Row) -> bool:
        labels.target(row)
        return options.fits(len(tokenizer.encode(row.prompt)))

    def encode(row: Row) -> EncodedRow:
        target: Any = labels.target(row)
        return EncodedRow(tokenizer.encode(row.prompt), [target], row.task)

    return keep_fitting(rows, fits, encode, options, LabelCollator(tokenizer.pad_token_id, labels.count == 1))
