"""The merged route: Σ_j v_j = x M, and codes of the chosen experts only, so that cost does not grow with their number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from radargate.ops import cpp
from radargate.ops.by_slot import chosen_mask, owners
from radargate.ops.low_rank import codes, merged

# rounding in x M and in v is taken for at most so many ulp of what they add up; up to 5 were seen in float32, 32 in float64
ROUNDING_ULP = 64
# multiply-adds of a large product that fit into the time of one expert by expert (2 to 5), and of 8 passes over a number
# in memory (3 each): one CPU thread, d 2048. The model breaks even at R/d of 0.42 to 0.47, sites of d 512 to 2048 did
# at 0.3 to 0.5
PLACE_COST, PASS_COST = 4, 24


def chosen_codes(x: Tensor, A: Tensor, scale: Tensor, ranks: Sequence[int], indices: Tensor | None) -> Tensor:
    """Codes (x A_i) ⊙ σ of the chosen experts, zeros for all others: [..., R].

    Compiled, its cost does not depend on n but for the zeros; in PyTorch, and where A learns, it masks the dense product.

    Args:
        x: [..., d_in].
        A: [R, d_in].
        scale: σ, [R].
        ranks: r_i of each expert.
        indices: [..., k] different experts; None, or as many as there are, for all.
    """
    if indices is None or indices.shape[-1] == len(ranks):
        return codes(x, A, scale)
    learns = torch.is_grad_enabled() and (A.requires_grad or scale.requires_grad)
    if not learns and cpp.applies(x, A, scale, indices=indices):
        flat = indices.reshape(-1, indices.shape[-1])
        return cpp.chosen_codes(x.reshape(-1, x.shape[-1]), A, scale, ranks, flat).view(*x.shape[:-1], A.shape[0])
    return codes(x, A, scale) * chosen_mask(owners(ranks, x.device), indices).to(x.dtype)


def merge(A: Tensor, B: Tensor, scale: Tensor, ranks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """M [d_in, d], and for `rounding` the squared size of every input coordinate's way through the experts: [d_in]."""
    scaled = A * scale.unsqueeze(-1)
    sizes = torch.zeros_like(A[0])
    for a, b in zip(scaled.split(list(ranks)), B.split(list(ranks)), strict=True):
        sizes += ((b @ b.T) @ a).mul_(a).sum(0)
    return merged(A, B, scale), sizes.clamp_(min=0)


def rounding(x: Tensor, sizes: Tensor, total: Tensor) -> Tensor:
    """The length [...] at which total − v_i is rounding, total = x M: ulp of √(Σ_m x_m² sizes_m + ‖total‖²).

    The first term holds where the sums over x cancel, the second where all their terms have one sign.
    """
    x, total = x.detach(), total.detach()
    added = x.square() @ sizes + torch.linalg.vector_norm(total, dim=-1).square()
    return added.sqrt() * (ROUNDING_ULP * torch.finfo(x.dtype).eps)


def merged_is_cheaper(rank_sum: int, d_in: int, d: int, chosen: int) -> bool:
    """Whether the merged route costs less than the direct one, in multiply-adds a token of a training step.

    Direct: R (2 d_in + 3 d): all codes and their gradient to x; Σ_j v_j = h B, once more in the backward pass, and back.
    Merged: 2 d_in d + PLACE_COST · 2 c d_in + PASS_COST (d + R): x M and back; the ``chosen`` c code coordinates, and
    back; memory passes over Σ_j v_j and over the zeros of codes and gradients. What both do does not count: base,
    weights, P, Q, the chosen experts' outputs. A gate that relates to no others saves x M as well.
    """
    direct = rank_sum * (2 * d_in + 3 * d)
    return 2 * d_in * d + PLACE_COST * 2 * chosen * d_in + PASS_COST * (d + rank_sum) < direct
