"""The contrast that was written down before test rows were looked at: radar less each of six, over units of seeds. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radargate.evaluation.metrics import row_values
from radargate.evaluation.resampling import all_flips_p, holm
from radargate.paper.design import SUITE
from radargate.paper.skills.design import CONTRAST, CONTRAST_ROWS

SUBJECT = CONTRAST[0]
LEVEL = 0.05


@dataclass(frozen=True)
class Result:
    """One finished cell.

    Attributes:
        label: the system, as records name it.
        pair: of atomic skills.
        rows: composed training rows; None where nothing is trained.
        expert_seed: of the experts.
        seed: of what is trained on top.
        tasks: composed task → its eval record.
        cell: the cell's own record.
    """

    label: str
    pair: str
    rows: int | None
    expert_seed: int
    seed: int | None
    tasks: Mapping[str, Mapping[str, Any]]
    cell: Mapping[str, Any]

    def mean(self, metric: str, tasks: Iterable[str] | None = None) -> float:
        """Mean over rows, then over tasks: ``"acc"`` is exact match."""
        chosen = self.tasks if tasks is None else tasks
        return float(np.mean([np.mean(row_values(self.tasks[task], metric)) for task in chosen]))


def read_cells(records: Sequence[Mapping[str, Any]]) -> list[Result]:
    """The finished cells of all parts that were planned in one folder; a rotating gate with Q = 0 is one of its own."""
    planned = planned_cells(records)
    cells = {r["case"]: r for r in records if r["suite"] == "cell" and r["case"] in planned}
    evals: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for r in records:
        if r["suite"] == "eval" and r["task"] != "mean" and r["cell"]["id"] in cells:
            evals.setdefault((r["cell"]["id"], r["system"]), {})[r["task"]] = r
    found = []
    for (cell_id, label), tasks in evals.items():
        if label.endswith("first pass"):
            continue
        cell = cells[cell_id]
        at = cell["at"]
        found.append(Result(label, at["pair"], at["rows"], at["expert_seed"], cell["cell"]["seed"], tasks, cell))
    return found


def planned_cells(records: Sequence[Mapping[str, Any]]) -> set[str]:
    """Ids of the cells that any run into this folder planned: a grid may be run in parts."""
    return {place["id"] for r in records if r["suite"] == SUITE for place in r["plan"]}


@dataclass(frozen=True)
class Difference:
    """Radar less another system.

    Attributes:
        other: the system.
        units: (expert seed, seed) → difference of the means over tasks.
        tasks: composed task → difference, averaged over units.
        p: exact two-sided p of the units' mean under all flips of signs; None with fewer than two units.
        corrected: the same after Holm's correction over the others.
    """

    other: str
    units: Mapping[tuple[int, int], float]
    tasks: Mapping[str, float]
    p: float | None
    corrected: float | None

    @property
    def mean(self) -> float:
        """Over units."""
        return float(np.mean(list(self.units.values())))

    @property
    def better(self) -> bool:
        """Whether radar is significantly better than this one."""
        return self.mean > 0 and self.corrected is not None and self.corrected < LEVEL


def contrast(cells: Sequence[Result], metric: str = "acc") -> list[Difference]:
    """Radar less each of the six others at the contrast's rows, signed first; over the units that have both on the same pairs.

    A unit is an expert seed with a seed of what is trained on top. Its value is the mean over all composed tasks that are in
    for that unit; only pairs that every unit has count where there are several units.
    """
    table: dict[str, dict[tuple[int, int], dict[str, float]]] = {name: {} for name in CONTRAST}
    for cell in cells:
        if cell.label in table and cell.rows == CONTRAST_ROWS and cell.seed is not None:
            own = table[cell.label].setdefault((cell.expert_seed, cell.seed), {})
            own.update({task: float(np.mean(row_values(r, metric))) for task, r in cell.tasks.items()})
    found = [_difference(table[SUBJECT], table[name], name) for name in CONTRAST[1:]]
    found = [one for one in found if one is not None]
    measured = [one for one in found if one and one.p is not None]
    corrected = dict(zip([d.other for d in measured], holm([d.p or 0.0 for d in measured]), strict=True))
    return [Difference(d.other, d.units, d.tasks, d.p, corrected.get(d.other)) for d in found if d]


def _difference(
    radar: Mapping[tuple[int, int], Mapping[str, float]],
    other: Mapping[tuple[int, int], Mapping[str, float]],
    name: str,
) -> Difference | None:
    units = sorted(set(radar) & set(other))
    if not units:
        return None
    tasks = sorted(set.intersection(*({*radar[u]} & {*other[u]} for u in units)))
    if not tasks:
        return None
    by_unit = {u: float(np.mean([radar[u][t] - other[u][t] for t in tasks])) for u in units}
    by_task = {t: float(np.mean([radar[u][t] - other[u][t] for u in units])) for t in tasks}
    p = all_flips_p(list(by_unit.values())) if len(units) > 1 else None
    return Difference(name, by_unit, by_task, p, None)


def verdict(differences: Sequence[Difference]) -> str:
    """What the contrast says, in a sentence."""
    units, family = min((len(d.units) for d in differences), default=0), len(CONTRAST) - 1
    if len(differences) < family or family * 2 / 2**units >= LEVEL:
        needed = next(n for n in range(1, 99) if family * 2 / 2**n < LEVEL)
        return (
            f"No claim: {units} unit{'s' * (units != 1)} of seeds {'is' if units == 1 else 'are'} in, and with fewer than {needed} no "
            "difference can be significant after Holm's correction (nine are planned)."
        )
    if all(d.better for d in differences):
        return f"Rotation brings synergy: radar is significantly better than all six, over {units} units of seeds."
    losing = ", ".join(d.other for d in differences if not d.better)
    return f"Rotation brings no synergy that shows: over {units} units of seeds radar is not significantly better than {losing}."
