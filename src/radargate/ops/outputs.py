"""What a gate may look at of the experts' outputs, from low-rank activations alone: logits on them, and their norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from radargate.ops import shared_basis
from radargate.ops.by_slot import expand, owners
from radargate.ops.recompute import recompute
from radargate.ops.reference import EPS
from radargate.ops.turning import angle, turn_pairs


def expert_logits(h: Tensor, B: Tensor, ranks: Sequence[int] | None, theta: Tensor, norm: str = "layer") -> Tensor:
    """Logits of the gate on concatenated expert outputs, norm(v_1 ⊕ … ⊕ v_n) θ_s, from codes alone: [..., n].

    (h W' - μ 1ᵀθ_s) / σ_z with W' = B_i θ_s,i block by block, μ from B 1, σ_z from the diagonal blocks of G.

    Args:
        h: codes [..., R].
        B: [R, d].
        ranks: r_i of each expert; None for dense codes.
        theta: θ_s, [n * d, n].
        norm: ``"layer"`` or ``"rms"``.

    Source: App. B.2.
    """
    if ranks is None:
        return shared_basis.expert_logits(h, B, theta, norm)
    n, d, owner = len(ranks), B.shape[-1], owners(ranks, h.device)
    blocks = theta.view(n, d, -1)
    folded = torch.cat([b @ blocks[i] for i, b in enumerate(B.split(list(ranks)))])
    same = (owner.unsqueeze(0) == owner.unsqueeze(1)).to(h.dtype)
    square = ((h @ (B @ B.T * same)) * h).sum(-1, keepdim=True).clamp(min=0) / (n * d)
    logits = h @ folded
    if norm == "layer":
        mean = (h @ B.sum(-1, keepdim=True)) / (n * d)
        logits = logits - mean * theta.sum(0)
        square = (square - mean.square()).clamp(min=0)
    return logits * (square + EPS).rsqrt()


def rotated_logits(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int] | None,
    theta: Tensor,
    rotation: Tensor,
    up: Tensor,
    *,
    angle_norm: str = "none",
    norm: str = "layer",
) -> Tensor:
    """Logits of the gate on concatenated *rotated* outputs, norm(ṽ_1 ⊕ … ⊕ ṽ_n) θ_s: [..., n].

    Works expert by expert in output space (every ṽ_i is needed); ``rotation`` holds codes of all n experts.

    Source: the paper's Introduction and App. C.2.
    """
    if ranks is None:
        return shared_basis.rotated_logits(h, B, theta, rotation, up, angle_norm, norm)
    shape, h, owner = h.shape[:-1], h.reshape(-1, h.shape[-1]), owners(ranks, h.device)
    n, d = len(ranks), B.shape[-1]
    rotation = rotation.reshape(h.shape[0], *rotation.shape[-2:])
    parts = []
    for i in range(n):
        code = rotation[:, i if rotation.shape[1] > 1 else 0]

        def part(h: Tensor, B: Tensor, code: Tensor, up: Tensor, theta: Tensor, i: int = i) -> Tensor:
            v = turn_pairs(expand(h, B, ranks, owner, None, i), angle(code, up, None, i, angle_norm))
            return torch.cat(
                [v @ theta[i * d : (i + 1) * d], v.sum(-1, keepdim=True), v.square().sum(-1, keepdim=True)],
                -1,
            )

        parts.append(recompute(part, h, B, code, up, theta))
    return shared_basis.normalised(torch.stack(parts).sum(0), theta, n * d, norm).view(*shape, n)


def expert_norms(h: Tensor, B: Tensor, ranks: Sequence[int] | None) -> Tensor:
    """‖v_i‖ of every expert from codes and the diagonal blocks of G: [..., n]."""
    if ranks is None:
        return shared_basis.expert_norms(h, B)
    squares = [
        ((part @ (block @ block.T)) * part).sum(-1).clamp(min=0)
        for part, block in zip(h.split(list(ranks), -1), B.split(list(ranks)), strict=True)
    ]
    square = torch.stack(squares, -1)
    live = square > 0
    return torch.where(live, torch.where(live, square, 1.0).sqrt(), 0.0)
