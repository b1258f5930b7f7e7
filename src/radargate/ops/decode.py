"""The operations on codes for few tokens without gradients, in PyTorch: all slots at once.

What a step of decoding costs there is the number of calls, not what they compute. `radargate.ops.low_rank` defines the
results.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from radargate.ops.cpp.sites import Recipe
from radargate.ops.selection import select

MOST_MASKS = 1 << 20  # numbers in the masks of `site`, which grow as the square of the number of experts
MOST_PLACES = 64  # tokens × slots; every place takes a few vectors of width d


def applies(places: int, *tensors: Tensor | None) -> bool:
    """Whether this is the way for ``places`` = tokens × slots."""
    if not 0 < places <= MOST_PLACES or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors)


def rotation_codes(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    down: Tensor,
    indices: Tensor | None,
    *,
    unit: bool,
    selected: bool,
    factor: float,
) -> Tensor:
    """Rotation codes [tokens, k, r_a] of all slots.

    Args:
        h: [tokens, R].
        B: [R, d].
        ranks: r_i of each expert.
        down: P, [d, r_a].
        indices: [tokens, k], or None for all n.
        unit: scale v and its reference to unit RMS.
        selected: the reference is the sum over the other chosen experts.
        factor: the codes are multiplied by it.
    """
    owner = _owners(tuple(ranks), h.device)
    slots = torch.arange(len(ranks), device=h.device).unsqueeze(0) if indices is None else indices
    out = owner == slots.unsqueeze(-1)  # [tokens or 1, k, R]
    v = expand(h, B, ranks, indices)
    if selected and indices is not None:
        rest = out.any(1, keepdim=True) & ~out
        other = (h.unsqueeze(1) * rest) @ B
    else:  # from the others' own codes: Σ_j v_j - v would be mostly rounding where they are small
        other = h.unsqueeze(1).masked_fill(out, 0) @ B
    code = (v * other) @ down
    if unit:
        size = torch.linalg.vector_norm(torch.stack((v, other)), dim=-1)
        inverse = size.reciprocal().masked_fill_(size == 0, 0)
        return code * (inverse[0] * inverse[1] * (factor * B.shape[-1])).unsqueeze(-1)
    return code if factor == 1 else code * factor


def mix(
    h: Tensor,
    B: Tensor,
    ranks: Sequence[int],
    weights: Tensor,
    indices: Tensor | None,
    rotation: Tensor | None,
    up: Tensor | None,
    *,
    bound: bool,
) -> Tensor:
    """The update Σ_i g_i R(a_i Q) v_i: [tokens, d].

    Args:
        h: [tokens, R].
        B: [R, d].
        ranks: r_i of each expert.
        weights: g, [tokens, k].
        indices: [tokens, k], or None for all n.
        rotation: [tokens, k, r_a], or None for no turn.
        up: Q, [r_a, d // 2].
        bound: keep angles within ±π by tanh.
    """
    v = expand(h, B, ranks, indices)
    pairs = 0 if rotation is None or up is None else up.shape[-1]
    if not pairs:
        return (weights.unsqueeze(-2) @ v).squeeze(-2)
    assert rotation is not None and up is not None
    alpha = rotation @ up
    if bound:
        alpha = math.pi * torch.tanh(alpha / math.pi)
    turn = torch.polar(weights.unsqueeze(-1).expand_as(alpha), alpha)  # pairs as complex numbers; weights are lengths
    turning = v[..., : 2 * pairs].contiguous().unflatten(-1, (pairs, 2))
    mixed = torch.view_as_real((torch.view_as_complex(turning) * turn).sum(1)).flatten(1)
    if 2 * pairs == v.shape[-1]:
        return mixed
    return torch.cat([mixed, (weights.unsqueeze(-2) @ v[..., 2 * pairs :]).squeeze(-2)], -1)


def site(x: Tensor, A: Tensor, B: Tensor, scale: Tensor, ranks: tuple[int, ...], recipe: Recipe, top_k: int | None,
         onto: Tensor, prior: Tensor | None = None) -> Tensor | None:  # fmt: skip
    """As `radargate.ops.site`, in as few calls of PyTorch; None where this is not the way."""
    theta, temperature, renormalize, down, up, down_scale, angle_norm, reference = recipe
    tokens, n, d = x.numel() // x.shape[-1], len(ranks), B.shape[-1]
    slots = n if top_k is None or top_k > n else top_k
    turns = down is not None and up is not None
    if theta is None or (turns and d % 2) or n * B.shape[0] > MOST_MASKS:
        return None
    given = (A, B, scale, theta, prior, down, up, onto)
    if not applies(tokens * slots, x, *given) or any(t is not None and t.dtype != x.dtype for t in given):
        return None
    x, onto_rows = x.reshape(tokens, -1), onto.reshape(tokens, d)
    h = F.linear(x, A).mul_(scale)
    prior = None if prior is None else prior.reshape(tokens, n)
    weights, indices = select(F.linear(x, theta), top_k, temperature, renormalize, prior=prior)
    masks = _masks(ranks, x.dtype, x.device)
    masks = masks.unsqueeze(0) if indices is None else masks[indices]
    if not turns:
        own = (weights.unsqueeze(-2) @ masks[..., 0, :]).squeeze(-2)
        return torch.addmm(onto_rows, h * own, B).view(onto.shape)
    assert down is not None and up is not None
    if reference == "selected" and indices is not None:
        own = masks[..., 0, :]
        torch.sub(own.sum(1, keepdim=True), own, out=masks[..., 1, :])
    # what each slot holds and what it relates to, each from its own codes; one product reads B once for all
    both = (h.view(tokens, 1, 1, -1) * masks) @ B
    v, other = both.unbind(-2)
    code = (v * other) @ down
    factor = down_scale
    if angle_norm == "unit":
        # one after the other: their product may be too small a number; a code of zeros stays one
        for size in torch.linalg.vector_norm(both, dim=-1).clamp_(min=torch.finfo(x.dtype).tiny).split(1, -1):
            code /= size
        factor *= d
    elif angle_norm == "mean":
        factor /= max((slots if reference == "selected" else n) - 1, 1)
    alpha = code.mul_(factor) @ up
    if angle_norm == "tanh":
        alpha = math.pi * torch.tanh(alpha / math.pi)
    turn = torch.polar(weights.unsqueeze(-1).expand_as(alpha), alpha)  # pairs as complex numbers; weights are lengths
    turned = (torch.view_as_complex(v.unflatten(-1, (-1, 2))) * turn).sum(1)
    return (torch.view_as_real(turned).view(tokens, d) + onto_rows).view(onto.shape)


def expand(h: Tensor, B: Tensor, ranks: Sequence[int], indices: Tensor | None) -> Tensor:
    """v of every slot: [tokens, k, d]."""
    n, rank = len(ranks), ranks[0]
    if rank * n != B.shape[0] or any(r != rank for r in ranks):
        owner = _owners(tuple(ranks), h.device)
        slots = torch.arange(n, device=h.device).unsqueeze(0) if indices is None else indices
        return (h.unsqueeze(1) * (owner == slots.unsqueeze(-1))) @ B
    h, B = h.view(-1, n, rank), B.view(n, rank, -1)
    if indices is None:
        return torch.matmul(h.transpose(0, 1), B).transpose(0, 1)
    mine = h.gather(1, indices.unsqueeze(-1).expand(*indices.shape, rank))
    return (mine.unsqueeze(-2) @ B[indices]).squeeze(-2)


@functools.lru_cache(maxsize=256)
def _masks(ranks: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """For each expert 1 at its own codes, and 1 at all others' [n, 2, R]."""
    with torch.inference_mode(False):
        own = _owners(ranks, device) == torch.arange(len(ranks), device=device).unsqueeze(-1)
        return torch.stack((own, ~own), 1).to(dtype)


@functools.lru_cache(maxsize=4096)
def _owners(ranks: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept may be met in training
        return torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks), output_size=sum(ranks)).to(device)
