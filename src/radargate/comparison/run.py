"""``radargate compare``: every way of combining the same adapters, on the same rows, cell by cell."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radargate.architectures import ARCHITECTURES
from radargate.base_models.dtype import CHECKPOINT
from radargate.base_models.loading import base_dtype, fingerprint, load_tokenizer
from radargate.comparison.cells import UNION, Cell, all_cells
from radargate.comparison.finished import finished_cells
from radargate.comparison.forecast import Forecast
from radargate.comparison.grid import Grid, grid_conditions
from radargate.comparison.options import Comparison
from radargate.comparison.run_cell import RECORDS, run_cell
from radargate.comparison.told import task_rows
from radargate.comparison.union import steps_of_union
from radargate.composition.composing import load_for
from radargate.composition.config import check_top_k
from radargate.data.rows import Row
from radargate.data.sources import load_rows
from radargate.errors import AdapterError, RadarGateError
from radargate.evaluation.answers import check_metrics
from radargate.evaluation.run import line
from radargate.experts.adapters import read_adapter
from radargate.experts.bank import load_bank
from radargate.gates.base import make_options
from radargate.io.progress import Progress, duration
from radargate.io.records import append_records, make_record, read_records
from radargate.training.encoding import encode_for
from radargate.training.options import GateTraining

logger = logging.getLogger(__name__)


def compare(
    base: str,
    adapters: Mapping[str, str],
    data: str,
    out: str | Path,
    options: Comparison,
    *,
    experts: Mapping[str, Mapping[str, str]] | None = None,
    tasks: list[str] | None = None,
    resume: bool = False,
    dry_run: bool = False,
    dtype: str | None = None,
    device: str | None = None,
) -> Path:
    """Run every cell that is not finished yet; records are written cell by cell, so that any stop loses one cell at most.

    Args:
        base: base model name; it is loaded once.
        adapters: name → folder, used under every architecture that has none of its own.
        data: where the rows are (splits ``train`` and ``test``).
        out: folder for ``records.jsonl``.
        options: what is compared.
        experts: architecture → its own adapters (hydra needs such that share A).
        tasks: only these.
        resume: go on with what is there.
        dry_run: print the cells and predicted hours, and stop.
        dtype: of the base; None goes on with what the folder's run began with, or follows the rule of `load_base`.
        device: where to run.

    Returns:
        The records' path.

    Raises:
        UnknownNameError: a gate, rule or architecture is unknown.
        OptionError: something that cannot work; all before the model is loaded.
        AdapterError: an adapter is refused, or no two have a site in common.
        RadarGateError: ``out`` holds records and ``resume`` is off.
    """
    out, file = Path(out), Path(out) / RECORDS
    own = {name: dict(adapters) for name in ("mole", "hydra", "omoe")}
    own.update({name: dict(folders) for name, folders in (experts or {}).items()})
    training = options.training.resolved()
    train, test = load_rows(data, "train", tasks), load_rows(data, "test", tasks, options.scoring.limit)
    check_metrics(row for rows in test.values() for row in rows)
    union_steps = steps_of_union(adapters, training) if options.union_steps is None else options.union_steps
    cells, left_out = all_cells(
        list(adapters),
        gates=options.gates,
        rules=options.rules,
        architectures=options.architectures,
        seeds=options.seeds,
        tasks=train,
        union_steps=union_steps,
        task_rows=task_rows(train, test),
    )
    check_top_k(training.top_k, len(adapters))
    used = {cell.architecture for cell in cells if cell.architecture} | {"mole"}
    for architecture in sorted(used):
        _check_adapters(own[architecture], architecture)
    if file.exists() and not resume and not dry_run:
        raise RadarGateError(
            f"{out} already holds a comparison. Use `resume` to go on with it, or choose another `out`."
        )
    own = {architecture: own[architecture] for architecture in sorted(used)}
    dtype = dtype or _dtype(base, device, file)
    grid = _open(base, own, train, test, options, training, out, dtype, device)
    finished, ids = finished_cells(file, mend=not dry_run), [cell.id(grid.conditions) for cell in cells]
    todo = [cell for cell, cell_id in zip(cells, ids, strict=True) if cell_id not in finished]
    for reason in dict.fromkeys(left_out):
        logger.info(f"left out: {reason}")
    if searching := [c.label for c in cells if c.kind == "rule" and c.trained and c.system != UNION]:
        task = next(task for task in test if task not in train)
        logger.info(f"{searching[0]} searches its weights once, on the rows of all tasks: {task} has no training rows.")
    forecast = Forecast.measure(grid.model, own["mole"], grid.encoded, test, grid.tokenizer, training, device)
    expected = sum(forecast.seconds(cell, training, test) for cell in todo)
    logger.info(
        f"{len(cells)} cells ({len(cells) - len(todo)} finished before), {len(test)} tasks, "
        f"{sum(map(len, test.values()))} test rows; predicted {duration(expected)} ({expected / 3600:.2f} hours)."
    )
    for label, count in Counter(cell.label for cell in cells).items():
        logger.info(f"  {label}{f' × {count} seeds' if count > 1 else ''}")
    if dry_run:
        return file
    request = {
        "base": base,
        "experts": list(adapters),
        "tasks": list(test),
        "gates": list(options.gates),
        "rules": list(options.rules),
        "architectures": list(options.architectures),
        "seeds": options.seeds,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "union_steps": union_steps,
        "limit": options.scoring.limit,
        "left_out": list(dict.fromkeys(left_out)),
        "dtype": dtype,
        "plan": ids,
    }
    whole = sum(forecast.seconds(cell, training, test) for cell in cells)
    append_records(file, [_grid_record("start", cells, whole, file, request)])
    with Progress("comparing", expected) as work:
        for number, cell in enumerate(todo, 1):
            begun = time.monotonic()
            with work.part(forecast.seconds(cell, training, test)):
                records = run_cell(cell, grid)
            append_records(file, records)
            mean = next(r for r in records if r.get("task") == "mean")
            seed = f" seed {cell.seed}" if cell.seed is not None else ""
            left = work.left()
            logger.info(
                f"[{len(cells) - len(todo) + number}/{len(cells)}] {cell.label}{seed}: {line(mean['metrics'])}  "
                f"({duration(time.monotonic() - begun)}{'' if left is None else f', {duration(left)} left'})"
            )
    shutil.rmtree(grid.work, ignore_errors=True)
    append_records(file, [_grid_record("end", cells, whole, file, request)])
    return file


def _dtype(base: str, device: str | None, file: Path) -> str | None:
    """The base's dtype, None for the checkpoint's own: a run that goes on keeps what it began with, on any machine."""
    for record in read_records(file) if file.exists() else ():
        if record["suite"] == "compare":
            return record["request"].get("dtype")
        if record["suite"] == "cell":
            return record["conditions"].get("dtype")
    choice = base_dtype(base, None, device)
    return None if choice.own else choice.name


def _grid_record(
    case: str, cells: Sequence[Cell], predicted: float, file: Path, request: dict[str, Any]
) -> dict[str, Any]:
    """What was asked for, what was predicted for all of it, and what the finished cells took."""
    records = read_records(file) if file.exists() else []
    done = [r["metrics"] for r in records if r["suite"] == "cell" and r["case"] in request["plan"]]
    taken = sum(m["train_seconds"] + m["score_seconds"] for m in done)
    metrics = {"cells": len(cells), "predicted_seconds": round(predicted), "seconds": round(taken)}
    return make_record("compare", case, metrics, request=request)


def _open(
    base: str,
    own: dict[str, dict[str, str]],
    train: dict[str, list[Row]],
    test: dict[str, list[Row]],
    options: Comparison,
    training: GateTraining,
    out: Path,
    dtype: str | None,
    device: str | None,
) -> Grid:
    named = {name: read_adapter(name, folder) for name, folder in own["mole"].items()} if "mole" in own else {}
    model = load_for(base, named, training.head, dtype or CHECKPOINT, device)
    tokenizer = load_tokenizer(base)
    for architecture, folders in own.items():  # before an hour's work, not after it
        kind = ARCHITECTURES.get(architecture)
        wanted = training.architecture_options if architecture == "hydra" else {}
        kind.arrange(load_bank(folders, model), make_options(kind, wanted))
    rows = [row for task_rows in train.values() for row in task_rows]
    encoded = encode_for(model, rows, tokenizer, training)
    hashes = {
        architecture: {name: read_adapter(name, folder).file.sha256 for name, folder in folders.items()}
        for architecture, folders in own.items()
    }
    known = grid_conditions(fingerprint(model), dtype, hashes, rows, test, training, options.scoring)
    conditions = {**known, "union_lr": options.union_lr}
    options = dataclasses.replace(options, training=training)
    return Grid(model, tokenizer, own, train, test, encoded, options, conditions, out / ".work", device)


def _check_adapters(adapters: Mapping[str, str], architecture: str) -> None:
    """Headers of all adapters, before any model is loaded."""
    sites = {name: set(read_adapter(name, folder).sites) for name, folder in adapters.items()}
    names = list(sites)
    if not any(sites[a] & sites[b] for i, a in enumerate(names) for b in names[i + 1 :]):
        raise AdapterError(
            f"no two of the {len(names)} adapters for {architecture} have a site in common ({names[0]} acts at "
            f"{min(sites[names[0]])}, {names[1]} at {min(sites[names[1]])}): a gate would have nothing to choose. Use adapters "
            "with the same target modules."
        )
