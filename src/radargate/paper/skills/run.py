"""``radargate experiment skills``: a grid on composed skills that can stop anywhere and go on."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from radargate.base_models.loading import base_dtype
from radargate.comparison.finished import finished_cells
from radargate.comparison.run_cell import RECORDS
from radargate.data.builtin.skills import Pair, pair_named, skill_rows
from radargate.errors import BaseModelError, RadarGateError
from radargate.evaluation.run import line
from radargate.io.disk import check_writable
from radargate.io.progress import Progress, duration
from radargate.io.records import append_records, make_record, read_records
from radargate.paper import executors
from radargate.paper.design import SUITE, Design
from radargate.paper.points import base_identity
from radargate.paper.predict import Rates
from radargate.paper.skills.bank import Bank, check_atoms, good_pairs, plain_base
from radargate.paper.skills.design import NAMES, SkillsDesign, plan
from radargate.paper.skills.places import Place, places, record_of
from radargate.paper.skills.shop import Shop

QUESTION = (
    "Where an answer needs two experts at once: which way of using them is best, and does rotation bring synergy?"
)
logger = logging.getLogger(__name__)


def run_skills(
    name: str,
    preset: str,
    out: str | Path,
    *,
    smoke: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    experts: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    slots: int | None = None,
    ray: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> Path:
    """Run every cell that is not finished yet; records are written cell by cell. Takes what `run_experiment` takes.

    Returns:
        The records' path.

    Raises:
        UnknownNameError: no such preset or system; the nearest are given.
        OptionError: a combination that cannot work.
        AdapterError: of given experts one is missing; before any model is loaded.
        RadarGateError: no pair's experts reach the bar on their own rows, with the numbers, before any cell is run; or ``out``
            holds something else, or this and ``resume`` is off.
    """
    out, file = Path(out), Path(out) / RECORDS
    design = plan(name, preset, smoke=smoke, **(changes or {}))
    pairs = [pair_named(pair) for pair in design.pairs]
    if not dry_run:
        _check_out(file, name, resume)
    base = plain_base(design.base)
    dtype = _dtype(base, dtype, device, file)
    bank = Bank(out / "experts", Path(experts) if experts else None, design, dtype, device)
    missing = bank.missing(pairs)
    shop = Shop(bank, base, out, dtype, device)
    todo = _todo(design, bank, base, dtype, device, file)
    training = {one: _expert_seconds(design, *one, device) for one in missing}
    _announce(name, preset, design, todo, training)
    if dry_run:
        return file
    check_writable(file, "the records")
    for stale in out.glob(".work-*"):  # of runs that were killed: only one runs in a folder
        shutil.rmtree(stale, ignore_errors=True)
    with Progress(name, sum(place.seconds for place in todo) + sum(training.values())) as work:
        for (atom, seed), seconds in training.items():
            with work.part(seconds):
                bank.train(shop.open()[0], atom, seed)
        model, tokenizer, _ = shop.open()
        left_out: list[str] = []
        if not smoke:
            pairs, left_out = good_pairs(pairs, check_atoms(bank, pairs, model, tokenizer, file))
            for reason in left_out:
                logger.warning(f"left out: {reason}")
        kept = _kept(design, pairs)
        every = places(
            kept, bank, base_identity(base), dtype, device or "cpu"
        )  # experts are there: hashes of their files
        append_records(file, [_plan_record(name, preset, smoke, kept, every, left_out, experts is not None, dtype)])
        done = finished_cells(file)
        todo = [place for place in every if place.id not in done]
        for number, (place, records) in enumerate(_results(shop, todo, slots, ray, work), len(every) - len(todo) + 1):
            append_records(file, records)
            _log(number, len(every), place, records, work)
    return file


def _results(shop: Shop, todo: Sequence[Place], slots: int | None, ray: str | None, work: Progress) -> Any:
    one, cells = cast(Any, shop), cast(Any, todo)  # to executors a shop is what runs places, of whatever experiment
    if ray is None and (slots or 1) == 1:
        yield from executors.here(one, cells, work)
        return
    side_by_side = (
        executors.in_slots(one, cells, slots or 1) if ray is None else executors.on_ray(one, cells, ray, slots)
    )
    for place, records in side_by_side:
        work.add(place.seconds)
        yield place, records


def _log(number: int, count: int, place: Place, records: Sequence[Mapping[str, Any]], work: Progress) -> None:
    mean = next(r for r in records if r.get("task") == "mean" and r["system"] == place.cell.label)
    seed = f" seed {place.cell.seed}" if place.cell.seed is not None else ""
    rows = "" if place.rows is None else f", {place.rows} rows"
    left = work.left()
    logger.info(
        f"[{number}/{count}] {place.pair.name}{rows}, experts {place.expert_seed}: {place.cell.label}{seed}: {line(mean['metrics'])}"
        f"{'' if left is None else f'  ({duration(left)} left)'}"
    )


def _todo(
    design: SkillsDesign, bank: Bank, base: str, dtype: str | None, device: str | None, file: Path
) -> list[Place]:
    done = finished_cells(file, mend=False)
    return [p for p in places(design, bank, base_identity(base), dtype, device or "cpu") if p.id not in done]


def _kept(design: SkillsDesign, pairs: Sequence[Pair]) -> SkillsDesign:
    return dataclasses.replace(design, pairs=tuple(pair.name for pair in pairs))


def _expert_seconds(design: SkillsDesign, atom: str, seed: int, device: str | None) -> float:
    whole = Design(recipe=design.recipe_of(atom, seed))
    return Rates(design.base, device or "cpu").expert(skill_rows(atom, "train"), whole)


def _dtype(base: str, asked: str | None, device: str | None, file: Path) -> str | None:
    """The base's dtype: a run that goes on keeps what it began with."""
    if asked is not None:
        return asked
    plans = [r for r in read_records(file) if r["suite"] == SUITE] if file.exists() else []
    if plans:
        return cast("str | None", plans[-1]["dtype"])
    with contextlib.suppress(BaseModelError):
        return base_dtype(base, None, device).name
    return None


def _announce(
    name: str, preset: str, design: SkillsDesign, todo: Sequence[Place], training: Mapping[Any, float]
) -> None:
    cells, experts = sum(place.seconds for place in todo), sum(training.values())
    logger.info(f"{name}, preset {preset}: {QUESTION}")
    logger.info(
        f"{len(todo)} cells to run on {len(design.pairs)} pairs, predicted {duration(cells)} ({cells / 3600:.2f} hours); "
        f"{len(training)} experts to train, predicted {duration(experts)}."
    )
    for pair in design.pairs:
        for rows in (*design.rows, None):
            mine = [p for p in todo if p.pair.name == pair and p.rows == rows]
            if mine:
                at = "systems that are not trained" if rows is None else f"{rows} rows"
                logger.info(f"  {pair}, {at}: {len(mine)} cells, {sum(p.seconds for p in mine) / 3600:.2f} hours")


def _plan_record(
    name: str,
    preset: str,
    smoke: bool,
    design: SkillsDesign,
    every: Sequence[Place],
    left_out: Sequence[str],
    given: bool,
    dtype: str | None,
) -> dict[str, Any]:
    return make_record(
        SUITE,
        name,
        {"cells": len(every), "predicted_seconds": round(sum(place.seconds for place in every))},
        preset=preset,
        smoke=smoke,
        design=dataclasses.asdict(design),
        question=QUESTION,
        left_out=list(left_out),
        experts_given=given,
        dtype=dtype,
        plan=[record_of(place) for place in every],
    )


def _check_out(file: Path, name: str, resume: bool) -> None:
    if not file.exists():
        return
    plans = {r["case"] for r in read_records(file) if r["suite"] == SUITE}
    if plans - {name} or not plans <= set(NAMES):
        raise RadarGateError(f"{file.parent} holds the experiment {min(plans - {name})}; choose another `out`.")
    if not resume:
        raise RadarGateError(
            f"{file.parent} already holds this experiment. Use `resume` to go on, or choose another `out`."
        )
