"""One LoRA trained on all tasks together, on as many rows as the experts and the gate of a composition saw."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from peft import PeftModel

from radargate.comparison.cells import Cell
from radargate.comparison.grid import Grid
from radargate.composition.composing import compose
from radargate.experts.adapters import read_adapter
from radargate.io.records import read_records
from radargate.training.experts import rows_read, train_experts
from radargate.training.options import ExpertOptions, Training

logger = logging.getLogger(__name__)

USUAL_ROWS = ExpertOptions().steps * ExpertOptions().batch_size  # of an adapter that does not say how it was trained


def steps_of_union(adapters: Mapping[str, str], training: Training) -> int:
    """Steps in which one LoRA sees as many rows as the training of these adapters and of a gate together; says how it counted."""
    read = {name: rows_read(folder) for name, folder in adapters.items()}
    silent = [name for name, rows in read.items() if rows is None]
    steps = union_steps([USUAL_ROWS if rows is None else rows for rows in read.values()], training)
    taken = f", {USUAL_ROWS:,} taken for each of {len(silent)} that do not say theirs" if silent else ""
    logger.info(
        f"the union LoRA gets {steps:,} steps of {training.batch_size} rows: as many rows as the training of {len(read)} "
        f"adapters read{taken}, and the gate's; `union_steps` sets another number."
    )
    return steps


def union_steps(experts: list[int], training: Training) -> int:
    """Steps in which one LoRA sees as many rows as experts and a gate.

    Args:
        experts: rows that the training of each expert read.
        training: of the gate; the LoRA has its batch.
    """
    return math.ceil(sum(experts) / training.batch_size) + training.steps


def train_union(cell: Cell, grid: Grid) -> tuple[PeftModel, dict[str, Any], str]:
    """Train it with the first adapter's rank, alpha, dropout and targets; the model, facts for the record, and a note."""
    training = grid.options.training
    first = read_adapter("first", next(iter(grid.adapters["mole"].values()))).config
    own = {"steps": int(cell.options["steps"]), "lr": grid.options.union_lr}
    options = ExpertOptions(
        **{**training.common(), **own, "seed": cell.seed or 0},
        rank=int(first.get("r", 8)),
        alpha=int(first.get("lora_alpha", 32)),
        dropout=float(first.get("lora_dropout", 0.0)),
        rslora=bool(first.get("use_rslora", False)),
        target_modules=_targets(first.get("target_modules")),
    )
    rows = grid.train if grid.union is None else grid.union
    folder = train_experts(grid.model, rows, grid.work / "union", options, union="union", device=grid.device)["union"]
    record = read_records(grid.work / "union" / "records.jsonl")[-1]
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    model = compose(grid.model, {"union": folder}, gate="uniform", top_k=1)
    count = sum(
        info.A.shape[0] * info.A.shape[1] + info.B.shape[0] * info.B.shape[1]
        for info in read_adapter("union", folder).sites.values()
    )
    read = options.steps * min(options.batch_size, record["rows"])
    facts = {
        "trained_parameters": count,
        "seconds": record["metrics"]["seconds"],
        "final_loss": record["metrics"]["final_loss"],
        "curve": [[entry["step"], entry["loss"]] for entry in losses],
        "rows_read": read,
        "options": {**own, "gate_options": {}},
    }
    return model, facts, f"{read:,} rows read in {options.steps:,} steps, of {record['rows']:,} there are"


def _targets(named: Any) -> tuple[str, ...] | None:
    if named is None:
        return None
    return (named,) if isinstance(named, str) else tuple(sorted(named))
