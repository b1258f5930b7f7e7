"""What the experts of one site put out for given inputs, before and after a trained gate turns them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from radargate import ops
from radargate.composition.layer import RadarLayer
from radargate.ops.turning import turn_pairs

TOKENS = 64  # of each row and site, evenly spaced


@dataclass(frozen=True)
class Outputs:
    """Outputs of all experts of a site.

    Attributes:
        plain: v [tokens, n, d].
        turned: ṽ [tokens, n, d]; the same as ``plain`` where the gate turns nothing.
        angle: mean absolute angle in radians, None where the gate turns nothing.
    """

    plain: Tensor
    turned: Tensor
    angle: float | None


def outputs(layer: RadarLayer, x: Tensor) -> Outputs:
    """Every expert's output for x [tokens, d_in], whatever the gate would choose."""
    before, layer.dense = layer.dense, True
    try:
        gated = layer.gated(x, "default")
    finally:
        layer.dense = before
    codes = gated.codes
    if codes.ranks is None:
        plain = codes.h @ codes.B
    else:
        parts = zip(codes.h.split(list(codes.ranks), -1), codes.B.split(list(codes.ranks)), strict=True)
        plain = torch.stack([h @ B for h, B in parts], -2)
    if gated.turn is None:
        return Outputs(plain, plain, None)
    angle = ops.angles(gated.turn.codes, gated.turn.up, gated.indices, gated.turn.angle_norm)
    if gated.indices is not None:
        places = gated.indices[..., None].expand(angle.shape)
        angle = torch.zeros_like(angle).scatter(-2, places, angle)
    angle = angle.expand(*plain.shape[:-1], angle.shape[-1])
    turned = turn_pairs(plain.flatten(0, 1), angle.flatten(0, 1)).view_as(plain)
    return Outputs(plain, turned, float(angle.detach().abs().mean()))


def some_tokens(x: Tensor) -> Tensor:
    """At most `TOKENS` tokens of x [..., d], evenly spaced, as [tokens, d]."""
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) <= TOKENS:
        return flat
    return flat[torch.linspace(0, len(flat) - 1, TOKENS, device=flat.device).round().long()]
