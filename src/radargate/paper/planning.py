"""The cells of an experiment before any is run: their ids, what they should take, and the record that lists them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radargate.comparison.cells import UNION, UNION_EQUAL_TIME, Cell
from radargate.comparison.told import task_rows
from radargate.comparison.union import union_steps
from radargate.composition.config import gate_class
from radargate.errors import OptionError
from radargate.gates.base import make_options
from radargate.io.progress import duration
from radargate.io.records import make_record
from radargate.paper.design import AXES, SUITE, Design, Experiment
from radargate.paper.expert_store import ExpertStore
from radargate.paper.points import (
    Material,
    Point,
    base_identity,
    cell_conditions,
    cells_of,
    points,
    row_hashes,
    test_rows,
    train_rows,
    union_rows,
)
from radargate.paper.predict import Rates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """One cell at one point; points whose cells are the same share its id."""

    id: str
    cell: Cell
    point: Point
    conditions: dict[str, Any]
    seconds: float


def plan_places(
    experiment: Experiment, design: Design, material: Material, store: ExpertStore, device: str
) -> tuple[list[Place], list[str]]:
    """Every cell at every point, and why some combinations are left out."""
    identities = {base: base_identity(base) for base in design.bases}
    places, left_out = [], list(material.left_out)
    for point in points(design, material):
        read = {task: store.rows_read(task) for task in point.experts}
        steps = union_steps(list(read.values()), design.training) if design.union else None
        train, test, union = train_rows(point, material), test_rows(point, material), union_rows(point, material)
        cells, reasons = cells_of(point, design, steps, task_rows(train, test))
        left_out += reasons
        used = {cell.architecture or "mole" for cell in cells} | {"mole"}
        hashes = {architecture: store.hashes(point.base, point.experts, architecture) for architecture in sorted(used)}
        rates = Rates(point.base, device)
        found, of_union = row_hashes(train, test), row_hashes(union, test)
        if design.union_equal_time:
            gates = [cell for cell in cells if cell.kind == "gate"]
            steps = rates.equal_time_steps(gates, read, point.top_k, train, union, design)
            cells = _with_equal_time(cells, steps, design.seeds)
        for cell in cells:
            kind = gate_class(cell.system) if cell.kind == "gate" else None
            if experiment.probe and kind is not None and kind.routes(make_options(kind, dict(cell.own_options))):
                raise OptionError(
                    f"{cell.label}: {experiment.name} looks at single tokens of each site, and router='text' needs the whole text. "
                    "Leave the router out."
                )
            known = cell_conditions(
                cell,
                point,
                design,
                of_union if cell.system == UNION else found,
                identities[point.base],
                hashes,
                experiment.probe,
                store.dtypes.get(point.base),
            )
            rows = union if cell.system == UNION else train
            seconds = rates.cell(cell, len(point.experts), point.top_k, rows, test, design)
            others = cell.architecture and not set(point.experts) <= set(point.learned)
            if others and gate_class(cell.system).reads_own_rows(cell.own_options):
                known["other_rows"] = of_union[0]
            if point.left_out is not None:
                known["left_out"] = store.hashes(point.base, [point.left_out], "mole")
            places.append(Place(cell.id(known), cell, point, known, seconds))
    return places, list(dict.fromkeys(left_out))


def _with_equal_time(cells: Sequence[Cell], steps: int, seeds: int) -> list[Cell]:
    """The cells, and before those that compose the union LoRA of so many steps."""
    own = [Cell(UNION, "rule", UNION_EQUAL_TIME, seed=seed, options={"steps": steps}) for seed in range(seeds)]
    composed = [cell for cell in cells if cell.architecture is not None]
    return [*(cell for cell in cells if cell.architecture is None), *own, *composed]


def expert_seconds(
    design: Design, material: Material, store: ExpertStore, todo: Sequence[Place], device: str
) -> dict[tuple[str, str, str], float]:
    """(base, bank's kind, task) → predicted seconds of the experts that are still to be trained."""
    found: dict[tuple[str, str, str], float] = {}
    for place in todo:
        point, rates = place.point, Rates(place.point.base, device)
        banks = [(point.experts, "hydra" if place.cell.architecture == "hydra" else "mole")]
        if point.left_out is not None:
            banks.append(((point.left_out,), "mole"))
        for bank, shared in banks:
            kind = f"hydra {','.join(bank)}" if shared == "hydra" else shared  # hydra's experts belong to their bank
            for task in store.missing(point.base, base_identity(point.base), bank, shared):
                if (point.base, kind, task) not in found:
                    found[point.base, kind, task] = rates.expert(material.train[task], design)
    return found


def announce(
    experiment: Experiment,
    preset: str,
    design: Design,
    material: Material,
    places: Sequence[Place],
    todo: Sequence[Place],
    training: Mapping[Any, float],
    left_out: Sequence[str],
) -> None:
    """Say what will be run and how long it should take."""
    cells, tests = len({place.id for place in places}), len(material.test)
    seconds = sum(place.seconds for place in todo) + sum(training.values())
    paper = f" ({experiment.paper})" if experiment.paper else ""
    logger.info(f"{experiment.name}{paper}, preset {preset}: {experiment.question}")
    for reason in left_out:
        logger.info(f"left out: {reason}")
    logger.info(
        f"{cells} cells ({cells - len(todo)} finished before), {len(training)} experts to train, {tests} tasks, "
        f"{sum(map(len, material.test.values()))} {design.scoring.split} rows; predicted {duration(seconds)} ({seconds / 3600:.2f} hours)."
    )
    counts: dict[str, list[float]] = {}
    for place in {place.id: place for place in places}.values():
        counts.setdefault(f"{where(experiment, place.point)}{place.cell.label}", []).append(place.seconds)
    for label, each in counts.items():
        logger.info(f"  {label}{f' × {len(each)} seeds' if len(each) > 1 else ''}: {sum(each) / 3600:.2f} hours")


def where(experiment: Experiment, point: Point) -> str:
    """The point's place on the axis, for a line of progress."""
    if experiment.axis is None:
        return ""
    value = point.at()[experiment.axis]
    return f"{AXES[experiment.axis]} {'all' if value is None else value}, "


def plan_record(
    experiment: Experiment,
    preset: str,
    smoke: bool,
    design: Design,
    places: Sequence[Place],
    material: Material,
    left_out: Sequence[str],
    for_experts: float,
    experts_given: bool,
    dtypes: Mapping[str, str | None],
) -> dict[str, Any]:
    """What was asked for, and where every cell stands: all that a report needs beside the cells' own records."""
    plan = [
        {
            "id": p.id,
            "label": p.cell.label,
            "system": p.cell.system,
            "kind": p.cell.kind,
            "seed": p.cell.seed,
            "architecture": p.cell.architecture,
            "at": {**p.point.at(), "train_rows": sum(map(len, train_rows(p.point, material).values()))},
        }
        for p in places
    ]
    unique = {place.id: place.seconds for place in places}
    metrics = {"cells": len(unique), "predicted_seconds": round(sum(unique.values()) + for_experts)}
    return make_record(
        SUITE,
        experiment.name,
        metrics,
        preset=preset,
        smoke=smoke,
        design=design.flat(),
        question=experiment.question,
        paper=experiment.paper,
        axis=experiment.axis,
        layout=experiment.layout,
        tasks=list(material.test),
        left_out=list(left_out),
        experts_given=experts_given,
        dtypes=dict(dtypes),
        plan=plan,
    )
