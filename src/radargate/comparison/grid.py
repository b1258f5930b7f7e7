"""What all cells of a comparison share: model, adapters, rows, options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel

from radargate.comparison.cells import Cell
from radargate.comparison.options import Comparison
from radargate.data.batches import EncodedRows
from radargate.data.rows import Row, rows_hash
from radargate.evaluation.options import Scoring
from radargate.training.options import GateTraining


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
    probe: Callable[[Any, Cell, Grid], dict[str, Any]] | None = None  # looks at every trained gate
    probes_all: bool = False  # or at every system
    union: dict[str, list[Row]] | None = None  # what the union LoRA is trained on; None: the gates' rows
    keep: Callable[[PeftModel, str], None] | None = None  # saves every composition under its cell's id
    # kind of a cell → what makes its system where that is no composition: model, facts for the record, and a note
    makers: Mapping[str, Callable[[Cell, Grid], tuple[Any, dict[str, Any], str | None]]] = field(default_factory=dict)


def grid_conditions(
    base: str,
    dtype: str | None,
    experts: Mapping[str, Mapping[str, str]],
    train: Sequence[Row],
    test: Mapping[str, Sequence[Row]],
    training: GateTraining,
    scoring: Scoring,
) -> dict[str, Any]:
    """All that results depend on, beside the cell.

    Args:
        base: fingerprint of its weights.
        dtype: of the base.
        experts: architecture → adapter → hash of its file.
        train: rows.
        test: task → rows.
        training: of gates.
        scoring: of every system.
    """
    return {
        "base": base,
        "dtype": dtype,
        "experts": experts,
        "training": training.shared(),
        "scoring": asdict(scoring),
        "train_hash": rows_hash(train),
        "test_hash": rows_hash(row for rows in test.values() for row in rows),
    }
