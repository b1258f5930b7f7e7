"""Rows as training examples of whatever a base answers with: text, or a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from radargate.base_models.kinds import answers_with, has_two_stacks
from radargate.base_models.limits import Limits
from radargate.data.batches import EncodedRows, encode_rows
from radargate.data.labels import Labels, encode_labels
from radargate.data.options import Batching
from radargate.data.rows import Row


def encode_for(base: Any, rows: Sequence[Row], tokenizer: Any, options: Batching) -> EncodedRows:
    """Turn rows into training examples for a base model.

    Raises:
        BaseModelError: the base answers with neither text nor a label.
        DataError: no row is left, or one has no label of the base's.
    """
    limits, seq2seq = Limits.of(base), has_two_stacks(base)
    options = options.within(limits.positions)
    if answers_with(base) == "text":
        whole = encode_rows(rows, tokenizer, options, encoder_decoder=seq2seq)
        if limits.lacks(tokenizer):
            for row, example in zip(whole.rows.source, whole.rows, strict=True):
                limits.check(example.input_ids, f"row {row.id}", tokenizer)
        return whole
    limits.check_rows(rows, lambda row: tokenizer.encode(row.prompt)[: limits.positions], tokenizer, lambda row: 0)
    if base.config.pad_token_id is None:  # by which classifiers on decoders find the last token
        base.config.pad_token_id = tokenizer.pad_token_id
    return encode_labels(rows, tokenizer, options, Labels.of(base.config))
