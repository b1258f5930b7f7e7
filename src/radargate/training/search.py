"""The search of a rule's weights on a few training examples, where gates would be trained."""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel

from radargate.composition.composing import radar_config, radar_layers
from radargate.composition.config import gate_class
from radargate.data.batches import EncodedRows
from radargate.errors import DataError
from radargate.gates.base import make_options
from radargate.gates.rules.searched import Batch, SearchedRule
from radargate.training.loop import AnswerTrainer, training_arguments
from radargate.training.options import Training

logger = logging.getLogger(__name__)

BATCH = 5  # rows a batch, as LoraHub's own runs have it


def place_weights(model: PeftModel, weights: Mapping[str, float]) -> None:
    """Set the weights of a composition's rule everywhere, from expert → weight."""
    for layer in radar_layers(model):
        if isinstance(gate := layer.gate("default"), SearchedRule):
            gate.place(weights)


@torch.no_grad()
def search_weights(model: PeftModel, encoded: EncodedRows, *, seed: int, device: str | None = None) -> dict[str, Any]:
    """Search the weights of a composition's rule and put them in place; the same for the same seed.

    Args:
        model: the composition.
        encoded: training examples; a few are drawn by the seed.
        seed: of the draw and the optimiser.
        device: where to run.

    Returns:
        Metrics of the search: weights found, objective, loss, evaluations, seconds.

    Raises:
        DataError: there are fewer rows than the search wants.
    """
    config = radar_config(model)
    kind = gate_class(config.gate)
    options = make_options(kind, config.gate_options)
    rows, collator = encoded.rows, encoded.collator
    if len(rows) < options.examples:
        raise DataError(
            f"the search wants {options.examples} examples and there are {len(rows)} training rows. Give more data, or "
            f"the option examples={len(rows)}."
        )
    chosen = random.Random(seed).sample(rows, options.examples)
    batches = [collator(chosen[i : i + BATCH]) for i in range(0, len(chosen), BATCH)]
    started = time.monotonic()
    model.eval()
    with tempfile.TemporaryDirectory() as work:
        arguments = training_arguments(work, Training(steps=1, batch_size=BATCH, lr=1.0, seed=seed), device=device)
        trainer = AnswerTrainer(model, chosen, arguments, collator)

        def losses(weights: Mapping[str, float]) -> list[Batch]:
            place_weights(model, weights)
            found = []
            for batch in batches:
                inputs: Any = trainer._prepare_inputs(dict(batch))
                tokens = trainer.answer_tokens(inputs)
                found.append(
                    Batch(float(trainer.compute_loss(model, inputs)) * tokens, tokens, len(batch["input_ids"]))
                )
            return found

        try:
            found = kind.search(config.experts, losses, options, seed)
        finally:
            trainer.remove_hooks()
    weights = dict(zip(config.experts, found.weights, strict=True))
    place_weights(model, weights)
    logger.info("weights found: " + ", ".join(f"{name} {weight:+.3f}" for name, weight in weights.items()))
    return {
        "trained_parameters": 0,
        "seconds": time.monotonic() - started,
        "search": {**found.facts(), "weights": weights},
    }
