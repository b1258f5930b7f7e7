"""``radargate experiment``: one of the paper's experiments as a grid that can stop anywhere and go on."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from radargate.base_models import fingerprint, load_base, load_config, load_tokenizer, resolve_base
from radargate.data.batches import AnswerCollator, encode_rows
from radargate.errors import OptionError, RadarGateError
from radargate.evaluation.run import line
from radargate.experiments.catalog import EXPERIMENTS
from radargate.experiments.compare import finished_cells
from radargate.experiments.design import SUITE, Design, Experiment
from radargate.experiments.expert_store import ExpertStore
from radargate.experiments.planning import Place, announce, expert_seconds, plan_places, plan_record, where
from radargate.experiments.points import (
    Material,
    Point,
    base_identity,
    gate_training,
    load_material,
    points,
    recipe,
    scoring,
    test_rows,
    train_rows,
)
from radargate.experiments.run_cell import RECORDS, Comparison, Grid, run_cell
from radargate.records import append_records, read_records
from radargate.storage import check_writable
from radargate.training.loop import duration

Say = Callable[[str], None]


def run_experiment(name: str, preset: str, data: str, out: str | Path, *, smoke: bool = False, resume: bool = False,
                   dry_run: bool = False, experts: str | Path | None = None, changes: Mapping[str, Any] | None = None,
                   dtype: str | None = None, device: str | None = None, say: Say = lambda line: None) -> Path:  # fmt: skip
    """Run every cell of an experiment that is not finished yet; records are written cell by cell.

    Args:
        name: of the experiment, as in `radargate.experiments.catalog.EXPERIMENTS`.
        preset: ``"cpu"``, ``"gpu"`` or ``"paper"``.
        data: a folder of sources (folders of tasks), or one source.
        out: folder for ``records.jsonl`` and ``experts``.
        smoke: shrink the preset to minutes.
        resume: go on with what is there.
        dry_run: print cells and predicted hours, and stop; no model is loaded.
        experts: a folder of adapter folders named like tasks; by default experts are trained.
        changes: fields of `radargate.experiments.design.Design` that the user set.
        dtype: of the bases.
        device: where to run.
        say: called with each line of progress.

    Returns:
        The records' path.

    Raises:
        UnknownNameError: no such experiment, preset, gate, rule or architecture; the nearest are given.
        OptionError: a combination that cannot work; all before any model is loaded.
        DataError: the data lack a source or tasks.
        AdapterError: a given expert is missing or refused.
        RadarGateError: ``out`` holds another experiment, or this one and ``resume`` is off.
    """
    out, file = Path(out), Path(out) / RECORDS
    experiment: Experiment = EXPERIMENTS.get(name)
    design = experiment.plan(preset, smoke=smoke, **(changes or {}))
    if experts is not None and len(design.bases) > 1:
        raise OptionError(f"--experts belong to one base, but {name} has {len(design.bases)}; add --base NAME.")
    if not dry_run:
        _check_out(file, name, resume)
    material = load_material(data, design)
    store = ExpertStore(out / "experts", Path(experts) if experts else None, recipe(design), material, device)
    store.check(list(dict.fromkeys(task for point in points(design, material) for task in point.experts)))
    places, left_out = plan_places(experiment, design, material, store, device or "cpu")
    done = finished_cells(file)
    todo = list({place.id: place for place in places if place.id not in done}.values())
    training = expert_seconds(design, material, store, places, todo, device or "cpu")
    announce(experiment, preset, design, material, places, todo, training, left_out, say)
    if dry_run:
        return file
    for base in dict.fromkeys(place.point.base for place in todo):
        load_config(resolve_base(base))  # a base that is not there is said before the first is trained on
    check_writable(file, "the records")
    plan = plan_record(experiment, preset, smoke, design, places, material, left_out, sum(training.values()))
    append_records(file, [plan])
    clock = _Clock(sum(place.seconds for place in todo), sum(training.values()))
    for base in dict.fromkeys(place.point.base for place in todo):
        _run_base(base, [p for p in todo if p.point.base == base], experiment, design, material, store, out, dtype, device,
                  clock, say, len({p.id for p in places}) - len(todo))  # fmt: skip
    shutil.rmtree(out / ".work", ignore_errors=True)
    return file


def _run_base(base: str, todo: Sequence[Place], experiment: Experiment, design: Design, material: Material, store: ExpertStore,
              out: Path, dtype: str | None, device: str | None, clock: _Clock, say: Say, before: int) -> None:  # fmt: skip
    """All cells of one base, which is loaded once."""
    say(f"loading {base}")
    model, tokenizer, identity = load_base(base, dtype=dtype, device=device), load_tokenizer(base), base_identity(base)
    printed = fingerprint(model)
    for point in dict.fromkeys(place.point for place in todo):
        mine = [place for place in todo if place.point == point]
        adapters = {architecture: store.folders(base, identity, point.experts, architecture, model, say)
                    for architecture in sorted({place.cell.architecture or "mole" for place in mine} | {"mole"})}  # fmt: skip
        clock.experts_done()
        grid = _grid(point, model, tokenizer, adapters, experiment, design, material, store, out, device)
        for place in mine:
            begun = time.monotonic()
            own = {**place.conditions, "base_fingerprint": printed}
            records = run_cell(place.cell, dataclasses.replace(grid, conditions=own), place.id)
            append_records(out / RECORDS, records)
            mean = next(r for r in records if r.get("task") == "mean")
            clock.cell_done(place.seconds)
            seed = f" seed {place.cell.seed}" if place.cell.seed is not None else ""
            say(f"[{before + clock.cells}] {where(experiment, point)}{place.cell.label}{seed}: {line(mean['metrics'])}  "
                f"({duration(time.monotonic() - begun)}, {duration(clock.left())} left)")  # fmt: skip


def _grid(point: Point, model: Any, tokenizer: Any, adapters: dict[str, dict[str, str]], experiment: Experiment, design: Design,
          material: Material, store: ExpertStore, out: Path, device: str | None) -> Grid:  # fmt: skip
    train, test = train_rows(point, material), test_rows(point, material)
    training = gate_training(point, design, convert=store.given is not None)
    seq2seq = bool(model.config.is_encoder_decoder)
    rows = [row for task_rows in train.values() for row in task_rows]
    encoded = encode_rows(rows, tokenizer, max_length=design.max_length, encoder_decoder=seq2seq).rows
    options = Comparison(training=training, scoring=scoring(design), union_lr=design.expert_lr)
    probe: Any = None
    if experiment.probe:
        module, _, attribute = experiment.probe.partition(":")
        probe = getattr(importlib.import_module(module), attribute)
        if point.left_out is not None:
            wanted = store.folders(
                point.base, base_identity(point.base), [point.left_out], "mole", model, lambda _: None
            )
            adapters = {**adapters, "left out": wanted}
    return Grid(model, tokenizer, adapters, "", None, train, test, encoded,
                AnswerCollator(tokenizer.pad_token_id, seq2seq), options, {}, out / ".work", device, probe)  # fmt: skip


def _check_out(file: Path, name: str, resume: bool) -> None:
    if not file.exists():
        return
    others = {r["case"] for r in read_records(file) if r["suite"] == SUITE} - {name}
    if others:
        raise RadarGateError(
            f"{file.parent} holds the experiment {min(others)}; choose another --out. Its experts serve here too, with "
            f"--experts and a folder in {file.parent / 'experts'}."
        )
    if not resume:
        raise RadarGateError(
            f"{file.parent} already holds this experiment. Use --resume to go on, or choose another --out."
        )


class _Clock:
    """Time left, from predicted seconds and the pace so far."""

    def __init__(self, cells: float, experts: float) -> None:
        self.total, self.done, self.cells = cells + experts, 0.0, 0
        self.experts, self.started = experts, time.monotonic()

    def experts_done(self) -> None:
        """Experts were all trained with the first point, or will be soon."""
        self.done, self.experts = self.done + self.experts, 0.0

    def cell_done(self, seconds: float) -> None:
        """One more cell."""
        self.done, self.cells = self.done + seconds, self.cells + 1

    def left(self) -> float:
        """Seconds that are left."""
        return (time.monotonic() - self.started) / max(self.done, 1e-9) * max(self.total - self.done, 0.0)
