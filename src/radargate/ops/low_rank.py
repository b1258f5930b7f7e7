"""The same update on low-rank codes, exactly: no tensor of tokens × experts × width exists.

``codes → gate → mix``. The codes h = (x A) ⊙ σ hold everything: v_i = h_i B_i. Only chosen experts are expanded,
and what a gate needs to know about the others is one product, Σ_j v_j = h B. Each chosen slot is recomputed
in the backward pass instead of being stored.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from radargate.ops import cpp as fused
from radargate.ops import decode as few
from radargate.ops import shared_basis as dense
from radargate.ops import triton as gpu
from radargate.ops.dtypes import result_dtype
from radargate.ops.recompute import recompute, tracing
from radargate.ops.reference import unit_rms
from radargate.ops.selection import dense_weights
from radargate.ops.slot_gradients import SlotCode, SlotTurn, cut_off, make_slot
from radargate.ops.turning import angle, project, turn_pairs

# a product with all experts' B costs as much as the chosen ones one by one where they are one in so many
FEW = 5


def codes(x: Tensor, A: Tensor, scale: Tensor) -> Tensor:
    """h = (x A) ⊙ σ: [..., R] for x [..., d_in], A [R, d_in] and scale [R]."""
    h = F.linear(x, A)
    return h.mul_(scale) if h.dtype == scale.dtype else h * scale


def owners(ranks: Sequence[int], device: torch.device | None = None) -> Tensor:
    """The expert each of the R code coordinates belongs to: [R]."""
    if len(set(ranks)) == 1:
        return torch.arange(sum(ranks), device=device) // ranks[0]  # the usual case, without waiting for a GPU
    experts, lengths = torch.arange(len(ranks), device=device), torch.tensor(ranks, device=device)
    return torch.repeat_interleave(experts, lengths, output_size=sum(ranks))


def input_codes(x: Tensor, down: Tensor | None, angle_norm: str = "none") -> Tensor:
    """Rotation codes from the input, x P, one for all experts: [..., 1, r_a]."""
    source = unit_rms(x) if angle_norm == "unit" else x
    return (source if down is None else source @ down).unsqueeze(-2)


def rotation_codes(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int] | None,
    down: Tensor | None,
    *,
    indices: Tensor | None = None,
    reference: str = "all",
    angle_norm: str = "none",
    total: Tensor | None = None,
    rounding: Tensor | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Rotation codes a_i = (v_i ⊙ Σ_{j≠i} v_j) P of the chosen experts.

    Args:
        h: codes [..., R].
        B: [R, d], the experts' B_i stacked.
        ranks: r_i of each expert, summing to R; None for dense codes h [..., n, q] over a basis B [q, d].
        down: P, [d, r_a] or [n, d, r_a]; None for the identity (full θ_r).
        indices: [..., k] chosen experts; None for all n in order.
        reference: ``"all"`` or ``"selected"``.
        angle_norm: as in `radargate.ops.radar`; ``"tanh"`` acts later, in `mix`.
        total: Σ_j v_j [..., d] if known (merged route: ``x @ merged(A, B, scale)``); only for ``reference="all"``.
        rounding: where h holds the chosen experts' codes only (`chosen_codes`): the length [...] at which total − v is
            rounding. Under unit scaling such a reference counts as none, as the others' own codes are not there.
        scale: the codes are multiplied by it; cheaper than P, which is larger.
        backend: ``"auto"``; ``"codes"`` keeps away from Triton, ``"triton"`` insists on it.

    Returns:
        [..., k, r_a]; in float32 from Triton, else in the inputs' dtype.

    Raises:
        BackendError: Triton was asked for and cannot do this.

    Source: Eq. 8, 20; design of the routes in ``docs/method.md``.
    """
    if ranks is None:
        gpu.serves(backend, h, B, down, lacking=gpu.DENSE_CODES)
        code = dense.rotation_codes(h, B, down, indices=indices, reference=reference, angle_norm=angle_norm)
        return code if scale == 1 else code * scale
    shape, h = h.shape[:-1], h.reshape(-1, h.shape[-1])
    if indices is not None:
        indices = indices.reshape(-1, indices.shape[-1])
    if reference == "selected":
        total = None
    slots = len(ranks) if indices is None else indices.shape[-1]
    others = max((slots if reference == "selected" else len(ranks)) - 1, 1)
    divided = others if angle_norm == "mean" else 1
    known = None if total is None else total.reshape(-1, total.shape[-1])
    lacking = None
    if known is None or angle_norm != "unit":
        rounding = None  # nothing is cut off
    elif rounding is not None:
        rounding, lacking = rounding.reshape(-1), "the kernels want every expert's codes"
    if reference == "selected" and indices is not None:
        lacking = "the kernels relate to all others, not to the selected ones"
    if gpu.serves(backend, h, B, down, known, indices=indices, lacking=lacking):
        assert down is not None
        unit = angle_norm == "unit"
        divisor = 1 if unit else divided / scale
        code = gpu.rotation_codes(h, B, ranks, down, indices, known, unit=unit, others=divisor)
        code = code * scale if unit and scale != 1 else code
        return code.view(*shape, *code.shape[1:])
    h, B, down, known, rounding = alike(h, B, down, known, rounding)
    if down is not None and down.dim() == 2:
        unit, selected = angle_norm == "unit", reference == "selected"
        found: Tensor | None = None
        if fused.applies(h, B, down, known, rounding, indices=indices):
            found = fused.rotation_codes(
                h, B, ranks, down, indices, known, rounding, unit=unit, selected=selected, others=divided / scale
            )
        elif rounding is None and few.applies(h.shape[0] * slots, h, B, down, known):
            found = few.rotation_codes(h, B, ranks, down, indices, unit=unit, selected=selected, factor=scale / divided)
        if found is not None:
            return found.view(*shape, *found.shape[1:])
    owner = owners(ranks, h.device)
    # under unit scaling, a sum over few experts minus one of them loses digits that the few alone keep
    by_few = reference == "selected" and indices is not None and angle_norm == "unit"
    written_out = down is not None and down.dim() == 2 and not tracing() and not by_few
    if known is None and (angle_norm != "unit" or written_out):
        known = (h if reference == "all" or indices is None else _chosen_codes(h, owner, indices)) @ B

    def rest_mask(slot: int) -> Tensor:
        everyone = None if reference == "all" or indices is None else chosen_mask(owner, indices)
        own = _slot_mask(owner, indices, slot)
        return (~own if everyone is None else everyone & ~own).to(h.dtype)

    def direct(slot: int) -> Tensor:
        if written_out:
            rest = rest_mask(slot).expand(h.shape) if angle_norm == "unit" else None
            written = SlotCode.apply(h, B, known, down, rest, rounding, make_slot(ranks, owner, indices, slot, h.dtype))
            return written / others if angle_norm == "mean" else written

        def code(h: Tensor, B: Tensor, known: Tensor | None, down: Tensor | None) -> Tensor:
            v = _expand(h, B, ranks, owner, indices, slot)
            # unit scaling would blow up the rounding of total - v where the others are (nearly) silent, so
            # there the reference comes from the others' own codes, or is cut off at that rounding
            other = (h * rest_mask(slot)) @ B if known is None else known - v
            if angle_norm == "unit":
                if rounding is not None:
                    other = cut_off(other, rounding)
                elif known is not None:
                    other = _cut_rounding(other, known, v)
                source = unit_rms(v) * unit_rms(other)
            else:
                source = v * other / others if angle_norm == "mean" else v * other
            return source if down is None else project(source, down, indices, slot)

        return recompute(code, h, B, known, down)

    result = torch.stack([direct(slot) for slot in range(slots)], dim=1)
    result = result if scale == 1 else result * scale
    return result.view(*shape, *result.shape[1:])


def merged(A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
    """M = Σ_j A_j B_j s_j: [d_in, d], so that Σ_j v_j = x M whatever the number of experts."""
    return (A * scale.unsqueeze(-1)).T @ B


def mix(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int] | None,
    weights: Tensor,
    indices: Tensor | None = None,
    rotation: Tensor | None = None,
    up: Tensor | None = None,
    *,
    angle_norm: str = "none",
    onto: Tensor | None = None,
    in_place: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The update Σ_i g_i ṽ_i over the chosen experts, added to the base's output where that is given: [..., d].

    Args:
        h: codes [..., R].
        B: [R, d].
        ranks: r_i of each expert; None for dense codes h [..., n, q] over a basis B [q, d].
        weights: g, [..., k].
        indices: [..., k] chosen experts; None for all n in order.
        rotation: rotation codes [..., k or 1, r_a], from `rotation_codes` or anywhere else; None turns nothing.
        up: Q, [r_a, d // 2] or [n, r_a, d // 2]; angles are ``rotation @ up`` in radians.
        angle_norm: ``"tanh"`` bounds the angles to ±π; other values change nothing here.
        onto: y [..., d], to which the update is added.
        in_place: y may be written to, where nothing asks for gradients.
        backend: as in `rotation_codes`.

    Returns:
        In the dtype of ``onto``, or without it in that of h, B and weights.

    Raises:
        BackendError: Triton was asked for and cannot do this.

    Source: Eq. 13, 18.
    """
    shape, k = weights.shape[:-1], weights.shape[-1]
    if ranks is not None and rotation is not None and up is not None and up.dim() == 2 and rotation.shape[-2] != k:
        # one turn for all: the turn of the sum is the sum of the turns
        weighted = h * dense_weights(weights, indices, len(ranks))[..., owners(ranks, h.device)]
        h, ranks, weights, indices = weighted, (B.shape[0],), weights.new_ones(*shape, 1), None
    lacking = gpu.DENSE_CODES if ranks is None else "nothing turns" if rotation is None else None
    if gpu.serves(backend, h, B, up, weights, rotation, onto, indices=indices, lacking=lacking):
        assert ranks is not None and rotation is not None and up is not None

        def flat(t: Any) -> Any:
            return None if t is None else t.reshape(-1, *t.shape[len(shape) :])

        update = gpu.mix(
            flat(h),
            B,
            ranks,
            flat(weights),
            flat(indices),
            flat(rotation),
            up,
            bound=angle_norm == "tanh",
            y=flat(onto),
            in_place=in_place,
        )
        return update.view(*shape, B.shape[-1])
    dtype = result_dtype(h, B, weights)
    h, B, weights, rotation, up = alike(h, B, weights, rotation, up)
    if ranks is None:
        update = dense.mix(h, B, weights, indices, rotation, up, angle_norm)
    else:
        update, added = _mix(h, B, ranks, weights, indices, rotation, up, angle_norm, onto)
        if added:
            return update
    if onto is None:
        return update.to(dtype)
    return onto + update.to(onto.dtype)


def alike(*tensors: Tensor | None) -> Any:
    """All in the dtype that they have in common."""
    given = [t for t in tensors if t is not None]
    if all(t.dtype == given[0].dtype for t in given):
        return tensors
    dtype = result_dtype(*given)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def _mix(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    weights: Tensor,
    indices: Tensor | None,
    rotation: Tensor | None,
    up: Tensor | None,
    angle_norm: str,
    onto: Tensor | None,
) -> tuple[Tensor, bool]:
    """The update [..., d], and whether ``onto`` is in it already."""
    shape, h = h.shape[:-1], h.reshape(-1, h.shape[-1])
    weights = weights.reshape(h.shape[0], weights.shape[-1])
    if indices is not None:
        indices = indices.reshape(h.shape[0], indices.shape[-1])
    rotation = None if rotation is None else rotation.reshape(h.shape[0], *rotation.shape[-2:])
    turn, by = rotation, up
    if (rotation is None or up is None) and indices is not None and B.shape[0] > FEW * indices.shape[-1] * max(ranks):
        # so few are chosen that expanding them one by one, turned by nothing, costs less than one product with all
        turn, by = h.new_zeros(*weights.shape, 0), h.new_zeros(0, B.shape[-1] // 2)
    if (
        turn is not None
        and by is not None
        and by.dim() == 2
        and fused.applies(h, B, weights, turn, by, indices=indices)
    ):
        y = onto if onto is not None and fused.applies(h, B, onto) else None
        y = None if y is None else y.reshape(-1, B.shape[-1])
        update = fused.mix(h, B, ranks, weights, indices, turn, by, bound=angle_norm == "tanh", onto=y)
        return update.view(*shape, B.shape[-1]), y is not None
    one_turn = rotation is None or up is None or (up.dim() == 2 and rotation.shape[1] == weights.shape[1])
    if one_turn and few.applies(weights.numel(), h, B, weights, rotation, up):
        update = few.mix(h, B, ranks, weights, indices, rotation, up, bound=angle_norm == "tanh")
        return update.view(*shape, B.shape[-1]), False
    owner = owners(ranks, h.device)
    weighted = h * dense_weights(weights, indices, len(ranks))[:, owner]
    if rotation is None or up is None:
        return (weighted @ B).view(*shape, B.shape[-1]), False
    slots: list[Tensor] = []
    for slot in range(weights.shape[-1]):
        code = rotation[:, slot if rotation.shape[1] > 1 else 0]
        if up.dim() == 2 and not tracing():
            one = make_slot(ranks, owner, indices, slot, h.dtype)
            slots.append(SlotTurn.apply(weighted, B, code, up, one, angle_norm == "tanh"))
            continue

        def turned(h: Tensor, B: Tensor, code: Tensor, up: Tensor, weight: Tensor, slot: int = slot) -> Tensor:
            v = _expand(h, B, ranks, owner, indices, slot)
            alpha = angle(code, up, indices, slot, angle_norm)
            return turn_pairs(v, alpha) * weight.unsqueeze(-1)

        slots.append(recompute(turned, h, B, code, up, weights[:, slot]))
    return functools.reduce(torch.add, slots).view(*shape, B.shape[-1]), False


def angles(rotation: Tensor, up: Tensor, indices: Tensor | None, angle_norm: str = "none") -> Tensor:
    """Angles in radians [..., k, d // 2] that `mix` turns by; for looking, not for computing the update."""
    shape, k = rotation.shape[:-2], rotation.shape[-2] if indices is None else indices.shape[-1]
    flat = rotation.reshape(-1, *rotation.shape[-2:])
    index = None if indices is None else indices.reshape(-1, k)
    columns = [angle(flat[:, s if flat.shape[1] > 1 else 0], up, index, s, angle_norm) for s in range(k)]
    return torch.stack(columns, 1).view(*shape, k, -1)


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


def _expand(h: Tensor, B: Tensor, ranks: Sequence[int], owner: Tensor, indices: Tensor | None, slot: int) -> Tensor:
    """v of the expert in one slot: [tokens, d]."""
    if indices is None:
        start = sum(ranks[:slot])
        return h[:, start : start + ranks[slot]] @ B[start : start + ranks[slot]]
    return (h * _slot_mask(owner, indices, slot).to(h.dtype)) @ B


def _cut_rounding(other: Tensor, total: Tensor, v: Tensor) -> Tensor:
    floor = 32 * torch.finfo(other.dtype).eps
    scale = total.square().sum(-1, keepdim=True) + v.square().sum(-1, keepdim=True)
    return other * (other.square().sum(-1, keepdim=True) > floor**2 * scale)
