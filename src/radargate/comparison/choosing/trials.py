"""Systems on trial: one resident base, on which each is trained, scored, kept, and opened again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from radargate.base_models.dtype import CHECKPOINT
from radargate.base_models.loading import fingerprint, load_tokenizer
from radargate.comparison.cells import UNION, Cell
from radargate.comparison.choosing.held_out import HeldOut, Rows
from radargate.comparison.choosing.options import Choosing
from radargate.comparison.finished import finished_cells
from radargate.comparison.forecast import Forecast
from radargate.comparison.grid import Grid, grid_conditions
from radargate.comparison.options import Comparison
from radargate.comparison.run_cell import RECORDS, run_cell
from radargate.composition.composing import compose, load, load_for, radar_config
from radargate.data.batches import step_order
from radargate.data.rows import Row
from radargate.errors import OptionError
from radargate.evaluation.labels import scorer_for
from radargate.evaluation.options import Scoring
from radargate.evaluation.run import line, score_system
from radargate.experts.adapters import Adapter
from radargate.io.progress import Progress, duration, quietly
from radargate.io.records import append_records, make_record, read_records
from radargate.training.encoding import encode_for
from radargate.training.options import GateTraining

TRIES, LEFT_OUT = "tries", "left out"
logger = logging.getLogger(__name__)


class Trials:
    """What is tried in one folder; a record that is there is not made again.

    Args:
        out: the folder.
        base: the base's name.
        adapters: that are to be composed.
        held: rows.
        options: how much is tried.
        dtype: of the base.
        device: where to run.
    """

    def __init__(
        self,
        out: Path,
        base: str,
        adapters: Mapping[str, Adapter],
        held: HeldOut,
        options: Choosing,
        dtype: str | None,
        device: str | None,
    ) -> None:
        self.out, self.file, self.adapters, self.held = out, out / RECORDS, adapters, held
        self.options, self.device = options, device
        self.model: Any = load_for(base, adapters, options.head, dtype or CHECKPOINT, device)
        self.tokenizer = load_tokenizer(base)
        self.training = GateTraining(
            **options.batching(), seed=options.seed, head=options.head, save_every=0
        ).resolved()
        scored = [row for part in (held.validation, held.test) for rows in part.values() for row in rows]
        scorer_for(self.model, self.tokenizer, self._scoring(1)).check(scored)  # before hours are spent
        self.rows = [row for rows in held.fit.values() for row in rows]
        self.encoded = encode_for(self.model, self.rows, self.tokenizer, self.training)
        self.finished = finished_cells(self.file)
        self.left_out = {
            record["case"] for record in self.records(LEFT_OUT)
        }  # what cannot work with these adapters or rows
        self.base, self.hashes = fingerprint(self.model), {name: a.file.sha256 for name, a in adapters.items()}

    @property
    def folders(self) -> dict[str, str]:
        """Adapter → where it lies."""
        return {name: adapter.source for name, adapter in self.adapters.items()}

    def forecast(self) -> Forecast:
        """How long a step and a row take here."""
        with quietly():
            return Forecast.measure(
                self.model,
                self.folders,
                self.encoded,
                self.held.validation,
                self.tokenizer,
                self.training,
                self.device,
                self._scoring(1),
            )

    def records(self, *suites: str) -> list[dict[str, Any]]:
        """Records of these suites so far."""
        found = read_records(self.file) if self.file.exists() else []
        return [record for record in found if record["suite"] in suites]

    def grid(self, steps: int, rows: int) -> Grid:
        """What all cells of one round share."""
        training, test = replace(self.training, steps=steps), first(self.held.validation, rows)
        scoring, dtype = replace(self._scoring(rows), split="validation"), str(self.model.dtype).removeprefix("torch.")
        return Grid(
            self.model,
            self.tokenizer,
            {"mole": self.folders},
            self.held.fit,
            test,
            self.encoded,
            Comparison(training=training, scoring=scoring),
            grid_conditions(self.base, dtype, {"mole": self.hashes}, self.rows, test, training, scoring),
            self.out / TRIES / "work",
            self.device,
            keep=self._keep,
        )

    def run(self, cell: Cell, grid: Grid, work: Progress, expected: float) -> None:
        """Train and score one system, unless that is done."""
        if cell.id(grid.conditions) in self.finished or cell.label in self.left_out:
            work.drop(expected)
            return
        try:
            with work.part(expected):
                records = run_cell(cell, grid)
        except OptionError as error:
            if cell.kind in ("base", "expert"):
                raise
            logger.warning(f"{cell.label} cannot work here: {error}")
            append_records(self.file, [make_record(LEFT_OUT, cell.label, {}, reason=str(error))])
            self.left_out.add(cell.label)
            return
        append_records(self.file, records)
        self.finished.add(cell.id(grid.conditions))
        steps = f" after {grid.options.training.steps} steps" if cell.trained else ""
        mean, left = next(r for r in records if r.get("task") == "mean")["metrics"], work.left()
        logger.info(f"{cell.label}{steps}: {line(mean)}{'' if left is None else f'  ({duration(left)} left)'}")

    def means(self, cells: Sequence[Cell], grid: Grid) -> dict[str, float]:
        """Label → NLL of these cells, as they were run on this grid and on no other rows."""
        ids = {cell.id(grid.conditions) for cell in cells}
        found = [r for r in self.records("eval") if r["task"] == "mean" and r.get("cell", {}).get("id") in ids]
        return {record["system"]: record["metrics"]["nll"]["value"] for record in found}

    def report_on(self, cell: Cell, rows: int) -> None:
        """Score one of the last systems on rows that nothing saw, unless that is done."""
        if any(r["system"] == cell.label and "cell" not in r and r["task"] == "mean" for r in self.records("eval")):
            return
        model = self.opened(cell)
        with quietly():
            records = score_system(
                cell.label, model, self.tokenizer, first(self.held.test, rows), self._scoring(rows), {"report": True}
            )
        append_records(self.file, records)
        logger.info(f"{cell.label}, on rows that nothing saw: {line(records[-1]['metrics'])}")
        if isinstance(model, PeftModel):
            model.unload()

    def opened(self, cell: Cell) -> Any:
        """A system as it was at the end of the last round that it was in."""
        if cell.kind == "base":
            return self.model
        if cell.kind == "expert":
            return compose(self.model, {cell.system: self.adapters[cell.system]}, gate="uniform", top_k=1)
        record = [r for r in self.records("cell") if r["cell"]["label"] == cell.label][-1]
        places = None if cell.system == UNION else self.folders
        return load(self.model, self.out / TRIES / record["case"], adapters=places)

    def seen(self, steps: int, rows: int) -> list[Row]:
        """Rows that a gate learned from in so many steps, and those that systems were chosen by."""
        examples, together = self.encoded.rows, self.training.batch_size
        order = step_order(lambda i: examples[i].length, len(examples), together, steps, self.training.seed)
        learned = sorted({i for step in order for i in step})
        chosen_by = first(self.held.validation, rows).values()
        return [*(examples.source[i] for i in learned), *(row for group in chosen_by for row in group)]

    def _scoring(self, rows: int) -> Scoring:
        return Scoring(limit=rows, max_new_tokens=self.options.max_new_tokens, seed=self.options.seed)

    def _keep(self, model: PeftModel, cell_id: str) -> None:
        """Save a composition, without adapters that lie elsewhere, before its record is written."""
        config = radar_config(model)
        config.gate_only = all(
            config.expert_facts[name].get("sha256") == self.hashes.get(name) for name in config.experts
        )
        model.save_pretrained(str(self.out / TRIES / cell_id), save_embedding_layers=False)


def first(by_task: Rows, count: int) -> Rows:
    """The first rows of each task."""
    return {task: rows[:count] for task, rows in by_task.items()}
