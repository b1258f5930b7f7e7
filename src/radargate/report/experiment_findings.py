"""From the records of an experiment to what its tables need: a grid of systems at every value of the axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from radargate.errors import RadarGateError
from radargate.evaluation.analysis import RIVALS, rotation_pairs
from radargate.evaluation.grid import METRICS, Grid, read_grid
from radargate.evaluation.metrics import paired_difference
from radargate.evaluation.ranking import Comparison, compare_pairs, standings
from radargate.evaluation.resampling import holm
from radargate.experiments.design import AXES, SUITE

Value = Any  # a place on the axis: a number, a name, or None


@dataclass(frozen=True)
class Test:
    """A paired test, and where on the axis it was made."""

    value: Value
    result: Comparison


@dataclass(frozen=True)
class Findings:
    """The finished part of an experiment.

    Attributes:
        request: the record that lists its cells.
        grids: value of the axis → its finished systems; a single None where there is no axis.
        finished: cells that are in.
        planned: all cells.
        cells: id → cell record, of the finished ones.
    """

    request: Mapping[str, Any]
    grids: Mapping[Value, Grid]
    finished: int
    planned: int
    cells: Mapping[str, Mapping[str, Any]]

    @property
    def axis(self) -> str | None:
        """Name of the axis."""
        return self.request["axis"]

    def said(self, value: Value) -> str:
        """A place on the axis, in words; empty where there is no axis."""
        return "" if self.axis is None else f"{AXES[self.axis]} {self.short(value)}"

    @staticmethod
    def short(value: Value) -> str:
        """A place on the axis, for the head of a column."""
        return "all" if value is None else str(value)

    @property
    def experts_given(self) -> bool:
        """Whether the experts were given (``--experts``) instead of trained."""
        if (given := self.request.get("experts_given")) is not None:
            return bool(given)
        options = [cell["options"].get("architecture_options") or {} for cell in self.cells.values()]
        return any(each.get("convert") for each in options)  # records before 2026-11-23 say it so

    def systems(self) -> list[str]:
        """Labels of all finished systems, in the order of the plan."""
        there = {label for grid in self.grids.values() for label in grid.systems}
        return [label for label in dict.fromkeys(place["label"] for place in self.request["plan"]) if label in there]

    def drawn(self, label: str) -> str:
        """A system's name in a figure: without the architecture where there is only one."""
        architectures = {place["architecture"] for place in self.request["plan"]} - {None}
        return label.removesuffix(f" ({min(architectures)})") if len(architectures) == 1 else label

    def probes(self) -> list[dict[str, Any]]:
        """What was found at every trained gate: its label, seed, place on the axis, and the probe's own findings."""
        return [
            {"label": place["label"], "seed": place["seed"], "at": place["at"], **self.cells[place["id"]]["metrics"]["probe"]}
            for place in self.request["plan"]
            if place["id"] in self.cells and self.cells[place["id"]]["metrics"].get("probe")
        ]  # fmt: skip

    @cached_property
    def lead(self) -> dict[str, list[Test]]:
        """metric → the best system against every other, at every value of the axis; Holm's correction takes all of them."""
        found: dict[str, list[Test]] = {}
        for metric in METRICS:
            tests = []
            for value, grid in self.grids.items():
                best, *others = standings(grid, metric)
                pairs = [(best.label, other.label) for other in others]
                tests += [Test(value, test) for test in compare_pairs(grid, metric, pairs)]
            found[metric] = _corrected(tests)
        return found

    @cached_property
    def rotation(self) -> dict[str, list[Test]]:
        """metric → radar against the paper's other gates and each control everywhere; Holm's correction takes all of them."""
        found: dict[str, list[Test]] = {}
        for metric in METRICS:
            tests = [Test(value, test) for value, grid in self.grids.items()
                     for test in compare_pairs(grid, metric, rotation_pairs(grid, RIVALS))]  # fmt: skip
            found[metric] = _corrected(tests)
        return found

    @cached_property
    def change(self) -> dict[str, list[Test]]:
        """metric → for each system, the last value of the axis against the first, over the same rows."""
        found: dict[str, list[Test]] = {metric: [] for metric in METRICS}
        values = list(self.grids)
        if self.axis in (None, "bases", "leave_one_out") or len(values) < 2:
            return found
        first, last = self.grids[values[0]], self.grids[values[-1]]
        for metric in METRICS:
            for label in [n for n in self.systems() if n in first.systems and n in last.systems]:
                if first.systems[label].cells[0]["case"] == last.systems[label].cells[0]["case"]:
                    continue  # one cell that stands everywhere, such as the base
                t = paired_difference(_row_means(last, label, metric), _row_means(first, label, metric))
                ends = [f"{label}, {self.said(value)}" for value in (values[-1], values[0])]
                test = Comparison(metric, ends[0], ends[1], t["difference"], t["low"], t["high"], t["p"], 1.0)
                found[metric].append(Test(None, test))
            found[metric] = _corrected(found[metric])
        return found


def read_findings(records: Sequence[Mapping[str, Any]]) -> Findings:
    """Gather what is finished of the experiment that the records last planned.

    Raises:
        RadarGateError: no experiment is planned there, or no cell is finished.
    """
    plans = [record for record in records if record["suite"] == SUITE]
    if not plans:
        raise RadarGateError("these records hold no experiment; make them with radargate experiment.")
    request = plans[-1]
    cells = {record["case"]: record for record in records if record["suite"] == "cell"}
    by_value: dict[Value, list[str]] = {}
    for place in request["plan"]:
        value = None if request["axis"] is None else place["at"][request["axis"]]
        by_value.setdefault(value, []).append(place["id"])
    grids = {}
    for value, ids in by_value.items():
        wanted = set(ids)
        if wanted & set(cells):
            grids[value] = read_grid([r for r in records if r.get("cell", {}).get("id") in wanted])
    if not grids:
        raise RadarGateError("no cell of this experiment is finished; run it again with --resume.")
    planned = {place["id"] for place in request["plan"]}
    return Findings(
        request, grids, len(planned & set(cells)), len(planned), {i: cells[i] for i in planned & set(cells)}
    )


def _row_means(grid: Grid, label: str, metric: str) -> dict[str, Sequence[float]]:
    """task → the system's value on every row, seeds averaged."""
    return {task: list(grid.systems[label].rows[metric][task].mean(0)) for task in grid.tasks}


def _corrected(tests: Sequence[Test]) -> list[Test]:
    """The same with Holm's correction over all of them."""
    corrected = holm([test.result.p for test in tests])
    return [Test(t.value, dataclasses.replace(t.result, holm=p)) for t, p in zip(tests, corrected, strict=True)]
