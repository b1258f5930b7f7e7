"""Which implementation of the operations runs, and in which dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from radargate.errors import BackendError
from radargate.ops import cpp, triton

BACKENDS = ("auto", "codes", "literal", "triton")
NAMES = {"reference": "literal", "low_rank": "codes"}  # what else they may be called


def choose_backend(backend: str = "auto", device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """Which implementation runs, and why.

    Args:
        backend: what was asked for.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ….
        dtype: of the computation (`compute_dtype`).

    Returns:
        (name, reason). Under ``"triton"``, unasked, single steps that the kernels lack run as ``"codes"``.

    Raises:
        BackendError: an explicit request that cannot be honoured.
    """
    backend = NAMES.get(backend, backend)
    if backend not in BACKENDS:
        raise BackendError(f"Unknown backend {backend!r}. Known: {', '.join([*BACKENDS, *NAMES])}.")
    kind = device.split(":")[0]
    if backend == "triton" or (backend == "auto" and kind in triton.devices):
        works, reason = triton.available(kind)
        if dtype not in triton.DTYPES:
            works, reason = False, f"the kernels compute in float32, and this is {dtype}".replace("torch.", "")
        if works:
            return "triton", reason
        if backend == "triton":
            raise BackendError(f"backend='triton' cannot be used: {reason}. Use backend='auto' or 'codes'.")
        return "codes", f"in PyTorch, slot by slot: {reason}"
    if backend != "auto":
        return backend, "asked for"
    if kind != "cpu":
        return "codes", f"the form on codes is the fastest there is on {kind}"
    built, reason = cpp.available()
    return "codes", "all slots in one pass of compiled C++" if built else f"in PyTorch, slot by slot: {reason}"


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 where any tensor is: never less, as bfloat16 logits choose other experts."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
