"""One cell of a comparison: compose, train, score, and say what the gate did."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from peft import PeftModel

from radargate.comparison.cells import UNION, Cell
from radargate.comparison.grid import Grid
from radargate.comparison.memory import peak_mb, reset_peak
from radargate.comparison.results import unturned_label
from radargate.comparison.told import search_tasks
from radargate.comparison.union import train_union
from radargate.composition.composing import compose, radar_config
from radargate.composition.config import gate_class
from radargate.evaluation.run import score_system
from radargate.evaluation.usage import Usage, expert_usage
from radargate.gates.rotation import Turning
from radargate.io.progress import quietly, share
from radargate.io.records import make_record
from radargate.training.diagnostics import mean_angle
from radargate.training.gates import fit_gates
from radargate.training.own_rows import options_from_rows
from radargate.training.search import place_weights

RECORDS = "records.jsonl"
TRAINED = 0.7  # share of a trained cell's time that training takes, for the time left inside the cell
USAGE_ROWS = 2  # rows of each task that a gate's use of experts is looked at on


@quietly()
def run_cell(cell: Cell, grid: Grid, cell_id: str | None = None) -> list[dict[str, Any]]:
    """Train and score one cell; its records, the cell's own last: where it is, the cell is whole.

    Args:
        cell: what to run.
        grid: what it shares with others.
        cell_id: what it is known by; by default `Cell.id` under the grid's conditions.
    """
    shutil.rmtree(grid.work, ignore_errors=True)
    reset_peak(grid.model.device)
    facts: dict[str, Any] = {"trained_parameters": 0, "seconds": 0.0, "final_loss": None, "curve": []}
    usage, angle, note, model = Usage({}, None, None), None, None, grid.model
    if cell.kind in grid.makers:
        with share(TRAINED if cell.trained else 0):
            model, facts, note = grid.makers[cell.kind](cell, grid)
    elif cell.system == UNION:
        with share(TRAINED):
            model, facts, note = train_union(cell, grid)
    elif cell.kind == "expert":
        model = compose(grid.model, {cell.system: grid.adapters["mole"][cell.system]}, gate="uniform", top_k=1)
    elif cell.kind != "base":
        with share(TRAINED if cell.trained else 0):
            model, facts, note = _composed(cell, grid)
    before = _own_weights(model, facts["search"]) if cell.kind == "told" else None
    if isinstance(model, PeftModel) and cell.kind in ("rule", "told", "gate") and cell.system != UNION:
        model.eval()
        some = {task: rows[:USAGE_ROWS] for task, rows in grid.test.items()}
        usage = expert_usage(model, grid.tokenizer, some, before)
        angle = mean_angle(model, grid.encoded, 8)
    cell_id = cell_id or cell.id(grid.conditions)
    if grid.keep is not None and isinstance(model, PeftModel) and cell.kind != "expert":
        grid.keep(model, cell_id)
    shown = {
        "id": cell_id,
        "system": cell.system,
        "kind": cell.kind,
        "architecture": cell.architecture,
        "seed": cell.seed,
        "label": cell.label,
    }
    again = grid.options.unturned and cell.kind == "gate" and issubclass(gate_class(cell.system), Turning)
    left = (1 - TRAINED if cell.trained else 1) / (1 + again)
    begun = time.monotonic()
    with share(left):
        known = {"cell": shown}
        records = score_system(cell.label, model, grid.tokenizer, grid.test, grid.options.scoring, known, before)
    metrics = {
        "trained_parameters": facts["trained_parameters"],
        "train_seconds": round(facts["seconds"], 2),
        "score_seconds": round(time.monotonic() - begun, 2),
        "peak_memory_mb": peak_mb(grid.model.device),
        "rows_read": facts.get("rows_read"),
        "final_loss": facts["final_loss"],
        "mean_angle": angle,
        "curve": facts.get("curve", []),
        "usage": usage.by_task or None,
        "entropy": usage.entropy,
        "experts_in_use": usage.experts_in_use,
        "search": facts.get("search"),
        "top_k": grid.options.training.top_k if cell.kind == "gate" else None,
    }
    if grid.probe is not None and (cell.kind == "gate" or grid.probes_all):
        metrics["probe"] = grid.probe(model, cell, grid)
    if again:
        with share(left):
            records += _unturned(model, grid, shown)
    options = {
        **asdict(grid.options.training),
        **cell.training,
        "gate": cell.system,
        "architecture": cell.architecture,
        "seed": cell.seed,
        "gate_options": cell.own_options,
        **facts.get("options", {}),
    }
    records.append(
        make_record(
            "cell",
            cell_id,
            metrics,
            cell=shown,
            options=options,
            conditions=grid.conditions,
            note=note,
        )
    )
    if isinstance(model, PeftModel):
        model.unload()
    return records


def _unturned(model: PeftModel, grid: Grid, shown: dict[str, Any]) -> list[dict[str, Any]]:
    """Eval records of the same cell with its rotation switched off, under a label of their own; last, as it stays off."""
    for module in model.modules():
        if isinstance(module, Turning):
            module.stop_turning()
    label = unturned_label(shown["label"], shown["architecture"])
    facts = {"cell": {**shown, "label": label}}
    return score_system(label, model, grid.tokenizer, grid.test, grid.options.scoring, facts)


def _composed(cell: Cell, grid: Grid) -> tuple[PeftModel, dict[str, Any], str | None]:
    assert cell.architecture is not None
    adapters = grid.adapters[cell.architecture]
    training = dataclasses.replace(
        grid.options.training,
        architecture=cell.architecture,
        gate=cell.system,
        seed=cell.seed or 0,
        gate_options=cell.own_options,
        **cell.training,
    )
    given, adapters = options_from_rows(
        grid.model, adapters, {**(grid.union or {}), **grid.train}, grid.tokenizer, training, grid.device
    )
    model = compose(
        grid.model,
        adapters,
        architecture=cell.architecture,
        gate=cell.system,
        top_k=training.top_k,
        architecture_options=training.architecture_options if cell.architecture == "hydra" else None,
        preset=training.preset,
        seed=training.seed,
        head=training.head,
        **given,
    )
    lost = [facts["residual"] for facts in radar_config(model).expert_facts.values() if "residual" in facts]
    note = f"converted to a common A, residual {sum(lost) / len(lost):.2f}" if lost else None
    if cell.kind == "told":
        wanted = {task: grid.train[task] for task in grid.test}
        return model, search_tasks(model, grid.tokenizer, wanted, grid.work, training, grid.device), note
    facts = fit_gates(model, grid.encoded, grid.work, dataclasses.replace(training, save_every=0), device=grid.device)
    return model, facts, note


def _own_weights(model: Any, searches: Mapping[str, Any]) -> Callable[[str], None]:
    """Puts a task's own weights in place."""
    return lambda task: place_weights(model, searches[task]["weights"])
