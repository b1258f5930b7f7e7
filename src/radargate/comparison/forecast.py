"""How long cells will take, from one measured step of each kind of work on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radargate.comparison.cells import UNION, Cell
from radargate.composition.composing import compose
from radargate.data.batches import EncodedRows, step_order
from radargate.data.rows import Row
from radargate.evaluation.labels import scorer_for
from radargate.evaluation.options import Scoring
from radargate.training.cost import SEARCH_STEPS, architecture_factor, rotates, training_steps
from radargate.training.options import GateTraining
from radargate.training.schedule import set_dense


@dataclass(frozen=True)
class Forecast:
    """Seconds of one training step by kind of gate, and of scoring one row.

    Attributes:
        plain: a step of a gate that only weighs.
        turning_dense: a step with rotation and all experts.
        turning: a step with rotation and top-k.
        row: scoring one row.
        opening: composing, and looking at weights and angles.
        experts: how many are composed.
    """

    plain: float
    turning_dense: float
    turning: float
    row: float
    opening: float
    experts: int

    @classmethod
    def measure(
        cls,
        model: Any,
        adapters: Mapping[str, str],
        encoded: EncodedRows,
        test: Mapping[str, Sequence[Row]],
        tokenizer: Any,
        training: GateTraining,
        device: str | None,
        scoring: Scoring | None = None,
    ) -> Forecast:
        """Time a step of ordinary length with stretch and with radar, dense and top-k, and a few rows of scoring."""
        examples = encoded.rows
        order = step_order(lambda i: examples[i].length, len(examples), training.batch_size, 9, training.seed)
        step = sorted(order, key=lambda rows: sum(examples[i].length for i in rows))[len(order) // 2]
        batch = {k: v.to(device) if device else v for k, v in encoded.collator([examples[i] for i in step]).items()}
        batch.pop("position_ids", None)
        times: dict[str, float] = {}
        for gate in ("stretch", "radar"):
            opened = time.monotonic()
            composed = compose(
                model, adapters, gate=gate, top_k=training.top_k, seed=0, allow_inactive=True, head=training.head
            ).train()
            times["opening"] = 2 * (time.monotonic() - opened)
            for dense in (True, False):
                set_dense(composed, dense)
                for _ in range(2):  # the second counts
                    begun = time.monotonic()
                    loss = composed(**batch).loss
                    if loss.requires_grad:  # not where no two adapters share a site
                        loss.backward()
                    times[f"{gate}{dense}"] = time.monotonic() - begun
            set_dense(composed, False)
            if gate == "stretch":
                rows = [row for task_rows in test.values() for row in task_rows[:1]]
                begun = time.monotonic()
                scorer_for(composed.eval(), tokenizer, scoring or Scoring()).score(rows)
                times["row"] = (time.monotonic() - begun) / len(rows)
            model = composed.unload()
        steps = (times["stretchFalse"], times["radarTrue"], times["radarFalse"])
        return cls(*steps, times["row"], times["opening"], len(adapters))

    def seconds(self, cell: Cell, training: GateTraining, test: Mapping[str, Sequence[Row]]) -> float:
        """Predicted seconds of one cell."""
        scoring = self.row * sum(len(rows) for rows in test.values())
        if not cell.trained:
            return self.opening + scoring
        factor = architecture_factor(cell.architecture)
        if cell.system == UNION:
            return self.opening + scoring + self.plain * cell.options["steps"]
        if cell.kind in ("rule", "told"):
            searches = len(test) if cell.kind == "told" else 1
            return self.opening + scoring + factor * self.plain * SEARCH_STEPS * searches
        share = training.dense_start or 0.0
        turning = share * self.turning_dense + (1 - share) * self.turning
        step = turning if cell.kind == "gate" and rotates(cell.system) else self.plain
        return self.opening + scoring + factor * step * training_steps(cell.system, training.steps, self.experts)
