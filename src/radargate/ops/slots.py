"""One chosen slot at a time, with written-out gradients: beside the inputs only a few numbers a token are kept for the backward pass.

The general forms in `radargate.ops.codes` define these functions; here the common case (one P and Q a site) saves
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
    def forward(ctx: Any, h: Tensor, B: Tensor, total: Tensor, down: Tensor, rest: Tensor | None,
                rounding: Tensor | None, slot: Slot) -> Tensor:  # fmt: skip
        """[tokens, r_a]; ``rest`` [tokens, R] of 0 and 1 asks for unit scaling."""
        ctx.slot = slot
        v = slot.expand(h, B)
        if rest is None:
            ctx.save_for_backward(h, B, total, down)
            return (v * (total - v)) @ down
        norm = torch.linalg.vector_norm
        other, small, v_norm = _reference(total, v, rounding), None, norm(v, dim=-1)
        other_norm = norm(other, dim=-1)
        if rounding is None:
            small = other_norm < 0.5 * v_norm
            if bool(small.any()):
                other[small] = (h[small] * rest[small]) @ B
                other_norm[small] = norm(other[small], dim=-1)
            else:
                small = None
        by_v, by_other = (_inverse_rms(size, v.shape[-1]) for size in (v_norm, other_norm))
        code = (other.mul_(v) @ down) * (by_v * by_other)
        ctx.save_for_backward(h, B, total, down, rest, rounding, small, code, by_v, by_other)
        return code

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients to h, B, total and P."""
        h, B, total, down, *scaling = ctx.saved_tensors
        rest, rounding, small, code, by_v, by_other = scaling or [None] * 6
        slot, d = ctx.slot, B.shape[-1]
        v = slot.expand(h, B)
        other = _reference(total, v, rounding)
        if small is not None:
            other[small] = (h[small] * rest[small]) @ B
        scaled = grad if rest is None else grad * (by_v * by_other)
        d_down = (
            (scaled.T @ (v * other)).T if ctx.needs_input_grad[3] else None
        )  # as MKL likes it: the other way takes 4 times as long
        g = scaled @ down.T
        dv, do = g * other, g.mul_(v)
        if rest is not None:
            # code = r_v r_o · raw with r = (mean square)^-1/2, so dr/dv = -r³ v / d
            reach = (grad * code).sum(-1, keepdim=True) / d
            dv.addcmul_(v, reach * by_v.square(), value=-1)
            do.addcmul_(other, reach * by_other.square(), value=-1)
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
        back = _pairs(grad, half) * _phase(alpha).conj()
        v = slot.expand(h, B)
        d_alpha = (_pairs(v, half).conj() * back).imag
        if ctx.bound:
            d_alpha = d_alpha * (1 - (alpha / math.pi).square())
        dh, dB = slot.gradients(h, B, _join(back, grad), ctx.needs_input_grad[1])
        d_up = code.T @ d_alpha if ctx.needs_input_grad[3] else None
        return dh, dB, d_alpha @ up.T, d_up, None, None


def cut_off(other: Tensor, rounding: Tensor) -> Tensor:
    """References [tokens, d], zero where they are no longer than their rounding [tokens]."""
    return other * (other.square().sum(-1, keepdim=True) > rounding.square().unsqueeze(-1))


def _reference(total: Tensor, v: Tensor, rounding: Tensor | None) -> Tensor:
    """The sum over the others."""
    return total - v if rounding is None else cut_off(total - v, rounding)


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


def _inverse_rms(norm: Tensor, d: int) -> Tensor:
    """1 / (root mean square) [tokens, 1] of vectors that long; 0 for silence."""
    live = norm > 0
    return torch.where(live, d**0.5 / torch.where(live, norm, 1.0), 0.0).unsqueeze(-1)
