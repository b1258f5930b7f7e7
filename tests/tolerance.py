"""The one tolerance rule: at most twice the error of the literal form in the same dtype (3 x for gradients)."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR_ULP = 8


def assert_close(
    result: Tensor, literal_same_dtype: Tensor, exact: Tensor, *, gradient: bool = False, what: str = ""
) -> None:
    """``result`` may differ from the float64 literal form by 2 x (3 x) what the literal form itself does, and a few ulp."""
    assert result.shape == exact.shape, f"{what}: {result.shape} instead of {exact.shape}"
    assert bool(torch.isfinite(result).all()), f"{what}: not finite"
    if result.numel() == 0:
        return
    error = (result.double() - exact.double()).abs().max()
    allowed = (3 if gradient else 2) * (literal_same_dtype.double() - exact.double()).abs().max()
    floor = FLOOR_ULP * torch.finfo(result.dtype).eps * exact.double().abs().max().clamp(min=1e-30)
    assert error <= allowed + floor, f"{what}: error {error:.3g}, allowed {allowed + floor:.3g}"
