"""A rule with weights of its own for each task: searched on that task's rows, and put in place before the task is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from radargate.data.rows import Row
from radargate.training.encoding import encode_for
from radargate.training.gates import fit_gates
from radargate.training.options import GateTraining

logger = logging.getLogger(__name__)


def task_rows(train: Mapping[str, Sequence[Row]], test: Mapping[str, Sequence[Row]]) -> dict[str, int] | None:
    """Tested task → its training rows; None where a task has none, so that nothing can be searched for it."""
    return {task: len(train[task]) for task in test} if set(test) <= set(train) else None


def search_tasks(
    model: PeftModel,
    tokenizer: Any,
    tasks: Mapping[str, Sequence[Row]],
    work: Path,
    training: GateTraining,
    device: str | None,
) -> dict[str, Any]:
    """Search a composition's weights for each task on a few of its training rows, with the same seed.

    Source: LoraHub (COLM 2024), which searches the weights of an unseen task on its own examples.

    Returns:
        As `radargate.training.gates.fit_gates`; ``search`` is task → what was found, its weights among it.
    """
    searches, seconds = {}, 0.0
    for task, rows in tasks.items():
        logger.info(f"searching weights for {task}")
        encoded = encode_for(model.get_base_model(), rows, tokenizer, training)
        found = fit_gates(model, encoded, work, training, device=device)
        searches[task], seconds = found["search"], seconds + found["seconds"]
    return {"trained_parameters": 0, "seconds": seconds, "final_loss": None, "curve": [], "search": searches}
