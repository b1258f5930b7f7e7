"""A whole site in one call of compiled C++, for the few tokens of a decoding step: codes, gate, rotation and mix.

Nothing is remembered from call to call, so that nothing can be out of date: what a call costs is a C structure.
"""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from radargate.errors import BackendError
from radargate.ops.cpp import available, build, starts

MOST_TOKENS = 16  # more of them are worth products over all tokens at once
# the fields of one call, in the order in which they stand in ``site.h``: sizes and options, numbers, addresses
FIELDS = struct.Struct("=13q2d11q")


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


def few_plain(x: Tensor, onto: Tensor) -> bool:
    """Whether this input is of few plain tokens on CPU, and nobody is tracing."""
    shape = x.shape
    return (
        0 < x.numel() <= MOST_TOKENS * shape[-1]
        and x.is_cpu
        and x.dtype == onto.dtype
        and type(x) is Tensor
        and type(onto) is Tensor
        and shape[:-1] == onto.shape[:-1]
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def site_applies(x: Tensor, onto: Tensor) -> bool:
    """Whether `site` may be the way for this input: few tokens on CPU, nobody tracing, a compiled library."""
    return few_plain(x, onto) and available()[0]


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
    if down is None or up is None:
        down = up = None
    n, inputs, (codes, width), grad, dtype = len(ranks), x.shape[-1], B.shape, torch.is_grad_enabled(), x.dtype
    if dtype not in (torch.float32, torch.float64) or A.shape[1] != inputs or onto.shape[-1] != width:
        return None
    if grad and (x.requires_grad or onto.requires_grad):
        return None
    for t in (A, B, scale, theta, prior, down, up):
        if t is not None:
            plain = type(t) in (Parameter, Tensor) and t.is_cpu and t.is_contiguous()
            if not plain or t.dtype != dtype or (grad and t.requires_grad):
                return None
    library, reason = build.library()
    if library is None:
        raise BackendError(f"The compiled operations are not there: {reason}. Use radargate.ops instead.")
    x, onto = x.contiguous(), onto.contiguous()
    update = torch.empty_like(onto)
    slots = n if top_k is None or top_k > n else top_k
    selected = reference == "selected"
    others = max((slots if selected else n) - 1, 1) if angle_norm == "mean" else 1
    call = FIELDS.pack(
        x.numel() // inputs,
        n,
        slots,
        inputs,
        width,
        codes,
        0 if up is None else up.shape[0],
        dtype == torch.float64,
        torch.get_num_threads(),
        angle_norm == "unit",
        selected,
        angle_norm == "tanh",
        renormalize == "always" or (renormalize == "auto" and slots > 1),
        others / down_scale,
        temperature,
        ctypes.addressof(starts(ranks)),
        *[0 if t is None else t.data_ptr() for t in (x, A, B, scale, theta, prior, down, up, onto, update)],
    )
    if library.radargate_site(call):
        raise BackendError(f"Not enough memory for a site of {n} experts. Use fewer tokens.")
    return update
