"""From row scores to numbers with 95 % bootstrap intervals. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radargate.evaluation.resampling import bootstrap_intervals, sign_flip_p


@dataclass(frozen=True)
class RowScore:
    """What one row's scoring gave.

    Attributes:
        id: the row's id.
        correct: whether the best-ranked choice, or the generated answer, is right.
        correct_norm: the same with log-likelihoods divided by the choices' lengths in characters.
        prediction: index of the chosen candidate, or the generated text.
        prediction_norm: index of the candidate chosen by length-normalised log-likelihood.
        nll_sum: summed negative log-likelihood of the gold answer's tokens, in nats.
        tokens: how many they are.
        loglikelihoods: summed log-likelihood of every candidate.
    """

    id: str
    correct: bool
    correct_norm: bool | None
    prediction: int | str
    prediction_norm: int | None
    nll_sum: float
    tokens: int
    loglikelihoods: tuple[float, ...] = ()

    @property
    def nll(self) -> float:
        """Gold-answer NLL a token."""
        return self.nll_sum / max(self.tokens, 1)


def summarise(scores: Sequence[RowScore], seed: int = 0) -> dict[str, Any]:
    """Mean accuracy, length-normalised accuracy and gold-answer NLL of one task, each with its interval."""
    metrics: dict[str, Any] = {"n": len(scores)}
    columns = {"acc": [float(s.correct) for s in scores], "nll": [s.nll for s in scores]}
    if all(s.correct_norm is not None for s in scores):
        columns["acc_norm"] = [float(bool(s.correct_norm)) for s in scores]
    for name, values in columns.items():
        metrics[name] = _with_interval([values], seed)
    metrics["nll_sum"] = float(sum(s.nll_sum for s in scores))
    metrics["tokens"] = int(sum(s.tokens for s in scores))
    return metrics


def summarise_tasks(by_task: Mapping[str, Sequence[RowScore]], seed: int = 0) -> dict[str, Any]:
    """Unweighted means over tasks; intervals resample rows within each task."""
    groups = list(by_task.values())
    return {
        "n": sum(len(group) for group in groups),
        "tasks": len(groups),
        "acc": _with_interval([[float(s.correct) for s in group] for group in groups], seed),
        "nll": _with_interval([[s.nll for s in group] for group in groups], seed),
    }


def paired_difference(first: dict[str, Sequence[float]], second: dict[str, Sequence[float]], seed: int = 0
                      ) -> dict[str, float]:  # fmt: skip
    """Mean difference ``first - second`` over the same rows, averaged over tasks, with interval and p-value.

    The p-value is two-sided, from a sign-flip permutation of row differences (ties stay ties).
    """
    differences = [np.asarray(first[task], dtype=float) - np.asarray(second[task], dtype=float) for task in first]
    columns = [d[:, None] for d in differences]
    low, high = bootstrap_intervals(columns, seed)
    return {
        "difference": float(np.mean([d.mean() for d in differences])),
        "low": float(low[0]),
        "high": float(high[0]),
        "p": float(sign_flip_p(columns, seed)[0]),
    }


def row_values(record: Mapping[str, Any], metric: str) -> list[float]:
    """One number a row of an eval record: ``"acc"`` 0 or 1, ``"nll"`` nats a token."""
    rows = record["rows"]
    if metric == "acc":
        return [float(v) for v in rows["correct"]]
    return [s / t for s, t in zip(rows["nll_sum"], rows["tokens"], strict=True)]


def _with_interval(groups: Sequence[Sequence[float]], seed: int) -> dict[str, float]:
    arrays = [np.asarray(group, dtype=float) for group in groups]
    low, high = bootstrap_intervals([a[:, None] for a in arrays], seed)
    return {"value": float(np.mean([a.mean() for a in arrays])), "low": float(low[0]), "high": float(high[0])}
