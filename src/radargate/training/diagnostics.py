"""What a trained composition does: the mean angle by which it rotates."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from peft import PeftModel

from radargate import ops
from radargate.base_models.offload import device_of
from radargate.composition.composing import radar_layers
from radargate.data.batches import EncodedRows

logger = logging.getLogger(__name__)

LITTLE = 0.02  # radians


@torch.no_grad()
def mean_angle(model: PeftModel, encoded: EncodedRows, count: int) -> float | None:
    """Mean absolute rotation angle over sites, chosen experts and real tokens of the first ``count`` rows, in radians.

    None where nothing rotates.
    """
    sums: list[float] = []
    batch = encoded.collator(encoded.rows[:count])
    keep = batch["attention_mask"].bool()

    def look(layer: Any, args: tuple[Any, ...]) -> None:
        for name in layer.active_adapters:
            gated = layer.gated(args[0], name)
            if gated.turn is not None and args[0].shape[:-1] == keep.shape:
                turn = gated.turn
                angle = ops.angles(turn.codes, turn.up, gated.indices, turn.angle_norm).abs().mean((-1, -2))
                sums.append(float(angle[keep.to(angle.device)].mean()))

    hooks = [layer.register_forward_pre_hook(look) for layer in radar_layers(model)]
    try:
        device = device_of(model)
        model.eval()
        model(**{key: value.to(device) for key, value in batch.items() if key != "position_ids"})
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sums) / len(sums) if sums else None


def log_angle(angle: float | None) -> None:
    """Report a mean angle, and whether it is next to nothing."""
    if angle is not None:
        weak = " The rotation did next to nothing." if angle < LITTLE else ""
        logger.info(f"mean rotation angle: {angle:.3f} rad ({math.degrees(angle):.0f}°).{weak}")
