"""Pico: directions that the experts' B share are scaled down before a merge, and the result gets their mean norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def calibrated(B: Sequence[Tensor]) -> list[Tensor]:
    """Each B_i with the directions that weigh most in all of them together scaled down.

    With U Σ the left side of an SVD of [B_1 … B_T], direction k has the share c_k = σ_k² / Σ σ² and is multiplied by
    α_k = 1 / (1 + (T − 1) c_k). The B are raw, without LoRA scale, as in the authors' code; one alone stays as it is.

    Source: Pico (arXiv 2604.16826), read from the authors' code (``PICO.calibrate_layer``); of the paper itself only the
    abstract could be read, and it agrees.

    Args:
        B: B_i [d_out, r_i] of the experts at a site.

    Returns:
        The same shapes and dtypes.
    """
    if len(B) < 2:
        return list(B)
    left, values, _ = torch.linalg.svd(torch.cat(list(B), 1).double(), full_matrices=False)
    energy = values.square()
    shares = energy / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny)  # all zero stays zero
    less = 1 / (1 + (len(B) - 1) * shares) - 1
    return [(b.double() + left @ (less[:, None] * (left.T @ b.double()))).to(b) for b in B]


def energy_ratio(A: Sequence[Tensor], B: Sequence[Tensor], scales: Sequence[float], down: Tensor, up: Tensor) -> float:
    """The factor that gives the merged update ``up @ down`` the mean Frobenius norm of the experts' s_i B_i A_i.

    An update that is zero has no direction to scale: 1. Source: ``PICO.compensate_energy`` of the same code.
    """
    merged = _norm(up, down)
    wanted = sum(abs(s) * _norm(b, a) for a, b, s in zip(A, B, scales, strict=True)) / len(A)
    return wanted / merged if merged else 1.0


def _norm(up: Tensor, down: Tensor) -> float:
    """‖up down‖ of [d_out, r] and [r, d_in], without the product."""
    inner = torch.linalg.qr(up.double()).R @ torch.linalg.qr(down.double().T).R.T
    return float(torch.linalg.matrix_norm(inner))
