"""Arrow's prototype of an expert: the input direction its update answers to most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prototypes(A: Tensor, B: Tensor, ranks: Sequence[int]) -> Tensor:
    """Top right singular vector of every ΔW_i = B_i A_i: [n, d_in], float64, unit length, zeros for a silent expert.

    Args:
        A: [R, d_in], or [r, d_in] shared by all.
        B: [R, d_out], the transposed B_i stacked.
        ranks: r_i of each expert.

    The sign means nothing; here the largest entry is positive.

    Source: Arrow (Ostapenko et al., ICML 2024), by an exact r × r core instead of power iterations.
    """
    shared = A.shape[0] != sum(ranks)
    blocks = [A.detach().double()] * len(ranks) if shared else A.detach().double().split(list(ranks))
    pairs = zip(blocks, B.detach().double().split(list(ranks)), strict=True)
    found = torch.stack([top_input_direction(a, b) for a, b in pairs])
    return found * found.gather(-1, found.abs().argmax(-1, keepdim=True)).sign()


def top_input_direction(A: Tensor, B: Tensor) -> Tensor:
    """Unit top right singular vector [d_in] of ΔW = Bᵀ A, for A [r, d_in] and B [r, d_out]; sign arbitrary.

    Through the r × r core of both triangular factors, so ΔW is never formed. Zero where ΔW is.
    """
    q, upper = torch.linalg.qr(A.T)  # A = upperᵀ qᵀ
    core = torch.linalg.qr(B.T)[1] @ upper.T
    values, right = torch.linalg.svd(core)[1:]
    return q @ right[0] * (values[0] > 0)
