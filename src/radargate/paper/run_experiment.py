"""``radargate experiment``: one of the paper's experiments as a grid that can stop anywhere and go on."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radargate.base_models.loading import base_dtype, load_config, resolve_base
from radargate.comparison.finished import finished_cells, finished_elsewhere
from radargate.comparison.run_cell import RECORDS
from radargate.errors import BaseModelError, OptionError, RadarGateError
from radargate.evaluation.run import line
from radargate.io.disk import check_writable
from radargate.io.progress import Progress, duration
from radargate.io.records import append_records, read_records
from radargate.paper import executors
from radargate.paper.catalog import EXPERIMENTS
from radargate.paper.design import SUITE, Experiment
from radargate.paper.executors import Results
from radargate.paper.expert_store import ExpertStore
from radargate.paper.planning import Place, announce, expert_seconds, plan_places, plan_record, where
from radargate.paper.points import load_material, points
from radargate.paper.workshop import Workshop

logger = logging.getLogger(__name__)


def run_experiment(
    name: str,
    preset: str,
    data: str,
    out: str | Path,
    *,
    smoke: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    experts: str | Path | None = None,
    reuse: Sequence[str | Path] = (),
    changes: Mapping[str, Any] | None = None,
    slots: int | None = None,
    ray: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> Path:
    """Run every cell of an experiment that is not finished yet; records are written cell by cell.

    Args:
        name: of the experiment, as in `radargate.paper.catalog.EXPERIMENTS`.
        preset: ``"cpu"``, ``"gpu"`` or ``"paper"``.
        data: a folder of sources (folders of tasks), or one source.
        out: folder for ``records.jsonl`` and ``experts``.
        smoke: shrink the preset to minutes.
        resume: go on with what is there.
        dry_run: print cells and predicted hours, and stop; no model is loaded.
        experts: a folder of adapter folders named like tasks; by default experts are trained.
        reuse: folders of other experiments; cells that are these ones' too are taken over instead of run again.
        changes: what the user set, as `radargate.paper.design.Experiment.plan` takes it.
        slots: processes of this machine that run cells side by side; with ``ray``, workers (default: one a core or GPU).
        ray: address of a Ray cluster to run cells on, or ``"local"``.
        dtype: of the bases; None goes on with what the folder's run began with, or follows the rule of `load_base`.
        device: where to run.

    Returns:
        The records' path.

    Raises:
        UnknownNameError: no such experiment, preset, gate, rule or architecture; the nearest are given.
        OptionError: a combination that cannot work; all before any model is loaded.
        DataError: the data lack a source or tasks, or a folder of ``reuse`` has no records.
        AdapterError: a given expert is missing or refused.
        RadarGateError: ``out`` holds another experiment, or this one and ``resume`` is off.
    """
    out, file = Path(out), Path(out) / RECORDS
    experiment: Experiment = EXPERIMENTS.get(name)
    design = experiment.plan(preset, smoke=smoke, **(changes or {}))
    if experts is not None and len(design.bases) > 1:
        raise OptionError(f"`experts` belong to one base, but {name} has {len(design.bases)}; name one with `bases`.")
    if not dry_run:
        _check_out(file, name, resume)
    material = load_material(data, design)
    dtypes = _dtypes(design.bases, dtype, device, file)
    store = ExpertStore(out / "experts", Path(experts) if experts else None, design.recipe, material, device, dtypes)
    store.check(list(dict.fromkeys(task for point in points(design, material) for task in point.experts)))
    places, left_out = plan_places(experiment, design, material, store, device or "cpu")
    done = finished_cells(file, mend=not dry_run)  # a dry run may look at what another run writes just now
    others = finished_elsewhere(reuse, {place.id for place in places} - done)
    done |= set(others)
    todo = list({place.id: place for place in places if place.id not in done}.values())
    training = expert_seconds(design, material, store, todo, device or "cpu")
    announce(experiment, preset, design, material, places, todo, training, left_out)
    if dry_run:
        return file
    for base in dict.fromkeys(place.point.base for place in todo):
        load_config(resolve_base(base))  # a base that is not there is said before the first is trained on
    check_writable(file, "the records")
    for stale in out.glob(".work-*"):  # of runs that were killed: only one runs in a folder
        shutil.rmtree(stale, ignore_errors=True)
    plan = plan_record(
        experiment,
        preset,
        smoke,
        design,
        places,
        material,
        left_out,
        sum(training.values()),
        experts is not None,
        dtypes,
    )
    append_records(file, [plan, *(record for records in others.values() for record in records)])
    before = len({place.id for place in places}) - len(todo)
    shop = Workshop(experiment, design, material, store, out, device)
    with Progress(experiment.name, sum(place.seconds for place in todo) + sum(training.values())) as work:
        for base in dict.fromkeys(place.point.base for place in todo):
            mine = [place for place in todo if place.point.base == base]
            with work.part(sum(seconds for (of, _, _), seconds in training.items() if of == base)):
                shop.prepare(mine)
            for number, (place, records) in enumerate(_results(shop, mine, slots, ray, work), before + 1):
                append_records(file, records)
                mean = next(r for r in records if r.get("task") == "mean")
                seed = f" seed {place.cell.seed}" if place.cell.seed is not None else ""
                left = work.left()
                logger.info(
                    f"[{number}] {where(experiment, place.point)}{place.cell.label}{seed}: {line(mean['metrics'])}"
                    f"{'' if left is None else f'  ({duration(left)} left)'}"
                )
            before += len(mine)
    return file


def _dtypes(bases: Sequence[str], asked: str | None, device: str | None, file: Path) -> dict[str, str | None]:
    """Base → dtype, None for the checkpoint's own: a run that goes on keeps what it began with, on any machine."""
    if asked is not None:
        return dict.fromkeys(bases, asked)
    plans = [r for r in read_records(file) if r["suite"] == SUITE] if file.exists() else []
    begun = plans[-1].get("dtypes", dict.fromkeys(bases)) if plans else {}
    found: dict[str, str | None] = {}
    for base in bases:
        found[base] = begun.get(base)
        if base not in begun:
            with contextlib.suppress(BaseModelError):  # a dry run may plan for a base that cannot be reached from here
                choice = base_dtype(base, None, device)
                found[base] = None if choice.own else choice.name
    return found


def _results(shop: Workshop, places: Sequence[Place], slots: int | None, ray: str | None, work: Progress) -> Results:
    """Places and their records as they are finished, each reported to ``work``."""
    if ray is None and (slots or 1) == 1:
        yield from executors.here(shop, places, work)
        return
    side_by_side = (
        executors.in_slots(shop, places, slots or 1) if ray is None else executors.on_ray(shop, places, ray, slots)
    )
    for place, records in side_by_side:
        work.add(place.seconds)
        yield place, records


def _check_out(file: Path, name: str, resume: bool) -> None:
    if not file.exists():
        return
    records = read_records(file)
    plans = {r["case"] for r in records if r["suite"] == SUITE}
    if records and not plans:
        raise RadarGateError(f"{file.parent} holds records of another command; choose another `out`.")
    others = plans - {name}
    if others:
        raise RadarGateError(
            f"{file.parent} holds the experiment {min(others)}; choose another `out`. Its experts serve here too: give "
            f"`experts` a folder in {file.parent / 'experts'}."
        )
    if not resume:
        raise RadarGateError(
            f"{file.parent} already holds this experiment. Use `resume` to go on, or choose another `out`."
        )
