"""One chosen slot at a time, with written-out gradients: nothing but the inputs is kept for the backward pass.

The general forms in `radargate.ops.low_rank` define these functions; here the common case (one P and Q a site) saves
about half the passes over memory that differentiating the recomputed general form would take.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# from so many experts, and tokens an expert, on, a CPU is faster with each expert's tokens together than with zeros for
# all other experts (processor time: 0.63 to 0.65 of it at n = 40, 512 tokens; 1.3 at 64 tokens)
GROUPED_EXPERTS, GROUPED_TOKENS = 12, 6


@dataclass(frozen=True)
class Slot:
    """Which expert a slot holds.

    Attributes:
        own: [tokens, R] of 0 and 1 over the chosen expert's codes; None where ``groups`` says it.
        groups: which tokens chose an expert (None: all of them), and its code coordinates.
    """

    own: Tensor | None
    groups: tuple[tuple[Tensor | None, slice], ...] = ()

    def expand(self, h: Tensor, B: Tensor) -> Tensor:
        """v of the slot's expert: [tokens, d]."""
        if self.own is not None:
            return (h * self.own) @ B
        v = h.new_empty(h.shape[0], B.shape[-1])
        for where, span in self.groups:
            if where is None:
                return h[:, span] @ B[span]
            v[where] = h[where, span] @ B[span]
        return v

    def gradients(self, h: Tensor, B: Tensor, dv: Tensor, need_B: bool) -> tuple[Tensor, Tensor | None]:
        """Gradients to h and B of `expand`."""
        if self.own is not None:
            return (dv @ B.T) * self.own, (h * self.own).T @ dv if need_B else None
        dh, dB = torch.zeros_like(h), torch.zeros_like(B) if need_B else None
        for where, span in self.groups:
            tokens = slice(None) if where is None else where
            dh[tokens, span] = dv[tokens] @ B[span].T
            if dB is not None:
                dB[span] = h[tokens, span].T @ dv[tokens]
        return dh, dB


class SlotCode(torch.autograd.Function):
    """(v ⊙ ref) P of one slot; ``unit`` scales v and ref to unit RMS.

    The reference is ``total - v``. Under ``unit``, tokens whose reference is small beside v get it from the sum over
    the codes in ``rest`` instead: there the difference is mostly rounding, which unit scaling would blow up. With
    ``rounding`` [tokens] those codes are not there, and a reference no longer than that counts as none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        B: Tensor,
        total: Tensor,
        down: Tensor,
        rest: Tensor | None,
        rounding: Tensor | None,
        slot: Slot,
    ) -> Tensor:
        """[tokens, r_a]; ``rest`` [tokens, R] of 0 and 1 asks for unit scaling."""
        ctx.save_for_backward(h, B, total, down, rest, rounding)
        ctx.slot = slot
        v = slot.expand(h, B)
        other, _ = _reference(h, B, total, v, rest, rounding)
        code = (v * other) @ down
        return code if rest is None else code * (_inverse_rms(v) * _inverse_rms(other))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients to h, B, total and P."""
        h, B, total, down, rest, rounding = ctx.saved_tensors
        slot, d = ctx.slot, B.shape[-1]
        v = slot.expand(h, B)
        other, small = _reference(h, B, total, v, rest, rounding)
        product = v * other
        scaled = grad
        if rest is not None:
            r_v, r_o = _inverse_rms(v), _inverse_rms(other)
            scaled = grad * (r_v * r_o)
        g = scaled @ down.T
        d_down = product.T @ scaled if ctx.needs_input_grad[3] else None
        dv, do = g * other, g.mul_(v)
        if rest is not None:
            # code = r_v r_o · raw with r = (mean square)^-1/2, so dr/dv = -r³ v / d
            reach = (scaled * (product @ down)).sum(-1, keepdim=True) / d
            dv.addcmul_(v, reach * r_v.square(), value=-1)
            do.addcmul_(other, reach * r_o.square(), value=-1)
        extra = None
        if small is not None:
            extra, do = do[small], do.masked_fill(small.unsqueeze(-1), 0)
        dv -= do
        need_B = ctx.needs_input_grad[1]
        dh, dB = slot.gradients(h, B, dv, need_B)
        if extra is not None:
            dh[small] += (extra @ B.T) * rest[small]
            if dB is not None:
                dB += (h[small] * rest[small]).T @ extra
        return dh, dB, do, d_down, None, None, None


class SlotTurn(torch.autograd.Function):
    """R(code Q) v of one slot, pairs turned as complex numbers; ``bound`` keeps angles within ±π by tanh.

    Weights belong into ``h`` (turning is linear in v), where they cost r numbers a token instead of d.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, B: Tensor, code: Tensor, up: Tensor, slot: Slot, bound: bool) -> Tensor:
        """[tokens, d]."""
        ctx.save_for_backward(h, B, code, up)
        ctx.slot, ctx.bound = slot, bound
        v = slot.expand(h, B)
        return _join(_pairs(v, up.shape[-1]) * _phase(_bounded(code @ up, bound)), v)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients to h, B, code and Q."""
        h, B, code, up = ctx.saved_tensors
        slot, half = ctx.slot, up.shape[-1]
        alpha = _bounded(code @ up, ctx.bound)
        # turning the gradient back gives dv; its part across v is what a further turn changes
        back = _pairs(grad, half) * _phase(-alpha)
        v = slot.expand(h, B)
        even, odd = _pairs(v, half).real, _pairs(v, half).imag
        d_alpha = even * back.imag - odd * back.real
        if ctx.bound:
            d_alpha = d_alpha * (1 - (alpha / math.pi).square())
        dh, dB = slot.gradients(h, B, _join(back, grad), ctx.needs_input_grad[1])
        d_up = code.T @ d_alpha if ctx.needs_input_grad[3] else None
        return dh, dB, d_alpha @ up.T, d_up, None, None


def cut_off(other: Tensor, rounding: Tensor) -> Tensor:
    """References [tokens, d], zero where they are no longer than their rounding [tokens]."""
    return other * (other.square().sum(-1, keepdim=True) > rounding.square().unsqueeze(-1))


def _reference(
    h: Tensor, B: Tensor, total: Tensor, v: Tensor, rest: Tensor | None, rounding: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The sum over the others, and which tokens got it from their own codes (None: none did)."""
    other = total - v
    if rest is None:
        return other, None
    if rounding is not None:
        return cut_off(other, rounding), None
    norm = torch.linalg.vector_norm
    small = norm(other, dim=-1) < 0.5 * norm(v, dim=-1)
    if not bool(small.any()):
        return other, None
    other[small] = (h[small] * rest[small]) @ B
    return other, small


def make_slot(ranks: Sequence[int], owner: Tensor, indices: Tensor | None, index: int, dtype: torch.dtype) -> Slot:
    """The slot ``index`` of a selection; without one, expert ``index`` for every token."""
    if indices is None:
        start = sum(ranks[:index])
        return Slot(None, ((None, slice(start, start + ranks[index])),))
    chosen = indices[:, index]
    few = len(ranks) < GROUPED_EXPERTS or len(chosen) < GROUPED_TOKENS * len(ranks)
    if few or owner.device.type != "cpu":
        return Slot((owner == chosen.unsqueeze(-1)).to(dtype))
    spans = [slice(end - rank, end) for end, rank in zip(itertools.accumulate(ranks), ranks, strict=True)]
    tokens = chosen.argsort().split(torch.bincount(chosen, minlength=len(ranks)).tolist())
    return Slot(None, tuple((where, span) for where, span in zip(tokens, spans, strict=True) if len(where)))


def _pairs(v: Tensor, half: int) -> Tensor:
    return torch.view_as_complex(v[:, : 2 * half].contiguous().view(v.shape[0], half, 2))


def _join(pairs: Tensor, v: Tensor) -> Tensor:
    flat = torch.view_as_real(pairs.resolve_conj()).reshape(v.shape[0], 2 * pairs.shape[-1])
    return flat if flat.shape[-1] == v.shape[-1] else torch.cat([flat, v[:, flat.shape[-1] :]], -1)


def _phase(alpha: Tensor) -> Tensor:
    return torch.complex(alpha.cos(), alpha.sin())


def _bounded(alpha: Tensor, bound: bool) -> Tensor:
    return math.pi * torch.tanh(alpha / math.pi) if bound else alpha


def _inverse_rms(v: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    live = norm > 0
    return torch.where(live, v.shape[-1] ** 0.5 / torch.where(live, norm, 1.0), 0.0)
