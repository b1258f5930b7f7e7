"""The update in PyTorch, one chosen slot at a time, each recomputed in the backward pass: what every other form is measured by.

`radargate.ops.low_rank` says which form runs. Tensors are flat here: tokens first, one dtype, one device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from radargate.ops.recompute import recompute
from radargate.ops.reference import unit_rms
from radargate.ops.selection import dense_weights
from radargate.ops.slot_gradients import SlotCode, SlotTurn, cut_off, make_slot
from radargate.ops.turning import angle, project, turn_pairs


def owners(ranks: Sequence[int], device: torch.device | None = None) -> Tensor:
    """The expert each of the R code coordinates belongs to: [R]."""
    if len(set(ranks)) == 1:
        return torch.arange(sum(ranks), device=device) // ranks[0]  # the usual case, without waiting for a GPU
    experts, lengths = torch.arange(len(ranks), device=device), torch.tensor(ranks, device=device)
    return torch.repeat_interleave(experts, lengths, output_size=sum(ranks))


def rotation_codes(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    down: Tensor | None,
    indices: Tensor | None,
    known: Tensor | None,
    rounding: Tensor | None,
    *,
    reference: str,
    angle_norm: str,
    divided: float,
) -> Tensor:
    """Rotation codes [tokens, k, r_a] of all slots.

    Args:
        h: [tokens, R].
        B: [R, d].
        ranks: r_i of each expert.
        down: P, [d, r_a] or [n, d, r_a]; None for the identity.
        indices: [tokens, k], or None for all n.
        known: Σ_j v_j [tokens, d], or None.
        rounding: [tokens], as in `radargate.ops.rotation_codes`.
        reference: ``"all"`` or ``"selected"``.
        angle_norm: as in `radargate.ops.radar`.
        divided: the codes are divided by it.
    """
    owner = owners(ranks, h.device)
    selected, unit = reference == "selected" and indices is not None, angle_norm == "unit"
    # written-out gradients where P is one matrix and nobody traces; and under unit scaling not for a sum over few
    # experts minus one of them, which loses digits that the few alone keep
    matrix = down is not None and down.dim() == 2
    written_out = matrix and not torch.compiler.is_compiling() and not (selected and unit)
    if known is None and (not unit or written_out):
        known = (_chosen_codes(h, owner, indices) if selected and indices is not None else h) @ B

    def rest_mask(slot: int) -> Tensor:
        own = _slot_mask(owner, indices, slot)
        rest = ~own if not selected or indices is None else chosen_mask(owner, indices) & ~own
        return rest.to(h.dtype)

    def code(slot: int, h: Tensor, B: Tensor, known: Tensor | None, down: Tensor | None) -> Tensor:
        v = expand(h, B, ranks, owner, indices, slot)
        # unit scaling would blow up the rounding of total - v where the others are (nearly) silent, so
        # there the reference comes from the others' own codes, or is cut off at that rounding
        other = (h * rest_mask(slot)) @ B if known is None else known - v
        if unit:
            if rounding is not None:
                other = cut_off(other, rounding)
            elif known is not None:
                other = _cut_rounding(other, known, v)
            source = unit_rms(v) * unit_rms(other)
        else:
            source = v * other if divided == 1 else v * other / divided
        return source if down is None else project(source, down, indices, slot)

    def one(slot: int) -> Tensor:
        if not written_out:
            return recompute(functools.partial(code, slot), h, B, known, down)
        rest = rest_mask(slot).expand(h.shape) if unit else None
        written = SlotCode.apply(h, B, known, down, rest, rounding, make_slot(ranks, owner, indices, slot, h.dtype))
        return written if unit or divided == 1 else written / divided

    slots = len(ranks) if indices is None else indices.shape[-1]
    return torch.stack([one(slot) for slot in range(slots)], dim=1)


def mix(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    weights: Tensor,
    indices: Tensor | None,
    rotation: Tensor | None,
    up: Tensor | None,
    *,
    angle_norm: str,
) -> Tensor:
    """The update [tokens, d]; one product with the stacked B where nothing turns. Arguments as in `radargate.ops.mix`, flat."""
    owner = owners(ranks, h.device)
    weighted = h * dense_weights(weights, indices, len(ranks))[:, owner]
    if rotation is None or up is None:
        return weighted @ B

    def turned(slot: int, h: Tensor, B: Tensor, code: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        v = expand(h, B, ranks, owner, indices, slot)
        return turn_pairs(v, angle(code, up, indices, slot, angle_norm)) * weight.unsqueeze(-1)

    def one(slot: int) -> Tensor:
        code = rotation[:, slot if rotation.shape[1] > 1 else 0]
        if up.dim() == 2 and not torch.compiler.is_compiling():
            place = make_slot(ranks, owner, indices, slot, h.dtype)
            return SlotTurn.apply(weighted, B, code, up, place, angle_norm == "tanh")
        return recompute(functools.partial(turned, slot), h, B, code, up, weights[:, slot])

    return functools.reduce(torch.add, [one(slot) for slot in range(weights.shape[-1])])


def _slot_mask(owner: Tensor, indices: Tensor | None, slot: int) -> Tensor:
    return owner == (slot if indices is None else indices[:, slot : slot + 1])


def chosen_mask(owner: Tensor, indices: Tensor) -> Tensor:
    """Which code coordinates belong to chosen experts: [..., R]."""
    mask = owner == indices[..., :1]
    for slot in range(1, indices.shape[-1]):
        mask = mask | (owner == indices[..., slot : slot + 1])
    return mask


def _chosen_codes(h: Tensor, owner: Tensor, indices: Tensor) -> Tensor:
    return h * chosen_mask(owner, indices).to(h.dtype)


def expand(h: Tensor, B: Tensor, ranks: Sequence[int], owner: Tensor, indices: Tensor | None, slot: int) -> Tensor:
    """v of the expert in one slot: [tokens, d]."""
    if indices is None:
        start = sum(ranks[:slot])
        return h[:, start : start + ranks[slot]] @ B[start : start + ranks[slot]]
    return (h * _slot_mask(owner, indices, slot).to(h.dtype)) @ B


def _cut_rounding(other: Tensor, total: Tensor, v: Tensor) -> Tensor:
    floor = 32 * torch.finfo(other.dtype).eps
    scale = total.square().sum(-1, keepdim=True) + v.square().sum(-1, keepdim=True)
    return other * (other.square().sum(-1, keepdim=True) > floor**2 * scale)
