"""Which dtype the operations compute in, and which they return."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 where any tensor is: never less, as bfloat16 logits choose other experts."""
    for t in tensors:
        if t.dtype == torch.float64:
            return torch.float64
    return torch.float32


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """What PyTorch's promotion makes of them."""
    return functools.reduce(torch.promote_types, [t.dtype for t in tensors])
