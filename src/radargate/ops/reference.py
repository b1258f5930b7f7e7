"""The specification: stretch, rotation and radar in output space, written as the paper prints them.

Every expert's output is a tensor of its own, [..., n, d_out], and nothing is clever. The oracle of every test;
too slow and large for use. Source: arXiv 2505.23184, Eqs. 1-4, 8, 13, 17-20, App. B, with the readings of
its gaps that ``docs/readings.md`` lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from radargate.ops.selection import dense_weights, select

EPS = 1e-6  # of the normalisation of concatenated outputs (App. B.2 leaves it undefined)


def expert_outputs(x: Tensor, A: list[Tensor], B: list[Tensor]) -> Tensor:
    """v_i = B_i A_i x for every expert: [..., n, d_out]; A_i is [r_i, d_in], B_i is [d_out, r_i], scale folded in."""
    return torch.stack([(x @ a.T) @ b.T for a, b in zip(A, B, strict=True)], dim=-2)


def rotate(v: Tensor, angles: Tensor) -> Tensor:
    """Turn every pair (2m, 2m+1) of ``v`` [..., d] by ``angles`` [..., d // 2] radians; an odd last one stays.

    Source: Eq. 17, 18 (interleaved pairs).
    """
    even, odd = v[..., 0 : v.shape[-1] // 2 * 2 : 2], v[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.cat([pairs, v[..., pairs.shape[-1] :]], dim=-1)


def angles(
    v: Tensor,
    down: Tensor | None,
    up: Tensor,
    *,
    x: Tensor | None = None,
    chosen: Tensor | None = None,
    reference: str = "all",
    angle_norm: str = "none",
) -> Tensor:
    """Rotation angles of every expert in radians: [..., n, d // 2].

    α_i = ((v_i ⊙ Σ_{j≠i} v_j) P) Q, or (x P) Q where ``x`` is given.

    Args:
        v: expert outputs [..., n, d].
        down: P, [d, r_a], or [n, d, r_a] for one per expert, or None for a full θ_r in ``up``.
        up: Q, [r_a, d // 2], or [n, r_a, d // 2] for one per expert.
        x: [..., d_in]; the code then comes from it and P is [d_in, r_a].
        chosen: [..., n] of 0 and 1; needed for ``reference="selected"``.
        reference: sum over ``"all"`` other experts or over the other ``"selected"`` ones.
        angle_norm: ``"none"`` as printed; ``"unit"`` scales v_i and its reference (or x) to unit RMS, 0 where a
            norm is 0; ``"mean"`` divides the reference by its number of experts; ``"tanh"`` bounds angles to ±π.

    Source: Eq. 5, 8, 20, 32-34; Sec. 4.3 for the low rank.
    """
    n = v.shape[-2]
    if x is None:
        counted = v if reference == "all" else v * _need(chosen).unsqueeze(-1)
        # written as a loop over j, as in Eq. 5, not as (sum - own)
        each = counted.unbind(-2)
        none = torch.zeros_like(each[0])
        others = torch.stack([sum((v_j for j, v_j in enumerate(each) if j != i), none) for i in range(n)], -2)
        if angle_norm == "unit":
            source = unit_rms(v) * unit_rms(others)
        elif angle_norm == "mean":
            source = v * others / _others_count(v, chosen if reference == "selected" else None)
        else:
            source = v * others
    else:
        base = unit_rms(x) if angle_norm == "unit" else x
        source = base.unsqueeze(-2).expand(*base.shape[:-1], n, base.shape[-1])
    code = source if down is None else _per_expert(source, down)
    alpha = _per_expert(code, up)
    return math.pi * torch.tanh(alpha / math.pi) if angle_norm == "tanh" else alpha


def unit_rms(v: Tensor) -> Tensor:
    """Scale the last dimension to root mean square 1; a zero vector stays zero, in value and gradient."""
    square = v.square().mean(-1, keepdim=True)
    live = square > 0
    return v * torch.where(live, torch.where(live, square, 1.0).rsqrt(), 0.0)


def concat_logits(outputs: Tensor, theta: Tensor, norm: str = "layer") -> Tensor:
    """Gate logits from concatenated expert outputs: norm(v_1 ⊕ … ⊕ v_n) θ_s, [..., n].

    Args:
        outputs: [..., n, d]; θ_s is [n * d, n].
        theta: θ_s.
        norm: ``"layer"`` (no affine parameters) or ``"rms"``.

    Source: App. B.2.
    """
    z = outputs.flatten(-2)
    if norm == "layer":
        z = z - z.mean(-1, keepdim=True)
    z = z * (z.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return z @ theta


def gram_schmidt(
    v: Tensor, norm: str = "none", order: Sequence[int] | None = None, chosen: Sequence[int] | None = None
) -> Tensor:
    """Expert outputs made orthogonal one after the other: [..., n, d] → the same shape.

    w_i = u_i − Σ_{j before i} ⟨w_j, u_i⟩ / (⟨w_j, w_j⟩ + ε) w_j, with u_i what is left of v_i so far (modified
    Gram–Schmidt) and ε = 1e-6 · mean_i ‖v_i‖² + 1e-12.

    Args:
        v: expert outputs.
        norm: ``"none"``, ``"keep_input_norm"`` (each w_i scaled to ‖v_i‖) or ``"unit"``.
        order: experts in the order they are taken; None for their own.
        chosen: only these are orthogonalised; None for all.

    Source: OMoE (2501.10062), as docs/concepts/architectures.md reads it.
    """
    eps = 1e-6 * v.square().sum(-1).mean(-1, keepdim=True) + 1e-12
    done: dict[int, Tensor] = {}
    result = list(v.unbind(-2))
    for i in range(v.shape[-2]) if order is None else order:
        if chosen is not None and i not in chosen:
            continue
        w = result[i]
        for other in done.values():
            w = w - (w * other).sum(-1, keepdim=True) / (other.square().sum(-1, keepdim=True) + eps) * other
        done[i] = w
    for i, w in done.items():
        size = w.square().sum(-1, keepdim=True) + eps
        scale = 1.0 if norm == "none" else size.rsqrt()
        if norm == "keep_input_norm":
            scale = scale * (v[..., i, :].square().sum(-1, keepdim=True) + eps).sqrt()
        result[i] = w * scale
    return torch.stack(result, -2)


def radar(
    x: Tensor,
    A: list[Tensor],
    B: list[Tensor],
    stretch: Tensor | None = None,
    down: Tensor | None = None,
    up: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    indices: Tensor | None = None,
    top_k: int | None = None,
    temperature: float = 1.0,
    renormalize: str = "auto",
    angle_norm: str = "none",
    reference: str = "all",
    gate_input: str = "input",
    norm: str = "layer",
    rotation_input: str = "experts",
    rotate_output: bool = True,
    outputs: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The update Σ_i g_i ṽ_i in output space; arguments as in `radargate.ops.radar`.

    ``outputs`` changes the experts' outputs [..., n, d] before any gate sees them (see `gram_schmidt`).

    Source: Eq. 1 and 13; App. B.2 and C.2 for the other gate inputs.
    """
    v = expert_outputs(x, A, B)
    v = v if outputs is None else outputs(v)
    n, code_from = v.shape[-2], x if rotation_input == "input" else None
    options = {"x": code_from, "reference": reference, "angle_norm": angle_norm}
    if weights is None:
        if stretch is None:
            logits = x.new_zeros(*x.shape[:-1], n)
        elif gate_input == "input":
            logits = x @ stretch.T
        elif gate_input == "experts":
            logits = concat_logits(v, stretch, norm)
        else:
            turned = rotate(v, angles(v, down, up, **options)) if up is not None else v  # type: ignore[arg-type]
            logits = concat_logits(turned, stretch, norm)
        weights, indices = select(logits, top_k, temperature, renormalize, indices)
    g = dense_weights(weights, indices, n)
    if up is None or not rotate_output:
        return (g.unsqueeze(-1) * v).sum(-2)
    chosen = dense_weights(torch.ones_like(weights), indices, n)
    alpha = angles(v, down, up, chosen=chosen, **options)  # type: ignore[arg-type]
    return (g.unsqueeze(-1) * rotate(v, alpha)).sum(-2)


def _per_expert(source: Tensor, matrix: Tensor) -> Tensor:
    """``source`` [..., n, d] times a shared [d, c] or a per-expert [n, d, c] matrix."""
    return source @ matrix if matrix.dim() == 2 else (source.unsqueeze(-2) @ matrix).squeeze(-2)


def _others_count(v: Tensor, chosen: Tensor | None) -> Tensor | float:
    if chosen is None:
        return float(max(v.shape[-2] - 1, 1))
    return (chosen.sum(-1, keepdim=True) - chosen).clamp(min=1).unsqueeze(-1)


def _need(chosen: Tensor | None) -> Tensor:
    if chosen is None:
        raise ValueError("reference='selected' needs to know the chosen experts")
    return chosen
