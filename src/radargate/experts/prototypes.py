"""Arrow's prototype of an expert: the input direction its update answers to most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prototypes(A: Tensor, B: Tensor, ranks: Sequence[int]) -> Tensor:
    """Top right singular vector of every ΔW_i = B_i A_i, through the factors: [n, d_in], float64, unit length.

    Args:
        A: [R, d_in], or [r, d_in] shared by all.
        B: [R, d_out], the transposed B_i stacked.
        ranks: r_i of each expert.

    A silent expert (ΔW = 0) gets zeros. The sign is arbitrary; here the largest entry is positive.

    Source: Arrow (Ostapenko et al., ICML 2024), by an exact r × r core instead of power iterations.
    """
    blocks_B = B.detach().double().split(list(ranks))
    shared = A.shape[0] == ranks[0]
    blocks_A = [A.detach().double()] * len(ranks) if shared else A.detach().double().split(list(ranks))
    found = []
    for a, b in zip(blocks_A, blocks_B, strict=True):
        Q, R = torch.linalg.qr(a.T)
        core = torch.linalg.qr(b.T)[1] @ R.T
        _, sizes, right = torch.linalg.svd(core)
        vector = Q @ right[0]
        vector = vector * torch.sign(vector[vector.abs().argmax()])
        found.append(vector if float(sizes[0]) > 0 else torch.zeros_like(vector))
    return torch.stack(found)
