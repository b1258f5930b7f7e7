"""Which rows are each expert's own: those of the task of its name, or of the tasks that it answers best."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from radargate.composition.composing import compose
from radargate.composition.config import gate_class
from radargate.data.batches import EncodedRows
from radargate.data.rows import Row
from radargate.experts.adapters import Adapter
from radargate.gates.base import ByTask
from radargate.training.encoding import encode_for
from radargate.training.loop import AnswerTrainer, training_arguments
from radargate.training.options import GateTraining, Training

MOST, AT_ONCE = 8, 2000  # rows looked at of each task, and of all tasks with all experts
A = TypeVar("A", bound=str | Path | Adapter)
logger = logging.getLogger(__name__)


def options_from_rows(
    base: Any,
    adapters: Mapping[str, A],
    by_task: ByTask,
    tokenizer: Any,
    options: GateTraining,
    device: str | None = None,
) -> tuple[dict[str, Any], dict[str, A]]:
    """The gate's options with what they ask of each expert's own rows; and the experts, where a choice is all there is those with rows.

    Takes what `rows_by_expert` takes.
    """
    kind, values = gate_class(options.gate), dict(options.gate_options)
    if not kind.reads_own_rows(values):
        return values, dict(adapters)
    own = rows_by_expert(base, adapters, by_task, tokenizer, options, device)
    without = [name for name, rows in own.items() if not rows]
    if without and kind.routes_alone:
        logger.warning(f"{', '.join(without)}: best at no task, so that no row says what it is for. It is left out.")
        adapters = {name: adapter for name, adapter in adapters.items() if name not in without}
    return kind.from_rows(values, base, tokenizer, own), dict(adapters)


def rows_by_expert(
    base: Any,
    adapters: Mapping[str, str | Path | Adapter],
    by_task: ByTask,
    tokenizer: Any,
    options: GateTraining,
    device: str | None = None,
) -> dict[str, list[Row]]:
    """Rows of each expert's own, in the experts' order; an expert may have none.

    Where every expert has a task of its name, that task's rows. Else each task belongs to the expert that answers its first
    rows with the least loss, as LoRAuter (arXiv 2601.21795) finds the adapters of a task.

    Args:
        base: the loaded base; it is left as it was.
        adapters: name → folder or adapter.
        by_task: task → rows.
        tokenizer: the base's.
        options: how rows are encoded, and whose head is kept.
        device: where to run.
    """
    if all(name in by_task for name in adapters):
        return {name: list(by_task[name]) for name in adapters}
    encoded = encode_for(base, [row for rows in by_task.values() for row in rows], tokenizer, options)
    count = max(1, min(MOST, AT_ONCE // (len(by_task) * len(adapters))))
    looked_at = {task: encoded.of_task(task)[:count] for task in by_task}
    losses = {
        name: _losses(base, name, adapter, encoded, looked_at, options, device) for name, adapter in adapters.items()
    }
    own: dict[str, list[Row]] = {name: [] for name in adapters}
    owner = {task: min(losses, key=lambda name: losses[name][task]) for task in by_task}
    for task, name in owner.items():
        own[name] += by_task[task]
    logger.info(
        "the expert that answers each task best: " + ", ".join(f"{task} {name}" for task, name in owner.items()) + "."
    )
    return own


@torch.no_grad()
def _losses(
    base: Any,
    name: str,
    adapter: str | Path | Adapter,
    encoded: EncodedRows,
    looked_at: Mapping[str, list[int]],
    options: GateTraining,
    device: str | None,
) -> dict[str, float]:
    """Mean loss of one expert alone on some rows of each task; infinite where all are too long."""
    model = compose(base, {name: adapter}, gate="uniform", top_k=1, allow_inactive=True, head=options.head).eval()
    found = dict.fromkeys(looked_at, float("inf"))
    with tempfile.TemporaryDirectory() as work:
        arguments = training_arguments(work, Training(steps=1, batch_size=options.batch_size, lr=1.0), device=device)
        trainer = AnswerTrainer(model, encoded.rows, arguments, encoded.collator)
        try:
            for task, some in looked_at.items():
                if not some:
                    continue
                inputs: Any = trainer._prepare_inputs(dict(encoded.collator([encoded.rows[i] for i in some])))
                found[task] = float(trainer.compute_loss(model, inputs))
        finally:
            trainer.remove_hooks()
    model.unload()
    return found
