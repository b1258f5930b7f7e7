"""How long an experiment will take, before any model is loaded: from sizes, rows and rates measured once."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from radargate.base_models.loading import load_config
from radargate.comparison.cells import UNION, Cell
from radargate.data.rows import Row
from radargate.errors import BaseModelError
from radargate.paper.design import Design
from radargate.training import cost
from radargate.training.options import Training

# parameters, in millions, of bases whose config may be out of reach
SIZES = {
    "smollm2-135m": 135,
    "gemma3-270m": 270,
    "ai4bharat/IndicBART": 244,
    "bigscience/mt0-base": 580,
    "google/flan-t5-small": 77,
    "google/flan-t5-base": 248,
    "google/flan-t5-large": 783,
    "meta-llama/Llama-3.2-1B": 1236,
    "meta-llama/Llama-3.2-3B": 3213,
}
TEMPLATE = 25  # tokens around a prompt
LETTERS = 3.8  # a token


@dataclass(frozen=True)
class Rates:
    """Seconds of the kinds of work with one base."""

    base: str
    device: str

    @property
    def millions(self) -> float:
        """Parameters of the base, in millions; a guess of 500 where nothing is known."""
        return _millions(self.base)

    @property
    def token(self) -> float:
        """One token of a LoRA's training step."""
        return self.millions * cost.token_seconds(self.device)

    def expert(self, rows: Iterable[Row], design: Design) -> float:
        """Training of one expert."""
        return design.recipe.steps * design.recipe.batch_size * self._row(rows, design.recipe)

    def cell(
        self,
        cell: Cell,
        bank: int,
        top_k: int,
        train: Mapping[str, list[Row]],
        test: Mapping[str, list[Row]],
        design: Design,
    ) -> float:
        """Training and scoring of one cell with ``bank`` experts; ``train`` are the rows that it is trained on."""
        mixing = (
            0.0 if cell.kind == "base" else 0.3 + 0.02 * (1 if cell.system == UNION or cell.kind == "expert" else bank)
        )
        seconds = self._scoring(test, design) * (1 + mixing)
        if cell.kind != "base":
            seconds += cost.OPENING * max(1.0, self.millions / 135) * (1.0 if self.device == "cpu" else 0.2)
        if not cell.trained:
            return seconds
        if cell.system == UNION:
            return seconds + cell.options["steps"] * self._step(train, design.training)
        if cell.kind == "gate" and cost.rotates(cell.system) and design.unturned:
            seconds += self._scoring(test, design) * (1 + mixing)
        searches = len(test) if cell.kind == "told" else 1
        return seconds + searches * self._composed(cell, bank, top_k, train, design)

    def equal_time_steps(
        self,
        gates: Iterable[Cell],
        read: Mapping[str, int],
        top_k: int,
        train: Mapping[str, list[Row]],
        union: Mapping[str, list[Row]],
        design: Design,
    ) -> int:
        """Steps of the union LoRA that take as long as training all experts and the slowest of these gates.

        All are so many tokens of a LoRA's step, so the number is the same on every machine.

        Args:
            gates: their cells.
            read: expert → rows that its training reads.
            top_k: experts kept a token.
            train: rows that gates are trained on.
            union: rows that the union LoRA is trained on, those of every expert among them.
            design: of the experiment.
        """
        whole = sum(count * self._row(union[task], design.recipe) for task, count in read.items())
        whole += max((self._composed(cell, len(read), top_k, train, design) for cell in gates), default=0.0)
        return max(1, round(whole / self._step(union, design.training)))

    def _composed(self, cell: Cell, bank: int, top_k: int, train: Mapping[str, list[Row]], design: Design) -> float:
        """Training of a gate, or one search of a rule."""
        rotating = cell.kind == "gate" and cost.rotates(cell.system)
        searched = cell.kind in ("rule", "told")
        steps = cost.SEARCH_STEPS if searched else cost.training_steps(cell.system, design.training.steps, bank)
        factor = cost.gate_factor((bank + top_k) / 2, cell.architecture, rotating)
        return steps * self._step(train, design.training) * factor

    def _step(self, by_task: Mapping[str, list[Row]], options: Training) -> float:
        """A LoRA's training step on rows of ordinary length, of all tasks as often as they have rows."""
        count = sum(map(len, by_task.values()))
        whole = sum(len(rows) * self._row(rows, options) for rows in by_task.values())
        return options.batch_size * whole / max(count, 1)

    def _row(self, rows: Iterable[Row], options: Training) -> float:
        """One row of a LoRA's training step."""
        longest = options.shape[1]
        lengths = [min(_length(row), longest) for row in islice(rows, 500)]
        return sum(lengths) / max(len(lengths), 1) * self.token

    def _scoring(self, test: Mapping[str, list[Row]], design: Design) -> float:
        read = sum(_length(row) + 4 * max(len(row.choices), 1) for rows in test.values() for row in rows)
        made = sum(design.scoring.max_new_tokens for rows in test.values() for row in rows if not row.choices)
        return (read + cost.DECODED * made) * cost.FORWARD * self.token


def _millions(base: str) -> float:
    if base in SIZES:
        return float(SIZES[base])
    if Path(base).is_dir():
        with contextlib.suppress(BaseModelError):
            config = load_config(base)
            width = int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 512))
            layers = int(getattr(config, "num_hidden_layers", 12)) * (2 if config.is_encoder_decoder else 1)
            return (12 * layers * width**2 + getattr(config, "vocab_size", 0) * width) / 1e6
    named = re.search(r"(\d+(?:\.\d+)?)([mb])\b", base.lower())
    return float(named[1]) * (1000 if named[2] == "b" else 1) if named else 500.0


def _length(row: Row) -> float:
    return TEMPLATE + (len(row.prompt) + len(row.target)) / LETTERS
