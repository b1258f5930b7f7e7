"""What a comparison says: standings, three families of paired tests, the tasks that count. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from radargate.comparison.grid import METRICS, Grid, read_grid
from radargate.comparison.ranking import (
    Comparison,
    Standing,
    TaskWorth,
    WinCount,
    compare_pairs,
    count_wins,
    leader,
    standings,
    task_worth,
)
from radargate.errors import OptionError

ROTATING = "radar"
# stretch is radar without rotation; each of the others spends radar's parameters, or more freedom, on something else
CONTROLS = ("stretch", "signed", "mlp", "vector", "lora", "multiplicative")
PAPER_GATES = ("stretch", "rotation", "nexus", "tutel")  # beside radar
RIVALS = (*PAPER_GATES, *CONTROLS[1:])


@dataclass(frozen=True)
class Analysis:
    """Everything a report shows, by metric (``"acc"``, ``"nll"``).

    Attributes:
        grid: the finished systems.
        standings: best first.
        leaders: label of the best system that need not be told the task.
        reference: label that every system is tested against, if there is one.
        rotation: radar against stretch and the controls, under each architecture.
        against_reference: every system against ``reference``.
        against_leader: the leader against every other system.
        worth: task by task, whether its own expert beats the base.
    """

    grid: Grid
    standings: Mapping[str, list[Standing]]
    leaders: Mapping[str, str]
    reference: str | None
    rotation: Mapping[str, list[Comparison]]
    against_reference: Mapping[str, list[Comparison]]
    against_leader: Mapping[str, list[Comparison]]
    worth: Mapping[str, list[TaskWorth]]

    def counting(self, metric: str) -> list[str]:
        """The tasks whose own expert beats the base significantly."""
        return [worth.task for worth in self.worth[metric] if worth.counts]

    @cached_property
    def wins(self) -> Mapping[str, list[WinCount]]:
        """All pairs of systems that need not be told the task."""
        labels = contestants(self.grid)
        return {metric: count_wins(self.grid, metric, list(combinations(labels, 2))) for metric in METRICS}


def analyse(records: Iterable[Mapping[str, Any]], reference: str | None = None) -> Analysis:
    """Work out everything that a report of these records shows.

    Args:
        records: of one comparison, finished or not.
        reference: label every system is tested against; by default uniform, or else the base.

    Raises:
        RadarGateError: no cell is finished, cells do not belong together, or ``reference`` is no system.
    """
    grid = read_grid(records)
    labels = contestants(grid)
    if reference is not None and reference not in labels:
        raise OptionError(f"no finished system {reference!r} to compare with; there are: {', '.join(labels)}.")
    reference = reference or next(
        (
            s.label
            for wanted in ("uniform", "base")
            for s in grid.systems.values()
            if s.name == wanted and s.label in labels
        ),
        None,
    )
    ranked = {metric: standings(grid, metric) for metric in METRICS}
    leaders = {metric: leader(grid, ranked[metric]).label for metric in METRICS}

    def tests(pairs: list[tuple[str, str]]) -> dict[str, list[Comparison]]:
        return {metric: compare_pairs(grid, metric, pairs) for metric in METRICS}

    return Analysis(
        grid=grid,
        standings=ranked,
        leaders=leaders,
        reference=reference,
        rotation=tests(rotation_pairs(grid)),
        against_reference=tests([(label, reference) for label in labels if label != reference] if reference else []),
        against_leader={
            metric: compare_pairs(grid, metric, [(best, label) for label in labels if label != best])
            for metric, best in leaders.items()
        },
        worth={metric: task_worth(grid, metric) for metric in METRICS},
    )


def contestants(grid: Grid) -> list[str]:
    """Labels of the systems that need not be told the task."""
    return [s.label for s in grid.systems.values() if s.kind != "oracle"]


def rotation_pairs(grid: Grid, others: Sequence[str] = CONTROLS) -> list[tuple[str, str]]:
    """Radar with each of ``others`` that is in, under each architecture."""
    pairs = []
    for architecture in grid.architectures():
        radar = grid.systems.get(f"{ROTATING} ({architecture})")
        found = [grid.find(name, architecture) for name in others]
        pairs += [(radar.label, control.label) for control in found if radar and control]
    return pairs
