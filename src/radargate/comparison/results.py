"""From the records of ``radargate compare`` to systems: cells of one label are seeds of one system. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radargate.errors import RadarGateError
from radargate.evaluation.metrics import row_values

METRICS = ("acc", "nll")
CHRF = "chrf"  # of translations, whose exact match says nothing
ORACLE = "oracle"  # each task by its own expert
UNTURNED = "with Q = 0"  # a gate that was trained to rotate, its rotation switched off
_EXPERT_LABEL = "expert: "
# label in records of before → what it was, as the same name stands for another training now
RENAMED = {"union LoRA": "union LoRA on the gate's rows only"}
_OF_UNTURNED = ("trained_parameters", "top_k")  # all other numbers of a cell are those of the gate that rotates

Scores = dict[str, Mapping[str, Any]]  # task → eval record


@dataclass(frozen=True)
class System:
    """One system with all its seeds.

    Attributes:
        label: its name on tables, without the seed.
        kind: ``"base"``, ``"expert"``, ``"rule"``, ``"gate"``, ``"told"`` (a rule with weights for each task) or ``"oracle"``.
        architecture: of a gate.
        seeds: in ascending order; a system without one has a single None.
        cells: its cell records, in the order of ``seeds``.
        rows: metric → task → values [seeds, rows]; chrF for translations only.
    """

    label: str
    kind: str
    architecture: str | None
    seeds: tuple[int | None, ...]
    cells: tuple[Mapping[str, Any], ...]
    rows: Mapping[str, Mapping[str, np.ndarray]]

    @property
    def told(self) -> bool:
        """Whether it has to be told the task."""
        return self.kind in ("oracle", "told")

    @property
    def name(self) -> str:
        """The gate's or rule's own name, without its architecture."""
        return self.label.removesuffix(f" ({self.architecture})")

    def seed_means(self, metric: str, tasks: Sequence[str]) -> np.ndarray:
        """Mean over tasks of every seed [seeds]."""
        return np.mean([self.rows[metric][task].mean(1) for task in tasks], axis=0)

    def task_mean(self, metric: str, task: str) -> float:
        """Mean over seeds and rows of one task."""
        return float(self.rows[metric][task].mean())

    def measured(self, name: str) -> float | None:
        """A number of the cell records, averaged over the seeds that have it."""
        values = [cell["metrics"][name] for cell in self.cells if cell["metrics"].get(name) is not None]
        return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class Results:
    """The finished part of a comparison.

    Attributes:
        systems: by label, in the order of the records.
        tasks: every finished cell has all of them.
        finished: cells that are in.
        planned: cells of the whole comparison; None where the run has not said.
        incomplete: labels of cells that lack a task, and are left out.
        compare: the record of the whole run, if it is in.
        evals: every eval record used.
    """

    systems: Mapping[str, System]
    tasks: tuple[str, ...]
    finished: int
    planned: int | None
    incomplete: tuple[str, ...]
    compare: Mapping[str, Any] | None
    evals: tuple[Mapping[str, Any], ...]

    @property
    def request(self) -> Mapping[str, Any]:
        """What was asked for; empty where the run has not said."""
        return (self.compare or {}).get("request") or {}

    def tasks_of(self, metric: str) -> tuple[str, ...]:
        """The tasks that a metric says something of: translations count by chrF and NLL, all others by accuracy and NLL."""
        translations = set(next(iter(self.systems.values())).rows[CHRF])
        if metric == CHRF:
            return tuple(task for task in self.tasks if task in translations)
        if metric == "acc" and translations < set(self.tasks):
            return tuple(task for task in self.tasks if task not in translations)
        return self.tasks

    def find(self, name: str, architecture: str | None) -> System | None:
        """The gate of this name under an architecture, or the one that has none."""
        gates = {(s.name, s.architecture): s for s in self.systems.values() if s.kind == "gate"}
        return gates.get((name, architecture)) or gates.get((name, None))

    def architectures(self) -> list[str]:
        """Those of the gates, in the order of the records."""
        return list(dict.fromkeys(s.architecture for s in self.systems.values() if s.architecture))


def read_results(records: Iterable[Mapping[str, Any]]) -> Results:
    """Gather the finished cells of the comparison that was asked for last; of two records of one thing the later counts.

    Raises:
        RadarGateError: no cell is finished, or a task was scored on different rows in two cells.
    """
    cells: dict[str, Mapping[str, Any]] = {}
    found: dict[str, dict[str, Scores]] = {}  # cell's id → label → its scores
    compare = None
    for record in records:
        if record["suite"] == "compare":
            compare = record
        elif record["suite"] == "cell":
            cells[record["cell"]["id"]] = record
        elif record["suite"] == "eval" and "cell" in record and record["task"] != "mean":
            of_cell = found.setdefault(record["cell"]["id"], {})
            of_cell.setdefault(record["cell"]["label"], {})[record["task"]] = record
    plan = (compare or {}).get("request", {}).get("plan")
    if plan is not None:  # a folder may hold cells of other settings too
        cells = {id: cells[id] for id in plan if id in cells}
    scores = {id: found.get(id, {}).pop(cell["cell"]["label"], {}) for id, cell in cells.items()}
    tasks = tuple(dict.fromkeys(task for cell in cells for task in scores[cell]))
    whole = {id: cell for id, cell in cells.items() if tasks and set(tasks) <= set(scores[id])}
    if not whole:
        raise RadarGateError("no finished cell among the records: let radargate compare finish one, then read again.")
    more = {id: (label, s) for id in whole for label, s in found.get(id, {}).items() if set(tasks) <= set(s)}
    _check_same_rows(tasks, [*(scores[id] for id in whole), *(s for _, s in more.values())])
    # records from before runs said what they planned: a system and seed stands for its latest cell
    latest = {(shown_label(cell["cell"]["label"]), cell["cell"]["seed"]): cell for cell in whole.values()}
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for (label, _), cell in latest.items():
        by_label.setdefault(label, []).append(cell)
    systems = {}
    for label, seeds in by_label.items():
        systems[label] = _system(seeds, scores, tasks)
        if others := [_unturned(cell, more[id][0]) for cell in seeds if (id := cell["cell"]["id"]) in more]:
            second = _system(others, {id: s for id, (_, s) in more.items()}, tasks)
            systems[second.label] = second
    own = _oracle(systems, tasks)
    return Results(
        systems={**systems, **({ORACLE: own} if own else {})},
        tasks=tasks,
        finished=len(latest),
        planned=compare["metrics"].get("cells") if compare else None,
        incomplete=tuple(shown_label(cell["cell"]["label"]) for id, cell in cells.items() if id not in whole),
        compare=compare,
        evals=tuple(scores[cell["cell"]["id"]][task] for cell in latest.values() for task in tasks),
    )


def shown_label(label: str) -> str:
    """What reports call the system that records have under a label."""
    return RENAMED.get(label, label)


def unturned_label(label: str, architecture: str) -> str:
    """What a gate is called once its rotation is switched off."""
    return f"{label.removesuffix(f' ({architecture})')} {UNTURNED} ({architecture})"


def _unturned(cell: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    """A cell's record as that of the same gate with Q = 0."""
    metrics = {name: cell["metrics"].get(name) for name in _OF_UNTURNED}
    return {**cell, "cell": {**cell["cell"], "label": label}, "metrics": metrics, "note": None}


def _system(cells: list[Mapping[str, Any]], scores: Mapping[str, Scores], tasks: Sequence[str]) -> System:
    cells = sorted(cells, key=lambda record: -1 if record["cell"]["seed"] is None else record["cell"]["seed"])
    facts = cells[0]["cell"]
    rows = {
        metric: {task: np.array([row_values(scores[c["cell"]["id"]][task], metric) for c in cells]) for task in tasks}
        for metric in METRICS
    }
    rows[CHRF] = {
        task: np.array([row_values(scores[c["cell"]["id"]][task], CHRF) for c in cells])
        for task in tasks
        if all(None not in scores[c["cell"]["id"]][task]["rows"].get(CHRF, [None]) for c in cells)
    }
    seeds = tuple(c["cell"]["seed"] for c in cells)
    return System(shown_label(facts["label"]), facts["kind"], facts["architecture"], seeds, tuple(cells), rows)


def _oracle(systems: Mapping[str, System], tasks: Sequence[str]) -> System | None:
    """Each task by the adapter of its own name, where every task has one."""
    experts = {s.label.removeprefix(_EXPERT_LABEL): s for s in systems.values() if s.kind == "expert"}
    if not set(tasks) <= set(experts):
        return None
    metrics = next(iter(experts.values())).rows
    rows = {metric: {task: experts[task].rows[metric][task][:1] for task in metrics[metric]} for metric in metrics}
    return System(ORACLE, "oracle", None, (None,), (), rows)


def _check_same_rows(tasks: Sequence[str], cells: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    for task in tasks:
        for cell in cells[1:]:
            labels = cells[0][task]["cell"]["label"], cell[task]["cell"]["label"]
            if cell[task]["rows"]["id"] != cells[0][task]["rows"]["id"]:
                raise RadarGateError(
                    f"task {task} was scored on different rows for {labels[0]} and {labels[1]}, which cannot be compared; "
                    "keep runs with other rows or limits in other folders."
                )
            if _judged_by(cell[task]) != _judged_by(cells[0][task]):
                raise RadarGateError(
                    f"task {task} was judged by {_judged_by(cells[0][task])} for {labels[0]} and by {_judged_by(cell[task])} for "
                    f"{labels[1]}, which cannot be compared; run both again in one folder."
                )


def _judged_by(record: Mapping[str, Any]) -> str:
    """What gave the accuracies of a record; those from before records said so were compared after strip and lower-case."""
    return "math" if "math" in (record.get("metric") or {}) else "exact match"
