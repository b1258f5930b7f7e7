"""Scoring rows with a classification head: the label with the largest logit, and the right one's NLL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from radargate.base_models.kinds import answers_with
from radargate.base_models.limits import Limits
from radargate.base_models.offload import device_of
from radargate.data.batches import pad
from radargate.data.labels import Labels
from radargate.data.rows import Row
from radargate.evaluation.metrics import RowScore
from radargate.evaluation.options import Scoring
from radargate.evaluation.scoring import Scorer
from radargate.io.progress import Progress

NEAR = 0.5  # of the gold number, where a head says numbers: what rounds to the same


class LabelScorer:
    """Scores rows with one classifier or reward model.

    Args:
        model: the model, composed or not.
        tokenizer: its tokenizer.
        batch_size: rows a batch.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 16) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.config = (model.get_base_model() if hasattr(model, "get_base_model") else model).config
        self.labels = Labels.of(self.config)
        if self.config.pad_token_id is None:
            self.config.pad_token_id = tokenizer.pad_token_id

    def check(self, rows: Iterable[Row]) -> None:
        """Raise `DataError` at the first row that does not fit into the model or has no label of the head's."""
        rows = list(rows)
        for row in rows:
            self.labels.target(row)
        limits = Limits.of(self.model)
        limits.check_rows(rows, lambda row: self.tokenizer.encode(row.prompt), self.tokenizer, lambda row: 0)

    def cost(self, row: Row) -> float:
        """Roughly how long a row takes, in characters read."""
        return float(len(row.prompt))

    @torch.no_grad()
    def score(self, rows: Sequence[Row], work: Progress | None = None) -> list[RowScore]:
        """Score every row, in the given order; each batch adds its `cost` to ``work``.

        A head of one number is right within 0.5 of the row's, and its squared error stands where others have the NLL.

        Raises:
            DataError: a row's label is not one of the head's.
        """
        scores: list[RowScore] = []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            scores += [self._row_score(row, logits) for row, logits in zip(batch, self._logits(batch), strict=True)]
            if work is not None:
                work.add(sum(map(self.cost, batch)), f"{batch[0].task}: {len(scores)}/{len(rows)} rows")
        return scores

    def _logits(self, rows: Sequence[Row]) -> Tensor:
        device = device_of(self.model)
        ids, mask = pad([self.tokenizer.encode(row.prompt) for row in rows], self.config.pad_token_id, left=False)
        return self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float().cpu()

    def _row_score(self, row: Row, logits: Tensor) -> RowScore:
        gold = self.labels.target(row)
        if self.labels.count == 1:
            off = float(logits[0]) - gold
            return RowScore(row.id, abs(off) < NEAR, None, f"{float(logits[0]):.4f}", None, off**2, 1, metric="label")
        best, nll = int(logits.argmax()), -float(logits.log_softmax(-1)[int(gold)])
        return RowScore(row.id, best == gold, None, self.labels.name(best), None, nll, 1, metric="label")


def scorer_for(model: Any, tokenizer: Any, how: Scoring) -> Scorer | LabelScorer:
    """What scores a model's rows.

    Raises:
        BaseModelError: it answers with neither text nor a label.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if answers_with(inner) == "label":
        return LabelScorer(model, tokenizer, batch_size=how.batch_size)
    return Scorer(model, tokenizer, batch_size=how.batch_size, max_new_tokens=how.max_new_tokens)
