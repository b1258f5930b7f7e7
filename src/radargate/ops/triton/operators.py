"""The kernels as operators of PyTorch, so that torch.compile sees one node and autograd its gradients.

Every operator takes contiguous tensors of two or three dimensions; `radargate.ops.triton` prepares them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op


def turn(
    y: Tensor | None,
    h: Tensor,
    B: Tensor,
    weights: Tensor,
    rotation: Tensor,
    up: Tensor,
    indices: Tensor | None,
    ranks: Sequence[int],
    bound: bool,
) -> Tensor:
    """y + Σ_s g_s R(a_s Q) v_s in y's dtype, or the sum alone in that of h, B and weights."""
    from radargate.ops.triton import launch

    out = _turned(y, h, B, weights, rotation, up, indices, ranks, bound)
    launch.turn(y, h, B, weights, rotation, up, indices, ranks, bound, out)
    return out


def turn_into(
    y: Tensor,
    h: Tensor,
    B: Tensor,
    weights: Tensor,
    rotation: Tensor,
    up: Tensor,
    indices: Tensor | None,
    ranks: Sequence[int],
    bound: bool,
) -> None:
    """As `turn`, into y itself; without gradients."""
    from radargate.ops.triton import launch

    launch.turn(y, h, B, weights, rotation, up, indices, ranks, bound, y)


def turn_gradients(
    grad: Tensor,
    h: Tensor,
    B: Tensor,
    weights: Tensor,
    rotation: Tensor,
    up: Tensor,
    indices: Tensor | None,
    ranks: Sequence[int],
    bound: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `turn` to h, the weights, the rotation codes and Q."""
    from radargate.ops.triton import launch

    return launch.turn_gradients(grad.contiguous(), h, B, weights, rotation, up, indices, ranks, bound)


def rotation_codes(
    h: Tensor,
    B: Tensor,
    total: Tensor | None,
    down: Tensor,
    indices: Tensor | None,
    ranks: Sequence[int],
    unit: bool,
    others: float,
) -> tuple[Tensor, Tensor]:
    """Rotation codes [tokens, k, r_a] in float32, and scales [tokens, k, 3] (without ``unit`` [0]) for the gradients."""
    from radargate.ops.triton import launch

    return launch.rotation_codes(h, B, total, down, indices, ranks, unit, others)


def rotation_codes_gradients(
    grad: Tensor,
    h: Tensor,
    B: Tensor,
    total: Tensor | None,
    down: Tensor,
    indices: Tensor | None,
    code: Tensor,
    scales: Tensor,
    ranks: Sequence[int],
    unit: bool,
    others: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `rotation_codes` to h, P and the total (empty without one)."""
    from radargate.ops.triton import launch

    return launch.rotation_codes_gradients(
        grad.contiguous(), h, B, total, down, indices, code, scales, ranks, unit, others
    )


def _turned(y: Tensor | None, h: Tensor, B: Tensor, weights: Tensor, *_: Any) -> Tensor:
    if y is not None:
        return torch.empty_like(y)
    return h.new_empty(
        h.shape[0], B.shape[1], dtype=functools.reduce(torch.promote_types, (h.dtype, B.dtype, weights.dtype))
    )


def _like_gradients(
    grad: Tensor, h: Tensor, B: Tensor, weights: Tensor, rotation: Tensor, up: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return torch.empty_like(h), torch.empty_like(weights), torch.empty_like(rotation), torch.empty_like(up)


def _like_codes(
    h: Tensor,
    B: Tensor,
    total: Tensor | None,
    down: Tensor,
    indices: Tensor | None,
    ranks: Sequence[int],
    unit: bool,
    others: float,
) -> tuple[Tensor, Tensor]:
    slots = len(ranks) if indices is None else indices.shape[1]
    float32 = functools.partial(h.new_empty, dtype=torch.float32)
    return float32(h.shape[0], slots, down.shape[1]), float32((h.shape[0], slots, 3) if unit else (0,))


def _like_codes_gradients(
    grad: Tensor, h: Tensor, B: Tensor, total: Tensor | None, down: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    missing = h.new_empty(0, dtype=torch.float32)
    return torch.empty_like(h), torch.empty_like(down), missing if total is None else torch.empty_like(total)


def _keep_turn(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[1:7])
    ctx.options, ctx.adds = inputs[7:], inputs[0] is not None


def _turn_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    to_y = grad if ctx.adds and ctx.needs_input_grad[0] else None
    if not any(ctx.needs_input_grad[1:6]):
        return to_y, *(None,) * 8
    to_h, to_weights, to_rotation, to_up = turn_gradients_op(grad, *ctx.saved_tensors, *ctx.options)
    return to_y, to_h, None, to_weights, to_rotation, to_up, None, None, None


def _keep_codes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    h, B, total, down, indices, *options = inputs
    ctx.save_for_backward(h, B, total, down, indices, *output)
    ctx.options = options


def _codes_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    to_h, to_down, to_total = rotation_codes_gradients_op(grad, *ctx.saved_tensors, *ctx.options)
    return to_h, None, to_total if ctx.saved_tensors[2] is not None else None, to_down, None, None, None, None


TURNS = "Tensor h, Tensor B, Tensor weights, Tensor rotation, Tensor up, Tensor? indices, int[] ranks, bool bound"
RELATES = "Tensor h, Tensor B, Tensor? total, Tensor down, Tensor? indices"
OPTIONS = "int[] ranks, bool unit, float others"
turn_op = custom_op("radargate::turn", turn, mutates_args=(), schema=f"(Tensor? y, {TURNS}) -> Tensor")
turn_into_op = custom_op("radargate::turn_into", turn_into, mutates_args={"y"}, schema=f"(Tensor(a!) y, {TURNS}) -> ()")
turn_gradients_op = custom_op(
    "radargate::turn_gradients",
    turn_gradients,
    mutates_args=(),
    schema=f"(Tensor grad, {TURNS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
rotation_codes_op = custom_op(
    "radargate::rotation_codes", rotation_codes, mutates_args=(), schema=f"({RELATES}, {OPTIONS}) -> (Tensor, Tensor)"
)
rotation_codes_gradients_op = custom_op(
    "radargate::rotation_codes_gradients",
    rotation_codes_gradients,
    mutates_args=(),
    schema=f"(Tensor grad, {RELATES}, Tensor code, Tensor scales, {OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
turn_op.register_fake(_turned)
turn_into_op.register_fake(lambda *_: None)
turn_gradients_op.register_fake(_like_gradients)
rotation_codes_op.register_fake(_like_codes)
rotation_codes_gradients_op.register_fake(_like_codes_gradients)
turn_op.register_autograd(_turn_backward, setup_context=_keep_turn)
rotation_codes_op.register_autograd(_codes_backward, setup_context=_keep_codes)
