"""Where cells on composed skills are run: one process with one base model."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from radargate.base_models.dtype import CHECKPOINT
from radargate.base_models.loading import fingerprint, load_base, load_tokenizer
from radargate.comparison.cells import Cell
from radargate.comparison.grid import Grid
from radargate.comparison.options import Comparison
from radargate.comparison.run_cell import run_cell
from radargate.paper.skills.bank import Bank
from radargate.paper.skills.parts import part_scores
from radargate.paper.skills.places import Place, atomic_rows, test_rows, train_rows
from radargate.paper.skills.systems import make_adapter, run_passes
from radargate.training.encoding import encode_for


@dataclass
class Shop:
    """Runs cells one after the other. It can be sent to another process as long as it has run none.

    Attributes:
        bank: the experts, and the design.
        base: folder or name of the base without its chat template.
        out: where passing files may lie.
        dtype: of the base.
        device: where to run.
    """

    bank: Bank
    base: str
    out: Path
    dtype: str | None
    device: str | None = None
    _opened: tuple[Any, Any, str] | None = field(default=None, repr=False)

    def open(self) -> tuple[Any, Any, str]:
        """Model, tokenizer, and the model's fingerprint."""
        if self._opened is None:
            model = load_base(self.base, dtype=self.dtype or CHECKPOINT, device=self.device)
            self._opened = (model, load_tokenizer(self.base), fingerprint(model))
        return self._opened

    def close(self) -> Shop:
        """Let the base go; the shop can then be sent elsewhere."""
        self._opened = None
        return self

    def run(self, place: Place) -> list[dict[str, Any]]:
        """All records of one cell, each with the place where it stands."""
        grid = self._grid(place)
        if place.cell.kind == "passes":
            records = run_passes(place.cell, grid, place.id)
        else:
            records = run_cell(place.cell, grid, place.id)
        shutil.rmtree(grid.work, ignore_errors=True)
        return [{**record, "at": place.at()} for record in records]

    def _grid(self, place: Place) -> Grid:
        model, tokenizer, printed = self.open()
        design, pair = self.bank.design, place.pair
        adapters = {atom: str(self.bank.place(atom, place.expert_seed)) for atom in (pair.first, pair.second)}
        train, test = train_rows(pair, place.rows), test_rows(pair, design)
        encoded = encode_for(model, [row for rows in train.values() for row in rows], tokenizer, design.training)
        options = Comparison(
            training=replace(design.training, top_k=len(adapters)).resolved(),
            scoring=design.scoring,
            union_lr=design.recipe.lr,
            unturned=place.cell.label == "radar",
        )
        with_rows = place.cell.label == "union+rows"
        return Grid(
            model,
            tokenizer,
            {"mole": adapters},
            train,
            test,
            encoded,
            options,
            {**place.conditions, "base_fingerprint": printed},
            self.out / f".work-{platform.node()}-{os.getpid()}",
            self.device,
            probe=_parts,
            probes_all=True,
            union={**atomic_rows(pair), **(train if with_rows else {})},
            makers={"adapter": make_adapter},
        )


def _parts(model: Any, cell: Cell, grid: Grid) -> dict[str, Any]:
    return {"parts": part_scores(model, grid.tokenizer, grid.test)}
