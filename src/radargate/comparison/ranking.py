"""Who is better, and is it more than chance: standings, paired tests, win counts over a results of systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radargate.comparison.results import ORACLE, Results, System
from radargate.evaluation.metrics import paired_difference
from radargate.evaluation.resampling import all_flips_p, bootstrap_intervals, holm, sign_flip_p, t_test_p

SIGNIFICANT = 0.05
ENOUGH_SEEDS = 3  # for a test over seeds to have a say
RULE = "Holm p < 0.05 over rows and, with three seeds or more, p < 0.05 over seeds"
# a family of a hundred comparisons multiplies its smallest p by a hundred: with 2,000 flips that is never under 0.05
FLIPS = 20_000
TIE = 1e-12
HIGHER_IS_BETTER = {"acc": True, "nll": False, "chrf": True}
WORDS = {"acc": "accuracy", "nll": "NLL", "chrf": "chrF"}


def named(metric: str) -> str:
    """A metric for a heading, with its direction where lower is better."""
    return f"{WORDS[metric]}{'' if HIGHER_IS_BETTER[metric] else ' (lower is better)'}"


@dataclass(frozen=True)
class Standing:
    """One system's mean over tasks, seeds averaged: 95 % interval over rows, lowest and highest seed."""

    label: str
    value: float
    low: float
    high: float
    seed_low: float
    seed_high: float
    seeds: int


@dataclass(frozen=True)
class PairedTest:
    """``first - second`` over the same rows (seeds averaged), and whether that is chance, by three units of it.

    Attributes:
        metric: ``"acc"``, ``"nll"`` or ``"chrf"``.
        first: label of the one system.
        second: label of the other.
        difference: mean over tasks.
        low: lower end of its 95 % interval over rows.
        high: upper end.
        p: over rows, signs of their differences flipped.
        holm: the same after Holm's correction.
        p_seeds: over seeds, a paired t test of their differences; None with one seed.
        p_tasks: over tasks, all flips of their differences' signs; None with more than 16 tasks.
        seeds: pairs of seeds; 1 where neither system has any.
        at: where on an experiment's axis it was made, None elsewhere.
    """

    metric: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    holm: float
    p_seeds: float | None = None
    p_tasks: float | None = None
    seeds: int = 1
    at: Any = None

    @property
    def better(self) -> str | None:
        """The system that is significantly better (`RULE`); None where the difference is not significant."""
        doubted = self.seeds >= ENOUGH_SEEDS and self.p_seeds is not None and self.p_seeds >= SIGNIFICANT
        if self.holm >= SIGNIFICANT or doubted:
            return None
        return self.first if (self.difference > 0) == HIGHER_IS_BETTER[self.metric] else self.second


@dataclass(frozen=True)
class WinCount:
    """How often one system beat another, a task and seed at a time."""

    metric: str
    first: str
    second: str
    wins: int
    ties: int
    losses: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """Wins, ties, losses of the first."""
        return self.wins, self.ties, self.losses

    def swapped(self) -> WinCount:
        """The same with the second as first."""
        return WinCount(self.metric, self.second, self.first, self.losses, self.ties, self.wins)


@dataclass(frozen=True)
class TaskWorth:
    """Whether a task's own expert beats the base on it: only there has composing something to gain."""

    metric: str
    task: str
    base: float
    expert: float
    difference: float
    p: float

    @property
    def counts(self) -> bool:
        """Significantly better, uncorrected: this picks tasks, it claims nothing about systems."""
        return self.p < SIGNIFICANT and (self.difference > 0) == HIGHER_IS_BETTER[self.metric]


def standings(results: Results, metric: str, tasks: Sequence[str] | None = None) -> list[Standing]:
    """Every system's mean over ``tasks`` (by default all that the metric says something of), best first."""
    tasks = tasks or results.tasks_of(metric)
    systems = list(results.systems.values())
    groups = [np.stack([s.rows[metric][task].mean(0) for s in systems], axis=1) for task in tasks]
    lows, highs = bootstrap_intervals(groups)
    values = np.mean([group.mean(0) for group in groups], axis=0)
    found = []
    for place, system in enumerate(systems):
        seeds = system.seed_means(metric, tasks)
        found.append(
            Standing(
                system.label,
                float(values[place]),
                float(lows[place]),
                float(highs[place]),
                float(seeds.min()),
                float(seeds.max()),
                len(seeds),
            )
        )
    return sorted(found, key=lambda s: s.value, reverse=HIGHER_IS_BETTER[metric])


def leader(results: Results, ranked: Sequence[Standing]) -> Standing:
    """The best of a ranking among systems that need not be told the task."""
    return next(s for s in ranked if results.systems[s.label].kind != "oracle")


def compare_pairs(
    results: Results, metric: str, pairs: Sequence[tuple[str, str]], tasks: Sequence[str] | None = None
) -> list[PairedTest]:
    """Paired tests of pairs of labels over the same rows; Holm's correction takes all of ``pairs`` as its family.

    Seeds are paired where both systems have them; a system without seeds meets every seed of the other.
    """
    if not pairs:
        return []
    systems, groups, by_seed = results.systems, [], []
    tasks = tasks or results.tasks_of(metric)
    for task in tasks:
        rows = {label: systems[label].rows[metric][task].mean(0) for pair in pairs for label in pair}
        groups.append(np.stack([rows[first] - rows[second] for first, second in pairs], axis=1))
    lows, highs = bootstrap_intervals(groups)
    p_values = [float(p) for p in sign_flip_p(groups, resamples=FLIPS)]
    by_task = np.stack([group.mean(0) for group in groups])
    for first, second in pairs:
        ours, theirs = (systems[label].seed_means(metric, tasks) for label in (first, second))
        by_seed.append([ours[a] - theirs[b] for a, b in _seed_places(systems[first], systems[second])])
    corrected = holm(p_values)
    return [
        PairedTest(
            metric,
            first,
            second,
            float(by_task[:, i].mean()),
            float(lows[i]),
            float(highs[i]),
            p_values[i],
            corrected[i],
            t_test_p(by_seed[i]),
            all_flips_p(by_task[:, i].tolist()),
            len(by_seed[i]),
        )
        for i, (first, second) in enumerate(pairs)
    ]


def count_wins(results: Results, metric: str, pairs: Sequence[tuple[str, str]]) -> list[WinCount]:
    """Wins, ties and losses of pairs of labels over tasks, and over the seeds that both have.

    A system without seeds meets every seed of the other. Values equal to 1e-12 are a tie; significance plays no part.
    """
    labels = {label for pair in pairs for label in pair}
    means = {label: _seed_task_means(results, metric, label) for label in labels}
    counts = []
    for first, second in pairs:
        places = _seed_places(results.systems[first], results.systems[second])
        gaps = np.array([means[first][a] - means[second][b] for a, b in places]) * (
            1 if HIGHER_IS_BETTER[metric] else -1
        )
        counts.append(
            WinCount(
                metric,
                first,
                second,
                int((gaps > TIE).sum()),
                int((np.abs(gaps) <= TIE).sum()),
                int((gaps < -TIE).sum()),
            )
        )
    return counts


def task_worth(results: Results, metric: str) -> list[TaskWorth]:
    """For each task: does its own expert beat the base? Empty where base or experts are missing."""
    own = results.systems.get(ORACLE)
    base = next((s for s in results.systems.values() if s.kind == "base"), None)
    if own is None or base is None:
        return []
    found = []
    for task in results.tasks_of(metric):
        test = paired_difference(
            {task: list(own.rows[metric][task].mean(0))}, {task: list(base.rows[metric][task].mean(0))}
        )
        found.append(
            TaskWorth(
                metric, task, base.task_mean(metric, task), own.task_mean(metric, task), test["difference"], test["p"]
            )
        )
    return found


def _seed_task_means(results: Results, metric: str, label: str) -> np.ndarray:
    """Means over rows [seeds, tasks]."""
    return np.stack([results.systems[label].rows[metric][task].mean(1) for task in results.tasks_of(metric)], axis=1)


def _seed_places(first: System, second: System) -> list[tuple[int, int]]:
    """Indices into both systems' seeds that belong together."""
    if first.seeds == (None,):
        return [(0, i) for i in range(len(second.seeds))]
    if second.seeds == (None,):
        return [(i, 0) for i in range(len(first.seeds))]
    return [(i, second.seeds.index(seed)) for i, seed in enumerate(first.seeds) if seed in second.seeds]
