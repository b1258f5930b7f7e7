"""From row scores to numbers with 95 % bootstrap intervals. Knows nothing of models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from radargate.errors import DataError
from radargate.evaluation.resampling import bootstrap_intervals, resample_counts, sign_flip_p
from radargate.evaluation.translation import CORPUS_METRICS, corpus_value, signature


@dataclass(frozen=True)
class RowScore:
    """What one row's scoring gave.

    Attributes:
        id: the row's id.
        correct: whether the best-ranked choice is right, or the generated answer by its row's metric.
        correct_norm: the same with log-likelihoods divided by the choices' lengths in characters.
        prediction: index of the chosen candidate, or the generated text.
        prediction_norm: index of the candidate chosen by length-normalised log-likelihood.
        nll_sum: summed negative log-likelihood of the gold answer's tokens, in nats.
        tokens: how many they are.
        loglikelihoods: summed log-likelihood of every candidate.
        metric: what judged the answer.
        values: other numbers of this row, such as its chrF.
        stats: counts of this row that corpus-level metrics add up.
        timed_out: the answer could not be checked in time, and counts as wrong.
    """

    id: str
    correct: bool
    correct_norm: bool | None
    prediction: int | str
    prediction_norm: int | None
    nll_sum: float
    tokens: int
    loglikelihoods: tuple[float, ...] = ()
    metric: str = "choice"
    values: Mapping[str, float] = field(default_factory=dict)
    stats: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    timed_out: bool = False

    @property
    def nll(self) -> float:
        """Gold-answer NLL a token."""
        return self.nll_sum / max(self.tokens, 1)


def summarise(scores: Sequence[RowScore], seed: int = 0) -> dict[str, Any]:
    """Mean accuracy, length-normalised accuracy and gold-answer NLL of one task, each with its interval.

    Translations have corpus-level chrF and BLEU (0 to 100) besides.
    """
    metrics: dict[str, Any] = {"n": len(scores)}
    columns = {"acc": [float(s.correct) for s in scores], "nll": [s.nll for s in scores]}
    if all(s.correct_norm is not None for s in scores):
        columns["acc_norm"] = [float(bool(s.correct_norm)) for s in scores]
    for name, values in columns.items():
        metrics[name] = with_interval([values], seed)
    metrics.update(_corpus_metrics([scores], seed))
    if late := sum(s.timed_out for s in scores):
        metrics["timed_out"] = late
    metrics["nll_sum"] = float(sum(s.nll_sum for s in scores))
    metrics["tokens"] = int(sum(s.tokens for s in scores))
    return metrics


def summarise_tasks(by_task: Mapping[str, Sequence[RowScore]], seed: int = 0) -> dict[str, Any]:
    """Unweighted means over tasks; intervals resample rows within each task.

    chrF and BLEU are there where every task is translation.
    """
    groups = list(by_task.values())
    return {
        "n": sum(len(group) for group in groups),
        "tasks": len(groups),
        "acc": with_interval([[float(s.correct) for s in group] for group in groups], seed),
        "nll": with_interval([[s.nll for s in group] for group in groups], seed),
        **_corpus_metrics(groups, seed),
    }


def metric_counts(scores: Sequence[RowScore]) -> dict[str, int]:
    """metric → how many rows it judged."""
    return dict(Counter(s.metric for s in scores))


def paired_difference(
    first: dict[str, Sequence[float]], second: dict[str, Sequence[float]], seed: int = 0
) -> dict[str, float]:
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
    """One number a row of an eval record: ``"acc"`` 0 or 1, ``"nll"`` nats a token, ``"chrf"`` 0 to 100.

    Raises:
        DataError: not every row of the record has such a number.
    """
    rows = record["rows"]
    if metric not in ("acc", "nll"):
        if None in rows.get(metric, [None]):
            raise DataError(f"{record.get('case')}: its rows have no {metric!r}; they have acc and nll.")
        return [float(v) for v in rows[metric]]
    if metric == "acc":
        return [float(v) for v in rows["correct"]]
    return [s / t for s, t in zip(rows["nll_sum"], rows["tokens"], strict=True)]


def with_interval(groups: Sequence[Sequence[float]], seed: int) -> dict[str, float]:
    """Mean over groups of their means, ``low`` and ``high`` of its 95 % interval; numbers are resampled within each group."""
    arrays = [np.asarray(group, dtype=float) for group in groups]
    low, high = bootstrap_intervals([a[:, None] for a in arrays], seed)
    return {"value": float(np.mean([a.mean() for a in arrays])), "low": float(low[0]), "high": float(high[0])}


def _corpus_metrics(groups: Sequence[Sequence[RowScore]], seed: int) -> dict[str, dict[str, Any]]:
    """chrF and BLEU: means over groups of the corpus values of rows that have counts; none where a group has no such row."""
    found: dict[str, dict[str, Any]] = {}
    for name in CORPUS_METRICS:
        counts = [np.array([s.stats[name] for s in group if name in s.stats]) for group in groups]
        if not all(len(rows) for rows in counts):
            continue
        generator = np.random.default_rng(seed)
        resampled = np.mean(
            [[corpus_value(name, sums) for sums in resample_counts(generator, len(rows)) @ rows] for rows in counts],
            axis=0,
        )
        low, high = np.percentile(resampled, [2.5, 97.5])
        value = float(np.mean([corpus_value(name, rows.sum(0)) for rows in counts]))
        found[name] = {"value": value, "low": float(low), "high": float(high), "signature": signature(name)}
    return found
