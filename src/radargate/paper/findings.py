"""From the records of an experiment to what its tables need: a results of systems at every value of the axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from radargate.comparison.analysis import SUBJECT, rotation_pairs
from radargate.comparison.ranking import PairedTest, compare_pairs, leader, standings, task_worth
from radargate.comparison.results import METRICS, ORACLE, Results, read_results, shown_label, unturned_label
from radargate.errors import RadarGateError
from radargate.evaluation.metrics import paired_difference
from radargate.evaluation.resampling import all_flips_p, holm, t_test_p
from radargate.paper.design import AXES, SUITE
from radargate.training.options import rates_in_words

Value = Any  # a place on the axis: a number, a name, or None
ByTask = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Findings:
    """The finished part of an experiment.

    Attributes:
        request: the record that lists its cells.
        by_value: value of the axis → its finished systems, each task's own expert as one of them; a single None where there is
            no axis.
        finished: cells that are in.
        planned: all cells.
        cells: id → cell record, of the finished ones.
    """

    request: Mapping[str, Any]
    by_value: Mapping[Value, Results]
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
        """Labels of all finished systems, in the order of the plan; each task's own expert last."""
        there = {label for results in self.by_value.values() for label in results.systems}
        labels = {shown_label(place["label"]): place["architecture"] for place in self.request["plan"]}
        planned = [name for label, a in labels.items() for name in (label, unturned_label(label, a))] + [ORACLE]
        return [label for label in planned if label in there]

    @property
    def learning_rates(self) -> str:
        """Learning rates, of rotation in brackets, of the gates whose names say nothing else; empty where nothing was trained."""
        own = {text.partition(":")[0] for text in self.request["design"].get("rates", ())}
        plain = [
            cell["options"]
            for cell in self.cells.values()
            if cell["cell"]["kind"] == "gate"
            and "lr=" not in cell["cell"]["label"]
            and cell["cell"]["system"] not in own
        ]
        return " or ".join(sorted(set(map(rates_in_words, plain))))

    @property
    def commits(self) -> int:
        """How many versions of the code ran its cells."""
        return len({cell.get("commit") for cell in self.cells.values()})

    def radar(self, results: Results) -> str | None:
        """Label of radar in a results, under the first architecture that has it."""
        return next((label for label, s in results.systems.items() if s.kind == "gate" and s.name == SUBJECT), None)

    def counting(self, value: Value, metric: str) -> list[str] | None:
        """The tasks whose own expert beats the base; None where the experts were not scored alone."""
        worth = task_worth(self.by_value[value], metric)
        return [each.task for each in worth if each.counts] if worth else None

    def drawn(self, label: str) -> str:
        """A system's name in a figure: without the architecture where there is only one."""
        architectures = {place["architecture"] for place in self.request["plan"]} - {None}
        return label.removesuffix(f" ({min(architectures)})") if len(architectures) == 1 else label

    def probes(self) -> list[dict[str, Any]]:
        """What was found at every trained gate: its label, seed, place on the axis, and the probe's own findings."""
        return [
            {
                "label": place["label"],
                "seed": place["seed"],
                "at": place["at"],
                **self.cells[place["id"]]["metrics"]["probe"],
            }
            for place in self.request["plan"]
            if place["id"] in self.cells and self.cells[place["id"]]["metrics"].get("probe")
        ]

    @cached_property
    def lead(self) -> dict[str, list[PairedTest]]:
        """metric → the best system against every other, at every value of the axis; Holm's correction takes all of them."""

        def tests(value: Value, results: Results, metric: str) -> list[PairedTest]:
            ranked = standings(results, metric)
            best = leader(results, ranked).label
            others = [s.label for s in ranked if s.label != best and not results.systems[s.label].told]
            return compare_pairs(results, metric, [(best, label) for label in others])

        return self._everywhere(tests)

    @cached_property
    def rotation(self) -> dict[str, list[PairedTest]]:
        """metric → radar against the paper's other gates and each control everywhere; Holm's correction takes all of them."""
        return self._everywhere(
            lambda value, results, metric: compare_pairs(results, metric, rotation_pairs(results, "paper", "control"))
        )

    @cached_property
    def where_it_counts(self) -> dict[str, list[PairedTest]]:
        """The same as `rotation`, over the tasks that count; empty where all of them do, or none."""

        def tests(value: Value, results: Results, metric: str) -> list[PairedTest]:
            tasks = self.counting(value, metric)
            some = tasks and len(tasks) < len(results.tasks_of(metric))
            return compare_pairs(results, metric, rotation_pairs(results, "paper", "control"), tasks) if some else []

        return self._everywhere(tests)

    def _everywhere(self, tests: Callable[[Value, Results, str], list[PairedTest]]) -> dict[str, list[PairedTest]]:
        """metric → tests at every value of the axis; Holm's correction takes all of them."""
        return {
            metric: _corrected(
                [
                    dataclasses.replace(test, at=value)
                    for value, results in self.by_value.items()
                    for test in tests(value, results, metric)
                ]
            )
            for metric in METRICS
        }

    @cached_property
    def change(self) -> dict[str, list[PairedTest]]:
        """metric → for each system, the last value of the axis against the first, over the same rows."""
        if (ends := self._ends()) is None:
            return {metric: [] for metric in METRICS}
        first, last = (self.by_value[value] for value in ends)
        found = {}
        for metric in METRICS:
            tests = []
            for label in self._changing():
                new, old = (f"{label}, {self.said(value)}" for value in reversed(ends))
                tests.append(_paired(metric, new, old, _rows(last, label, metric), _rows(first, label, metric)))
            found[metric] = _corrected(tests)
        return found

    @cached_property
    def resists(self) -> dict[str, list[PairedTest]]:
        """metric → what the way along the axis does to radar, less what it does to every other system, over the same rows."""
        ends, radar = self._ends(), self.radar(next(iter(self.by_value.values())))
        if ends is None or radar is None or radar not in self._changing():
            return {metric: [] for metric in METRICS}
        found = {}
        for metric in METRICS:
            changes = {label: self._row_changes(ends, label, metric) for label in self._changing()}
            found[metric] = _corrected(
                [
                    _paired(metric, radar, label, changes[radar], rows)
                    for label, rows in changes.items()
                    if label != radar
                ]
            )
        return found

    def _ends(self) -> tuple[Value, Value] | None:
        """The first and the last value of an axis that has an order."""
        values = list(self.by_value)
        return None if self.axis in (None, "bases", "leave_one_out") or len(values) < 2 else (values[0], values[-1])

    def _changing(self) -> list[str]:
        """Systems with cells of their own at both ends; the base, has one that stands everywhere."""
        ends = self._ends()
        assert ends is not None
        first, last = (self.by_value[value].systems for value in ends)
        both = [label for label in self.systems() if label != ORACLE and label in first and label in last]
        return [label for label in both if first[label].cells[0]["case"] != last[label].cells[0]["case"]]

    def _row_changes(self, ends: tuple[Value, Value], label: str, metric: str) -> ByTask:
        first, last = (_rows(self.by_value[value], label, metric) for value in ends)
        return _less(last, first)


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
    ids_at: dict[Value, list[str]] = {}
    for place in request["plan"]:
        value = None if request["axis"] is None else place["at"][request["axis"]]
        ids_at.setdefault(value, []).append(place["id"])
    by_value = {}
    for value, ids in ids_at.items():
        wanted = set(ids)
        if wanted & set(cells):
            results = read_results([r for r in records if r.get("cell", {}).get("id") in wanted])
            systems = {label: s for label, s in results.systems.items() if s.kind != "expert"}
            if set(systems) - {ORACLE}:
                by_value[value] = dataclasses.replace(results, systems=systems)
    if not by_value:
        raise RadarGateError("no cell of this experiment is finished; run it again with `resume`.")
    planned = {place["id"] for place in request["plan"]}
    return Findings(
        request, by_value, len(planned & set(cells)), len(planned), {i: cells[i] for i in planned & set(cells)}
    )


def _rows(results: Results, label: str, metric: str) -> ByTask:
    """task → the system's values [seeds, rows]."""
    return {task: results.systems[label].rows[metric][task] for task in results.tasks_of(metric)}


def _less(these: ByTask, those: ByTask) -> ByTask:
    """task → differences [seeds, rows]; of means over seeds where the two have not as many, as in an unfinished run."""
    found = {}
    for task, rows in these.items():
        others = those[task]
        same = len(rows) == len(others) or 1 in (len(rows), len(others))
        found[task] = rows - others if same else (rows.mean(0) - others.mean(0))[None]
    return found


def _paired(metric: str, first: str, second: str, these: ByTask, those: ByTask) -> PairedTest:
    """One test over the same rows, not yet corrected."""
    by_task = list(_less(these, those).values())
    seeds = np.mean([rows.mean(1) for rows in by_task], axis=0)
    t = paired_difference(
        {task: rows.mean(0) for task, rows in these.items()}, {task: rows.mean(0) for task, rows in those.items()}
    )
    p_tasks = all_flips_p([float(rows.mean()) for rows in by_task])
    return PairedTest(
        metric, first, second, t["difference"], t["low"], t["high"], t["p"], 1.0, t_test_p(seeds), p_tasks, len(seeds)
    )


def _corrected(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """The same with Holm's correction over all of them."""
    corrected = holm([test.p for test in tests])
    return [dataclasses.replace(test, holm=p) for test, p in zip(tests, corrected, strict=True)]
