"""`rotation_codes`, `mix` and `chosen_codes` on CPU in compiled C++: all slots in one pass over the tokens, nothing of width d kept.

`radargate.ops.low_rank` defines the results and does the same work in PyTorch where this cannot: no compiler, another
device, tracing, one P or Q per expert.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from radargate.errors import BackendError, OptionError
from radargate.ops.cpp import build
from radargate.ops.cpp.calls import Call


def available() -> tuple[bool, str]:
    """Whether the compiled operations can be used here, and why; builds them where that was never done."""
    if os.environ.get("RADARGATE_FUSED") == "0":
        return False, "RADARGATE_FUSED=0"
    library, reason = build.library()
    return library is not None, reason


def applies(h: Tensor, B: Tensor, *others: Tensor | None, indices: Tensor | None = None) -> bool:
    """Whether the compiled operations can take these tensors."""
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or h.dtype not in (torch.float32, torch.float64)
        or B.shape[0] == 0
    ):
        return False
    for t in (h, B, *others):
        if t is not None and not (t.dtype == h.dtype and _plain(t)):
            return False
    if indices is not None and not (indices.dtype == torch.int64 and _plain(indices)):
        return False
    return available()[0]


def chosen_codes(x: Tensor, A: Tensor, scale: Tensor, ranks: Sequence[int], indices: Tensor) -> Tensor:
    """Codes (x A_i) ⊙ σ of the chosen experts, zeros for the others: [tokens, R]; gradients to x only.

    Args:
        x: [tokens, d_in].
        A: [R, d_in].
        scale: σ, [R].
        ranks: r_i of each expert.
        indices: [tokens, k].
    """
    return _apply(_ChosenCodes, x, A, scale, indices, tuple(ranks))


def rotation_codes(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    down: Tensor,
    indices: Tensor | None,
    total: Tensor | None,
    rounding: Tensor | None = None,
    *,
    unit: bool,
    selected: bool,
    others: float,
) -> Tensor:
    """Rotation codes [tokens, k, r_a] of all slots.

    Args:
        h: [tokens, R].
        B: [R, d].
        ranks: r_i of each expert.
        down: P, [d, r_a].
        indices: [tokens, k], or None for all n.
        total: Σ_j v_j [tokens, d] if known.
        rounding: [tokens], where h holds the chosen experts' codes only: the length at which total − v is rounding.
        unit: scale v and its reference to unit RMS.
        selected: the reference is the sum over the other chosen experts.
        others: the codes are divided by it.
    """
    options = {"unit": unit, "selected": selected and indices is not None, "others": float(others)}
    return _apply(_RotationCodes, h, B, down, total, rounding, indices, tuple(ranks), options)


def mix(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    weights: Tensor,
    indices: Tensor | None,
    rotation: Tensor,
    up: Tensor,
    *,
    bound: bool,
    onto: Tensor | None = None,
) -> Tensor:
    """The update Σ_i g_i R(a_i Q) v_i: [tokens, d].

    Args:
        h: [tokens, R].
        B: [R, d].
        ranks: r_i of each expert.
        weights: g, [tokens, k].
        indices: [tokens, k], or None for all n.
        rotation: [tokens, k, r_a].
        up: Q, [r_a, d // 2].
        bound: keep angles within ±π by tanh.
        onto: [tokens, d] to which the update is added.
    """
    return _apply(_Mix, h, B, weights, rotation, up, onto, indices, tuple(ranks), {"bound": bound})


@functools.lru_cache(maxsize=4096)
def starts(ranks: tuple[int, ...]) -> Any:
    """Where each expert's codes begin, and their end."""
    return (ctypes.c_int64 * (len(ranks) + 1))(*accumulate(ranks, initial=0))


def _run(
    operation: str,
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    slots: int,
    rank: int,
    indices: Tensor | None,
    arrays: Mapping[str, Tensor | None],
    **options: float,
) -> None:
    """Call a compiled operation on contiguous tensors.

    Raises:
        OptionError: an index that names no expert.
        BackendError: there is no library, or no memory.
    """
    library, reason = build.library()
    if library is None:
        raise BackendError(f"The compiled operations are not there: {reason}. Use radargate.ops instead.")
    begin = starts(tuple(ranks))
    call = Call(
        tokens=h.shape[0],
        experts=len(ranks),
        slots=slots,
        width=B.shape[1],
        codes=B.shape[0],
        rank=rank,
        wide=h.dtype == torch.float64,
        threads=torch.get_num_threads(),
        starts=ctypes.addressof(begin),
        indices=None if indices is None else indices.data_ptr(),
        h=h.data_ptr(),
        B=B.data_ptr(),
        **options,
        **{name: t.data_ptr() for name, t in arrays.items() if t is not None},
    )
    outcome = getattr(library, operation)(ctypes.byref(call))
    if outcome == 1:
        raise OptionError(f"indices name experts outside 0 to {len(ranks) - 1}.")
    if outcome:
        raise BackendError(f"Not enough memory for {operation} on {h.shape[0]} tokens. Use shorter batches.")


def _plain(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.layout == torch.strided and type(t) in (Tensor, torch.nn.Parameter)


def _apply(function: Any, *args: Any) -> Tensor:
    args = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in args)
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        return function.apply(*args)
    return function.compute(*args)[0]


class _ChosenCodes(torch.autograd.Function):
    """Gradient to x."""

    @staticmethod
    def compute(x: Tensor, A: Tensor, scale: Tensor, indices: Tensor, ranks: tuple[int, ...]) -> tuple[Tensor]:
        h = x.new_zeros(x.shape[0], A.shape[0])
        _run("radargate_shrink", x, A, ranks, indices.shape[1], 0, indices, {"weights": scale, "code": h})
        return (h,)

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, scale: Tensor, indices: Tensor, ranks: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(A, scale, indices)
        ctx.ranks = ranks
        return _ChosenCodes.compute(x, A, scale, indices, ranks)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        A, scale, indices = ctx.saved_tensors
        d_x = grad.new_empty(grad.shape[0], A.shape[1])
        arrays = {"weights": scale, "grad": grad.contiguous(), "d_h": d_x}
        _run("radargate_shrink", d_x, A, ctx.ranks, indices.shape[1], 0, indices, arrays)
        return d_x, None, None, None, None


class _RotationCodes(torch.autograd.Function):
    """Gradients to h, B, P and the total."""

    @staticmethod
    def compute(
        h: Tensor,
        B: Tensor,
        down: Tensor,
        total: Tensor | None,
        rounding: Tensor | None,
        indices: Tensor | None,
        ranks: tuple[int, ...],
        options: dict[str, Any],
        keep: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        slots = len(ranks) if indices is None else indices.shape[1]
        code = h.new_empty(h.shape[0], slots, down.shape[1])
        scales = h.new_empty(h.shape[0], slots, 3) if keep and options["unit"] else None
        arrays = {"down": down, "total": total, "rounding": rounding, "code": code, "scales": scales}
        _run("radargate_rotation_codes", h, B, ranks, slots, down.shape[1], indices, arrays, **options)
        return code, scales

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        B: Tensor,
        down: Tensor,
        total: Tensor | None,
        rounding: Tensor | None,
        indices: Tensor | None,
        ranks: tuple[int, ...],
        options: dict[str, Any],
    ) -> Tensor:
        code, scales = _RotationCodes.compute(h, B, down, total, rounding, indices, ranks, options, keep=True)
        ctx.save_for_backward(h, B, down, total, indices, code if options["unit"] else None, scales)
        ctx.ranks, ctx.options = ranks, options
        return code

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        h, B, down, total, indices, code, scales = ctx.saved_tensors
        need_h, need_B, need_down, need_total = ctx.needs_input_grad[:4]
        d_h = torch.zeros_like(h) if need_h else None
        d_B = torch.zeros_like(B) if need_B else None
        d_down = torch.zeros_like(down) if need_down else None
        d_total = torch.empty_like(total) if need_total else None
        arrays = {
            "down": down,
            "total": total,
            "code": code,
            "scales": scales,
            "grad": grad.contiguous(),
            "d_h": d_h,
            "d_B": d_B,
            "d_down": d_down,
            "d_total": d_total,
        }
        _run("radargate_rotation_codes", h, B, ctx.ranks, grad.shape[1], grad.shape[2], indices, arrays, **ctx.options)
        return d_h, d_B, d_down, d_total, None, None, None, None


class _Mix(torch.autograd.Function):
    """Gradients to h, B, the weights, the rotation codes, Q, and what the update is added to."""

    @staticmethod
    def compute(
        h: Tensor,
        B: Tensor,
        weights: Tensor,
        rotation: Tensor,
        up: Tensor,
        onto: Tensor | None,
        indices: Tensor | None,
        ranks: tuple[int, ...],
        options: dict[str, Any],
    ) -> tuple[Tensor]:
        update = h.new_empty(h.shape[0], B.shape[1])
        arrays = {"weights": weights, "rotation": rotation, "up": up, "onto": onto, "update": update}
        _run("radargate_mix", h, B, ranks, weights.shape[1], up.shape[0], indices, arrays, **options)
        return (update,)

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        B: Tensor,
        weights: Tensor,
        rotation: Tensor,
        up: Tensor,
        onto: Tensor | None,
        indices: Tensor | None,
        ranks: tuple[int, ...],
        options: dict[str, Any],
    ) -> Tensor:
        ctx.save_for_backward(h, B, weights, rotation, up, indices)
        ctx.ranks, ctx.options = ranks, options
        return _Mix.compute(h, B, weights, rotation, up, onto, indices, ranks, options)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        h, B, weights, rotation, up, indices = ctx.saved_tensors
        need_h, need_B, need_weights, need_rotation, need_up = ctx.needs_input_grad[:5]
        d_h = torch.zeros_like(h) if need_h else None
        d_B = torch.zeros_like(B) if need_B else None
        d_weights = torch.empty_like(weights) if need_weights else None
        d_rotation = torch.empty_like(rotation) if need_rotation else None
        d_up = torch.zeros_like(up) if need_up else None
        arrays = {
            "weights": weights,
            "rotation": rotation,
            "up": up,
            "grad": grad.contiguous(),
            "d_h": d_h,
            "d_B": d_B,
            "d_weights": d_weights,
            "d_rotation": d_rotation,
            "d_up": d_up,
        }
        _run("radargate_mix", h, B, ctx.ranks, weights.shape[1], up.shape[0], indices, arrays, **ctx.options)
        return d_h, d_B, d_weights, d_rotation, d_up, grad if ctx.needs_input_grad[5] else None, None, None, None
