"""Keep only the inputs of a function for the backward pass, which computes it again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def recompute(function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """Call ``function``; keep only its inputs for the backward pass, which computes it again."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*tensors)
    return _Recompute.apply(function, *tensors)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, *tensors):
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        wanted = ctx.needs_input_grad[1:]
        inputs = [
            None if t is None else t.detach().requires_grad_(need)
            for t, need in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            output = ctx.function(*inputs)
        live = [t for t, need in zip(inputs, wanted, strict=True) if need and t is not None]
        found = iter(torch.autograd.grad(output, live, grad, allow_unused=True) if live else ())
        return None, *(next(found) if need else None for need in wanted)
