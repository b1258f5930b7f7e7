"""The nearest point of a convex hull, many small problems at once, with a certificate of how near the answer is."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS, CHECK_EVERY = 4000, 50


def simplex_weights(gram: Tensor, inner: Tensor, tolerance: float = 1e-8) -> tuple[Tensor, Tensor]:
    """Weights w ≥ 0 that sum to 1 and minimise ½ wᵀ G w − cᵀ w: accelerated projected gradient with restarts.

    Args:
        gram: G [problems, n, n], inner products of the hull's corners.
        inner: c [problems, n], inner products of the corners with the point.
        tolerance: stop once every duality gap is below this share of the largest diagonal entry of its G.

    Returns:
        w [problems, n], and the duality gap [problems]: how far the value can be above the best one at most.
    """
    scale = gram.diagonal(dim1=-2, dim2=-1).amax(-1).clamp(min=1e-30)
    gram, inner = (gram / scale[:, None, None]).double(), (inner / scale[:, None]).double()
    step = 1.0 / torch.linalg.matrix_norm(gram, ord=2).clamp(min=1e-12)[:, None]
    w = torch.full_like(inner, 1.0 / inner.shape[-1])
    ahead, speed = w, torch.ones(len(w), 1, dtype=w.dtype, device=w.device)
    gap = torch.full_like(scale, torch.inf, dtype=w.dtype)
    for number in range(ROUNDS):
        slope = (gram @ ahead[..., None])[..., 0] - inner
        new = onto_simplex(ahead - step * slope)
        back = ((ahead - new) * (new - w)).sum(-1, keepdim=True) > 0  # going uphill: start the acceleration anew
        next_speed = torch.where(back, 1.0, (1 + (1 + 4 * speed**2).sqrt()) / 2)
        ahead = torch.where(back, new, new + (speed - 1) / next_speed * (new - w))
        w, speed = new, next_speed
        if number % CHECK_EVERY == CHECK_EVERY - 1:
            slope = (gram @ w[..., None])[..., 0] - inner
            gap = (slope * w).sum(-1) - slope.amin(-1)
            if bool((gap < tolerance).all()):
                break
    return w, gap * scale


def onto_simplex(points: Tensor) -> Tensor:
    """The nearest points [..., n] with entries ≥ 0 that sum to 1."""
    ordered = points.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, points.shape[-1] + 1, device=points.device)
    last = (ordered > excess).sum(-1, keepdim=True) - 1
    return (points - excess.gather(-1, last)).clamp(min=0)
