"""What all cells of a comparison share: model, adapters, rows, options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from radargate.comparison.cells import Cell
from radargate.comparison.options import Comparison
from radargate.data.batches import EncodedRows
from radargate.data.rows import Row


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
    union: dict[str, list[Row]] | None = None  # what the union LoRA is trained on; None: the gates' rows
    keep: Callable[[PeftModel, str], None] | None = None  # saves every composition under its cell's id
