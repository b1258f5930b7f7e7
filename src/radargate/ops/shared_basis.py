"""Operations on dense codes: every expert has its own coordinates over one shared basis, v_i = H_i Z.

Blocks of codes (`radargate.ops.low_rank`) are the sparse case of this. Orthogonalised experts are mixes of
several blocks, so they need the dense one; still no tensor of tokens × experts × width exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from radargate.ops.recompute import recompute
from radargate.ops.reference import EPS, unit_rms
from radargate.ops.selection import dense_weights
from radargate.ops.turning import angle, project, turn_pairs


def rotation_codes(
    H: Tensor, Z: Tensor, down: Tensor | None, *, indices: Tensor | None, reference: str, angle_norm: str
) -> Tensor:
    """Rotation codes [..., k, r_a] of the chosen experts.

    Args:
        H: coordinates [..., n, q].
        Z: shared basis [q, d].
        down: P, as in `radargate.ops.rotation_codes`.
        indices: [..., k] or None for all n.
        reference: ``"all"`` or ``"selected"``.
        angle_norm: as in `radargate.ops.radar`.
    """
    shape, (H, indices) = H.shape[:-2], _flat(H, indices)
    counted = H if reference == "all" or indices is None else H * _chosen(H, indices)
    slots = H.shape[1] if indices is None else indices.shape[-1]
    others = max((slots if reference == "selected" else H.shape[1]) - 1, 1)

    def code(mine: Tensor, theirs: Tensor, down: Tensor | None, slot: int) -> Tensor:
        v, other = mine @ Z, theirs @ Z
        if angle_norm == "unit":
            source = unit_rms(v) * unit_rms(other)
        else:
            source = v * other / others if angle_norm == "mean" else v * other
        return source if down is None else project(source, down, indices, slot)

    columns = []
    for slot in range(slots):
        own = _one(H, indices, slot)
        # the others are summed as such: a difference of sums would be rounding where they are silent
        theirs = (counted * (1 - own)).sum(1)
        mine = (H * own).sum(1)
        columns.append(recompute(lambda m, t, p, slot=slot: code(m, t, p, slot), mine, theirs, down))
    return torch.stack(columns, 1).view(*shape, slots, -1)


def mix(
    H: Tensor,
    Z: Tensor,
    weights: Tensor,
    indices: Tensor | None,
    rotation: Tensor | None,
    up: Tensor | None,
    angle_norm: str,
) -> Tensor:
    """Σ_i g_i ṽ_i: [..., d]; arguments as in `radargate.ops.mix`, H [..., n, q] and Z [q, d] in place of h and B."""
    shape, (H, indices) = H.shape[:-2], _flat(H, indices)
    weights = weights.reshape(H.shape[0], weights.shape[-1])
    if rotation is None or up is None:
        return ((H * dense_weights(weights, indices, H.shape[1]).unsqueeze(-1)).sum(1) @ Z).view(*shape, Z.shape[-1])
    rotation = rotation.reshape(H.shape[0], *rotation.shape[-2:])
    update = H.new_zeros(H.shape[0], Z.shape[-1])
    for slot in range(weights.shape[-1]):
        mine = (H * _one(H, indices, slot)).sum(1) * weights[:, slot : slot + 1]

        def turned(mine: Tensor, code: Tensor, up: Tensor, slot: int = slot) -> Tensor:
            return turn_pairs(mine @ Z, angle(code, up, indices, slot, angle_norm))

        update = update + recompute(turned, mine, rotation[:, slot if rotation.shape[1] > 1 else 0], up)
    return update.view(*shape, Z.shape[-1])


def expert_logits(H: Tensor, Z: Tensor, theta: Tensor, norm: str) -> Tensor:
    """norm(v_1 ⊕ … ⊕ v_n) θ_s from coordinates alone: [..., n]."""
    n, d = H.shape[-2], Z.shape[-1]
    folded = torch.einsum("qd,ndm->nqm", Z, theta.view(n, d, -1)).flatten(0, 1)
    square = ((H @ (Z @ Z.T)) * H).sum((-1, -2)).unsqueeze(-1).clamp(min=0) / (n * d)
    logits = H.flatten(-2) @ folded
    if norm == "layer":
        mean = (H.sum(-2) @ Z.sum(-1, keepdim=True)) / (n * d)
        logits = logits - mean * theta.sum(0)
        square = (square - mean.square()).clamp(min=0)
    return logits * (square + EPS).rsqrt()


def rotated_logits(
    H: Tensor, Z: Tensor, theta: Tensor, rotation: Tensor, up: Tensor, angle_norm: str, norm: str
) -> Tensor:
    """norm(ṽ_1 ⊕ … ⊕ ṽ_n) θ_s, expert by expert in output space: [..., n]."""
    n, d = H.shape[-2], Z.shape[-1]
    shape, (H, _) = H.shape[:-2], _flat(H, None)
    rotation = rotation.reshape(H.shape[0], *rotation.shape[-2:])
    parts = []
    for i in range(n):

        def part(mine: Tensor, code: Tensor, up: Tensor, theta: Tensor, i: int = i) -> Tensor:
            v = turn_pairs(mine @ Z, angle(code, up, None, i, angle_norm))
            own = theta[i * d : (i + 1) * d]
            return torch.cat([v @ own, v.sum(-1, keepdim=True), v.square().sum(-1, keepdim=True)], -1)

        parts.append(recompute(part, H[:, i], rotation[:, i if rotation.shape[1] > 1 else 0], up, theta))
    return normalised(torch.stack(parts).sum(0), theta, n * d, norm).view(*shape, n)


def normalised(total: Tensor, theta: Tensor, width: int, norm: str) -> Tensor:
    """Logits after normalisation, from raw logits, sum and sum of squares of the concatenated outputs side by side."""
    n = total.shape[-1] - 2
    logits, mean, square = total[:, :n], total[:, n : n + 1] / width, total[:, n + 1 :] / width
    if norm == "layer":
        logits = logits - mean * theta.sum(0)
        square = (square - mean.square()).clamp(min=0)
    return logits * (square + EPS).rsqrt()


def expert_norms(H: Tensor, Z: Tensor) -> Tensor:
    """‖v_i‖ of every expert: [..., n]."""
    square = ((H @ (Z @ Z.T)) * H).sum(-1).clamp(min=0)
    live = square > 0
    return torch.where(live, torch.where(live, square, 1.0).sqrt(), 0.0)


def orthogonal(H: Tensor, norm: str = "none", order: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
    """Modified Gram–Schmidt over experts, in coordinates over an orthonormal basis: H [..., n, q] → the same shape.

    w_i = u_i - Σ_{j before i} ⟨w_j, u_i⟩ / (⟨w_j, w_j⟩ + ε) w_j, with ε = 1e-6 · mean‖u‖² + 1e-12.

    Args:
        H: coordinates of the experts' outputs, norms and products as in output space.
        norm: ``"none"``; ``"keep_input_norm"`` scales each w_i to ‖u_i‖; ``"unit"`` to length 1.
        order: [..., n] experts in the order they are taken; None for their own.
        chosen: [..., n] of 0 and 1: only these are orthogonalised, the others stay.

    Source: OMoE (2501.10062) as read in docs/concepts/architectures.md; `radargate.ops.reference.gram_schmidt` defines the result.
    """

    def run(H: Tensor) -> Tensor:
        index = None if order is None else order.unsqueeze(-1).expand(H.shape)
        rest = H if index is None else H.gather(-2, index)
        keep = chosen if order is None or chosen is None else chosen.gather(-1, order)
        start, size = rest, rest.square().sum(-1, keepdim=True)
        eps = 1e-6 * size.mean(-2, keepdim=True) + 1e-12
        done = []
        for i in range(H.shape[-2]):
            w, rest = rest[..., :1, :], rest[..., 1:, :]
            done.append(w)
            if rest.shape[-2]:
                share = (rest * w).sum(-1, keepdim=True) / (w.square().sum(-1, keepdim=True) + eps)
                if keep is not None:
                    share = share * keep[..., i : i + 1, None]
                rest = rest - share * w
        found = torch.cat(done, -2)
        if norm != "none":
            short = (found.square().sum(-1, keepdim=True) + eps).rsqrt()
            found = found * (short * (size + eps).sqrt() if norm == "keep_input_norm" else short)
        if keep is not None:
            found = torch.where(keep.unsqueeze(-1) > 0, found, start)
        return found if index is None else torch.empty_like(found).scatter(-2, index, found)

    return recompute(run, H)


def _flat(H: Tensor, indices: Tensor | None) -> tuple[Tensor, Tensor | None]:
    flat = H.reshape(-1, *H.shape[-2:])
    return flat, None if indices is None else indices.reshape(flat.shape[0], indices.shape[-1])


def _one(H: Tensor, indices: Tensor | None, slot: int) -> Tensor:
    """[tokens, n, 1] of 0 and 1 for the expert in one slot."""
    index = torch.full((H.shape[0],), slot, device=H.device) if indices is None else indices[:, slot]
    return torch.nn.functional.one_hot(index, H.shape[1]).to(H.dtype).unsqueeze(-1)


def _chosen(H: Tensor, indices: Tensor) -> Tensor:
    return torch.zeros(H.shape[:2], dtype=H.dtype, device=H.device).scatter(1, indices, 1.0).unsqueeze(-1)
