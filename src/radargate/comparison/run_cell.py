"""One cell of a comparison: compose, train, score, and say what the gate did."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel

from radargate.comparison.cells import UNION, Cell
from radargate.comparison.memory import peak_mb, reset_peak
from radargate.comparison.options import Comparison
from radargate.comparison.results import unturned_label
from radargate.composition.composing import compose, radar_config
from radargate.composition.config import gate_class
from radargate.data.batches import EncodedRows
from radargate.data.rows import Row
from radargate.evaluation.run import score_system
from radargate.evaluation.usage import Usage, expert_usage
from radargate.experts.adapters import read_adapter
from radargate.gates.rotation import Turning
from radargate.io.progress import quietly, share
from radargate.io.records import make_record, read_records
from radargate.training.diagnostics import mean_angle
from radargate.training.experts import train_experts
from radargate.training.gates import fit_gates
from radargate.training.options import ExpertOptions

RECORDS = "records.jsonl"
TRAINED = 0.7  # share of a trained cell's time that training takes, for the time left inside the cell
USAGE_ROWS = 2  # rows of each task that a gate's use of experts is looked at on


@dataclass
class Grid:
    """What all cells share."""

    model: Any
    tokenizer: Any
    adapters: dict[str, dict[str, str]]
    train: dict[str, list[Row]]
    test: dict[str, list[Row]]
    encoded: EncodedRows
    options: Comparison
    conditions: dict[str, Any]
    work: Path
    device: str | None
    probe: Callable[[PeftModel, Cell, Grid], dict[str, Any]] | None = None  # looks at every trained gate
    others: dict[str, list[Row]] = field(default_factory=dict)  # rows of tasks that have experts and are not trained on


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
    if cell.system == UNION:
        with share(TRAINED):
            model, facts = _union(cell, grid)
    elif cell.kind == "expert":
        model = compose(grid.model, {cell.system: grid.adapters["mole"][cell.system]}, gate="uniform", top_k=1)
    elif cell.kind != "base":
        with share(TRAINED if cell.trained else 0):
            model, facts, note = _composed(cell, grid)
    if isinstance(model, PeftModel) and cell.kind in ("rule", "gate") and cell.system != UNION:
        model.eval()
        usage = expert_usage(model, grid.tokenizer, {task: rows[:USAGE_ROWS] for task, rows in grid.test.items()})
        angle = mean_angle(model, grid.encoded, 8)
    cell_id = cell_id or cell.id(grid.conditions)
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
        records = score_system(cell.label, model, grid.tokenizer, grid.test, grid.options.scoring, {"cell": shown})
    metrics = {
        "trained_parameters": facts["trained_parameters"],
        "train_seconds": round(facts["seconds"], 2),
        "score_seconds": round(time.monotonic() - begun, 2),
        "peak_memory_mb": peak_mb(grid.model.device),
        "final_loss": facts["final_loss"],
        "mean_angle": angle,
        "curve": facts.get("curve", []),
        "usage": usage.by_task or None,
        "entropy": usage.entropy,
        "experts_in_use": usage.experts_in_use,
        "search": facts.get("search"),
        "top_k": grid.options.training.top_k if cell.kind == "gate" else None,
    }
    if grid.probe is not None and cell.kind == "gate":
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
    given = gate_class(cell.system).from_rows(
        training.gate_options, grid.model, grid.tokenizer, {**grid.train, **grid.others}, list(adapters)
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
    facts = fit_gates(model, grid.encoded, grid.work, dataclasses.replace(training, save_every=0), device=grid.device)
    return model, facts, note


def _union(cell: Cell, grid: Grid) -> tuple[PeftModel, dict[str, Any]]:
    """One LoRA trained on all tasks together, with the gates' number of steps and rows."""
    training = grid.options.training
    first = read_adapter("first", next(iter(grid.adapters["mole"].values())))
    common = {**training.common(), "lr": grid.options.union_lr, "seed": cell.seed or 0}
    options = ExpertOptions(
        **common,
        rank=int(first.config.get("r", 8)),
        alpha=int(first.config.get("lora_alpha", 32)),
        target_modules=_targets(first.config.get("target_modules")),
    )
    folder = train_experts(grid.model, grid.train, grid.work / "union", options, union="union", device=grid.device)[
        "union"
    ]
    record = read_records(grid.work / "union" / RECORDS)[-1]["metrics"]
    curve = [
        [entry["step"], entry["loss"]] for entry in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    ]
    model = compose(grid.model, {"union": folder}, gate="uniform", top_k=1)
    count = sum(
        info.A.shape[0] * info.A.shape[1] + info.B.shape[0] * info.B.shape[1]
        for info in read_adapter("union", folder).sites.values()
    )
    return model, {
        "trained_parameters": count,
        "seconds": record["seconds"],
        "final_loss": record["final_loss"],
        "curve": curve,
    }


def _targets(named: Any) -> tuple[str, ...] | None:
    if named is None:
        return None
    return (named,) if isinstance(named, str) else tuple(sorted(named))
