"""`rotation_codes` and `mix` on GPUs in Triton: expand, rotate, weigh and add in one pass, nothing of width d kept.

`radargate.ops.low_rank` defines the results and does the same work in PyTorch where these kernels cannot. Triton is
imported when the first kernel runs, never before.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from radargate.errors import BackendError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_CODE_RANK = 128  # wider rotation codes do not fit a tile
DENSE_CODES = "the kernels take codes in blocks, and these experts have dense ones"
devices = {"cuda"}  # where the kernels run unasked; the interpreter's "cpu" only where it is asked for


def available(device: str = "cuda") -> tuple[bool, str]:
    """Whether the kernels can run on a device, and why.

    ``RADARGATE_TRITON=0`` switches them off; ``TRITON_INTERPRET=1`` runs them on the CPU, slowly, for tests.
    """
    if os.environ.get("RADARGATE_TRITON") == "0":
        return False, "RADARGATE_TRITON=0"
    return _available(device, os.environ.get("TRITON_INTERPRET") == "1")


# what torch.compiler.assume_constant_result does, which first imports all of torch.compile and with it Triton
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _available(device: str, interpreting: bool) -> tuple[bool, str]:
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed (pip install triton)"
    if interpreting:
        return True, "Triton's interpreter on the CPU, slow and for tests"
    if device != "cuda":
        return False, f"Triton kernels need a CUDA device or TRITON_INTERPRET=1, and this is {device}"
    if not torch.cuda.is_available():
        return False, "there is no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < (8, 0):
        return False, f"the GPU has compute capability {major}.{minor}, the kernels need 8.0"
    return True, f"Triton kernels on {torch.cuda.get_device_name()}"


def serves(
    backend: str,
    h: Tensor,
    B: Tensor,
    matrix: Tensor | None,
    *others: Tensor | None,
    indices: Tensor | None = None,
    lacking: str | None = None,
) -> bool:
    """Whether the kernels do a step; arguments as in `refusal`, and what they lack for it whatever the tensors.

    Raises:
        BackendError: ``backend="triton"``, and they cannot.
    """
    if backend == "codes" or (backend != "triton" and h.device.type not in devices):
        return False
    reason = lacking or refusal(h, B, matrix, *others, indices=indices)
    if reason is not None and backend == "triton":
        raise BackendError(f"backend='triton' cannot do this: {reason}. Use backend='auto' or 'codes'.")
    return reason is None


def refusal(
    h: Tensor, B: Tensor, matrix: Tensor | None, *others: Tensor | None, indices: Tensor | None = None
) -> str | None:
    """Why the kernels cannot take these tensors, or None.

    Args:
        h: [tokens, R].
        B: [R, d].
        matrix: P or Q.
        others: weights, rotation codes, the base's output.
        indices: [tokens, k].
    """
    if matrix is None:
        return "there is no low-rank P or Q"
    if matrix.dim() != 2:
        return "every expert has a P or Q of its own"
    for t in (h, B, matrix, *others):
        if t is not None and t.dtype not in DTYPES:
            return f"the kernels take float32, bfloat16 and float16, found {t.dtype}".replace("torch.", "")
        if t is not None and t.device != h.device:
            return f"tensors are on {h.device} and {t.device}"
    if B.requires_grad and torch.is_grad_enabled():
        return "the experts learn, and only PyTorch has gradients to B"
    if B.shape[0] == 0 or B.shape[1] < 2 or 0 in matrix.shape:
        return "there is nothing to turn"
    if min(matrix.shape) > MOST_CODE_RANK:
        return f"rotation codes are wider than {MOST_CODE_RANK}"
    if indices is not None and (indices.dtype != torch.int64 or indices.shape[-1] == 0):
        return f"indices are {indices.dtype} of shape {tuple(indices.shape)}, expected int64 and at least one a token"
    works, reason = available(h.device.type)
    return None if works else reason


def rotation_codes(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    down: Tensor,
    indices: Tensor | None,
    total: Tensor | None,
    *,
    unit: bool,
    others: float,
) -> Tensor:
    """Rotation codes of all slots, related to all other experts: [tokens, k, r_a] in float32.

    Args:
        h: [tokens, R].
        B: [R, d].
        ranks: r_i of each expert.
        down: P, [d, r_a].
        indices: [tokens, k], or None for all n.
        total: Σ_j v_j [tokens, d] if known.
        unit: scale v and its reference to unit RMS.
        others: the codes are divided by it.
    """
    from radargate.ops.triton import operators

    given = _contiguous(h, B, total, down, indices)
    run: Any = operators.rotation_codes_op if _recorded(*given) else operators.rotation_codes
    return run(*given, list(ranks), unit, float(others))[0]


def mix(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    weights: Tensor,
    indices: Tensor | None,
    rotation: Tensor,
    up: Tensor,
    *,
    bound: bool,
    y: Tensor | None = None,
    in_place: bool = False,
) -> Tensor:
    """The update Σ_i g_i R(a_i Q) v_i, added to ``y`` where there is one: [tokens, d].

    Args:
        h: [tokens, R].
        B: [R, d].
        ranks: r_i of each expert.
        weights: g, [tokens, k].
        indices: [tokens, k], or None for all n.
        rotation: [tokens, k, r_a].
        up: Q, [r_a, d // 2].
        bound: keep angles within ±π by tanh.
        y: [tokens, d], the base's output.
        in_place: write into y, where it is contiguous and nothing asks for gradients.

    Returns:
        In y's dtype, or without y in that of h, B and weights promoted.
    """
    from radargate.ops.triton import operators

    given = _contiguous(y, h, B, weights, rotation, up, indices)
    recorded = _recorded(*given)
    if in_place and y is not None and y.is_contiguous() and not _needs_gradients(*given):
        into: Any = operators.turn_into_op if recorded else operators.turn_into
        into(*given, list(ranks), bound)
        return y
    run: Any = operators.turn_op if recorded else operators.turn
    return run(*given, list(ranks), bound)


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.contiguous() for t in tensors]


def _needs_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _recorded(*tensors: Tensor | None) -> bool:
    """Whether PyTorch has to see an operator; a plain call saves its dispatch, which a decode step notices."""
    plain = all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or not plain or _needs_gradients(*tensors)
