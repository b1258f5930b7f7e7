"""What a comparison says: standings, three families of paired tests, the tasks that count. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from radargate.comparison.ranking import (
    PairedTest,
    Standing,
    TaskWorth,
    WinCount,
    compare_pairs,
    count_wins,
    leader,
    standings,
    task_worth,
)
from radargate.comparison.results import METRICS, UNTURNED, Results, read_results, shown_label
from radargate.errors import OptionError
from radargate.gates import GATES

# every report asks whether rotation is worth it: radar is the baseline with rotation
SUBJECT, BASELINE = "radar", "stretch"


@dataclass(frozen=True)
class Analysis:
    """Everything a report shows, by metric (``"acc"``, ``"nll"``).

    Attributes:
        results: of the finished systems.
        standings: best first.
        leaders: label of the best system that need not be told the task.
        reference: label that every system is tested against, if there is one.
        rotation: radar against stretch and the controls, under each architecture.
        against_reference: every system against ``reference``.
        against_leader: the leader against every other system.
        worth: task by task, whether its own expert beats the base.
    """

    results: Results
    standings: Mapping[str, list[Standing]]
    leaders: Mapping[str, str]
    reference: str | None
    rotation: Mapping[str, list[PairedTest]]
    against_reference: Mapping[str, list[PairedTest]]
    against_leader: Mapping[str, list[PairedTest]]
    worth: Mapping[str, list[TaskWorth]]

    def counting(self, metric: str) -> list[str]:
        """The tasks whose own expert beats the base significantly."""
        return [worth.task for worth in self.worth[metric] if worth.counts]

    @cached_property
    def wins(self) -> Mapping[str, list[WinCount]]:
        """All pairs of systems that need not be told the task."""
        labels = contestants(self.results)
        return {metric: count_wins(self.results, metric, list(combinations(labels, 2))) for metric in METRICS}


def analyse(records: Iterable[Mapping[str, Any]], reference: str | None = None) -> Analysis:
    """Work out everything that a report of these records shows.

    Args:
        records: of one comparison, finished or not.
        reference: label every system is tested against; by default uniform, or else the base.

    Raises:
        RadarGateError: no cell is finished, cells do not belong together, or ``reference`` is no system.
    """
    results = read_results(records)
    labels = contestants(results)
    reference = reference and shown_label(reference)
    if reference is not None and reference not in labels:
        raise OptionError(f"no finished system {reference!r} to compare with; there are: {', '.join(labels)}.")
    reference = reference or next(
        (
            s.label
            for wanted in ("uniform", "base")
            for s in results.systems.values()
            if s.name == wanted and s.label in labels
        ),
        None,
    )
    ranked = {metric: standings(results, metric) for metric in METRICS}
    leaders = {metric: leader(results, ranked[metric]).label for metric in METRICS}

    def tests(pairs: list[tuple[str, str]]) -> dict[str, list[PairedTest]]:
        return {metric: compare_pairs(results, metric, pairs) for metric in METRICS}

    return Analysis(
        results=results,
        standings=ranked,
        leaders=leaders,
        reference=reference,
        rotation=tests(rotation_pairs(results, "control")),
        against_reference=tests([(label, reference) for label in labels if label != reference] if reference else []),
        against_leader={
            metric: compare_pairs(results, metric, [(best, label) for label in labels if label != best])
            for metric, best in leaders.items()
        },
        worth={metric: task_worth(results, metric) for metric in METRICS},
    )


def contestants(results: Results) -> list[str]:
    """Labels of the systems that need not be told the task."""
    return [s.label for s in results.systems.values() if not s.told]


def rotation_pairs(results: Results, *roles: str) -> list[tuple[str, str]]:
    """Radar with the baseline, with itself where Q is 0, and with each gate of these roles, under each architecture."""
    others = dict.fromkeys(
        [BASELINE, f"{SUBJECT} {UNTURNED}", *(name for role in roles for name in GATES.having(role=role))]
    )
    pairs = []
    for architecture in results.architectures():
        radar = results.systems.get(f"{SUBJECT} ({architecture})")
        found = [results.find(name, architecture) for name in others if name != SUBJECT]
        pairs += [(radar.label, other.label) for other in found if radar and other]
    return pairs
