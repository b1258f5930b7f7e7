"""Where cells of an experiment are run: one process with one base model, kept from cell to cell."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radargate.base_models.dtype import CHECKPOINT
from radargate.base_models.loading import fingerprint, load_base, load_tokenizer
from radargate.comparison.grid import Grid
from radargate.comparison.options import Comparison
from radargate.comparison.run_cell import run_cell
from radargate.data.batches import encode_rows
from radargate.paper.design import Design, Experiment
from radargate.paper.expert_store import ExpertStore
from radargate.paper.planning import Place
from radargate.paper.points import (
    Material,
    Point,
    base_identity,
    gate_training,
    test_rows,
    train_rows,
    union_rows,
)

logger = logging.getLogger(__name__)


@dataclass
class Workshop:
    """Runs cells one after the other. It can be sent to another process as long as it has run none.

    Attributes:
        experiment: whose cells these are.
        design: its grid.
        material: the rows.
        store: the experts; their folder must be the same everywhere.
        out: where passing files may lie.
        device: where to run.
    """

    experiment: Experiment
    design: Design
    material: Material
    store: ExpertStore
    out: Path
    device: str | None = None
    _base: tuple[str, Any, Any, str] | None = field(default=None, repr=False)
    _grid: tuple[Point, frozenset[str], Grid] | None = field(default=None, repr=False)

    def prepare(self, places: Sequence[Place]) -> None:
        """Train the experts that places of one base need and that are not there."""
        for point in dict.fromkeys(place.point for place in places):
            for architecture in _architectures([p for p in places if p.point == point]):
                self._folders(point, list(point.experts), architecture)
            if point.left_out is not None:
                self._folders(point, [point.left_out], "mole")

    def run(self, place: Place) -> list[dict[str, Any]]:
        """All records of one cell."""
        grid = self._grid_at(place)
        printed = self._opened(place.point.base)[3]
        own = {**place.conditions, "base_fingerprint": printed}
        records = run_cell(place.cell, dataclasses.replace(grid, conditions=own), place.id)
        shutil.rmtree(grid.work, ignore_errors=True)
        return records

    def close(self) -> Workshop:
        """Let the base go; the workshop can then be sent elsewhere."""
        self._base = self._grid = None
        return self

    def _opened(self, base: str) -> tuple[str, Any, Any, str]:
        if self._base is None or self._base[0] != base:
            self.close()
            logger.info(f"loading {base}")
            model = load_base(base, dtype=self.store.dtypes.get(base) or CHECKPOINT, device=self.device)
            self._base = (base, model, load_tokenizer(base), fingerprint(model))
        return self._base

    def _folders(self, point: Point, tasks: list[str], architecture: str) -> dict[str, str]:
        identity = base_identity(point.base)
        if not self.store.missing(point.base, identity, tasks, architecture):
            return self.store.folders(point.base, identity, tasks, architecture, None)
        return self.store.folders(point.base, identity, tasks, architecture, self._opened(point.base)[1])

    def _grid_at(self, place: Place) -> Grid:
        point, needed = place.point, frozenset(_architectures([place]))
        if self._grid is None or self._grid[0] != point or not needed <= self._grid[1]:
            self._grid = (point, needed, self._new_grid(point, needed))
        return self._grid[2]

    def _new_grid(self, point: Point, architectures: frozenset[str]) -> Grid:
        _, model, tokenizer, _ = self._opened(point.base)
        adapters = {a: self._folders(point, list(point.experts), a) for a in sorted(architectures)}
        train, test = train_rows(point, self.material), test_rows(point, self.material)
        training = gate_training(point, self.design, convert=self.store.given is not None)
        seq2seq = bool(model.config.is_encoder_decoder)
        rows = [row for task_rows in train.values() for row in task_rows]
        encoded = encode_rows(rows, tokenizer, training, encoder_decoder=seq2seq)
        design = self.design
        options = Comparison(
            training=training, scoring=design.scoring, union_lr=design.recipe.lr, unturned=design.unturned
        )
        probe: Any = None
        if self.experiment.probe:
            module, _, attribute = self.experiment.probe.partition(":")
            probe = getattr(importlib.import_module(module), attribute)
            if point.left_out is not None:
                adapters["left out"] = self._folders(point, [point.left_out], "mole")
        work = self.out / f".work-{platform.node()}-{os.getpid()}"  # of a cluster all write there
        union = union_rows(point, self.material)
        return Grid(
            model, tokenizer, adapters, train, test, encoded, options, {}, work, self.device, probe, union=union
        )


def _architectures(places: Sequence[Place]) -> list[str]:
    return sorted({place.cell.architecture or "mole" for place in places} | {"mole"})
