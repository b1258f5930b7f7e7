"""A whole site in one call of compiled C++, for the few tokens of a decoding step: codes, gate, rotation and mix.

Nothing is remembered from call to call, so that nothing can be out of date: what a call costs is a C structure.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from radargate.errors import BackendError
from radargate.ops.cpp import build, calls
from radargate.ops.recompute import tracing

MOST_TOKENS = 16  # more of them are worth products over all tokens at once
SIZES = ("tokens", "experts", "slots", "inputs", "width", "codes", "rank", "wide", "threads")
OPTIONS = ("unit", "selected", "bound", "renormalize")
NUMBERS = ("others", "temperature")
ARRAYS = ("starts", "x", "A", "B", "scale", "theta", "prior", "down", "up", "onto", "update")


class Recipe(NamedTuple):
    """All that a gate does at a site, where it is stretch, alone or with one rotation for all experts.

    Attributes:
        theta: θ_s, [n, d_in]; None weighs all alike.
        temperature: τ.
        renormalize: as in `radargate.ops.select`.
        down: P, [d, r_a]; None where nothing turns.
        up: Q, [r_a, d // 2].
        down_scale: P is multiplied by it.
        angle_norm: as in `radargate.ops.radar`.
        reference: as in `radargate.ops.radar`.
    """

    theta: Tensor | None = None
    temperature: float = 1.0
    renormalize: str = "auto"
    down: Tensor | None = None
    up: Tensor | None = None
    down_scale: float = 1.0
    angle_norm: str = "none"
    reference: str = "all"


class Site(ctypes.Structure):
    """One call; the same fields in the same order stand in ``site.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in (*SIZES, *OPTIONS)),
        *((name, ctypes.c_double) for name in NUMBERS),
        *((name, ctypes.c_void_p) for name in ARRAYS),
    )


def site_applies(x: Tensor, onto: Tensor) -> bool:
    """Whether `site` may be the way for this input: few tokens on CPU, nobody tracing, a compiled library."""
    width = x.shape[-1]
    return (
        0 < x.numel() <= MOST_TOKENS * width
        and x.device.type == "cpu"
        and x.dtype == onto.dtype
        and type(x) is Tensor
        and type(onto) is Tensor
        and x.shape[:-1] == onto.shape[:-1]
        and not tracing()
        and not torch.jit.is_tracing()
        and build.load()[0] is not None
    )


def site(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: Tensor,
    ranks: tuple[int, ...],
    recipe: Recipe,
    top_k: int | None,
    onto: Tensor,
    prior: Tensor | None = None,
) -> Tensor | None:
    """``onto`` plus the update of one site; None where tensors are not alike, or something asks for gradients.

    Args:
        x: [..., d_in].
        A: [R, d_in].
        B: [R, d].
        scale: σ, [R].
        ranks: r_i of each expert.
        recipe: what the gate does.
        top_k: experts kept; None for all.
        onto: the base's output [..., d].
        prior: log-weights [..., n] of the experts for each token, beside the gate's own; None for none.

    Raises:
        BackendError: there is no library, or no memory.
    """
    theta, temperature, renormalize, down, up, down_scale, angle_norm, reference = recipe
    turn = (None, None) if down is None or up is None else (down, up)
    n, inputs, (codes, width), grad, dtype = len(ranks), x.shape[-1], B.shape, torch.is_grad_enabled(), x.dtype
    if dtype not in (torch.float32, torch.float64) or A.shape[1] != inputs or onto.shape[-1] != width:
        return None
    if grad and (x.requires_grad or onto.requires_grad):
        return None
    for t in (A, B, scale, theta, prior, *turn):
        if t is None:
            continue
        plain = type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.is_contiguous()
        if t.dtype != dtype or not plain or (grad and t.requires_grad):
            return None
    library, reason = build.library()
    if library is None:
        raise BackendError(f"The compiled operations are not there: {reason}. Use radargate.ops instead.")
    x, onto = x.contiguous(), onto.contiguous()
    update = torch.empty_like(onto)
    slots = n if top_k is None or top_k > n else top_k
    selected = reference == "selected"
    others = max((slots if selected else n) - 1, 1) if angle_norm == "mean" else 1
    call = Site(
        x.numel() // inputs,
        n,
        slots,
        inputs,
        width,
        codes,
        0 if turn[1] is None else turn[1].shape[0],
        dtype == torch.float64,
        torch.get_num_threads(),
        angle_norm == "unit",
        selected,
        angle_norm == "tanh",
        renormalize == "always" or (renormalize == "auto" and slots > 1),
        others / down_scale,
        temperature,
        ctypes.addressof(calls.starts(ranks)),
        *map(_address, (x, A, B, scale, theta, prior, *turn, onto, update)),
    )
    if library.radargate_site(ctypes.byref(call)):
        raise BackendError(f"Not enough memory for a site of {n} experts. Use fewer tokens.")
    return update


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()
