"""The linear map of low rank that comes closest to given updates, from second moments alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# ridges that are tried, as shares of the largest eigenvalue: a few coordinates of a model's states can be a thousand times the others
RIDGES = tuple(10.0 ** (power / 2) for power in range(-24, 1))
LEAST = 1e-13  # eigenvalues below this share of the largest are rounding
DROPPED = 1e-7  # directions that carry less than this share of the strongest one are not stored


class Moments:
    """Second moments of one site's inputs x and updates u, summed over tokens in float64.

    Args:
        d_in: width of x.
        d_out: width of u.
        device: where they are summed.

    Attributes:
        inputs: Σ x xᵀ [d_in, d_in].
        cross: Σ x uᵀ [d_in, d_out].
        size: Σ ‖u‖².
        tokens: how many were seen.
    """

    def __init__(self, d_in: int, d_out: int, device: torch.device | str = "cpu") -> None:
        self.inputs = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)
        self.cross = torch.zeros(d_in, d_out, dtype=torch.float64, device=device)
        self.size = torch.zeros((), dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, x: Tensor, u: Tensor) -> None:
        """Take in inputs x [tokens, d_in] and their updates u [tokens, d_out]."""
        x, u = x.double(), u.double()
        self.inputs.addmm_(x.T, x)
        self.cross.addmm_(x.T, u)
        self.size += u.square().sum()
        self.tokens += x.shape[0]


@dataclass(frozen=True)
class LowRank:
    """A map x ↦ x Aᵀ B and how well it does.

    Attributes:
        A: [r, d_in] in float64.
        B: [r, d_out] in float64.
        ridge: what was added to the inputs' moments, in their unit.
        residual: ‖u − x Aᵀ B‖ / ‖u‖ over the tokens it was fitted to; 0 where all updates are 0.
        residual_any_rank: the same of the best map with that ridge and no limit on the rank.
    """

    A: Tensor
    B: Tensor
    ridge: float
    residual: float
    residual_any_rank: float


def reduced_rank(moments: Moments, rank: int) -> LowRank:
    """The M of at most this rank with least Σ ‖u − x M‖² + λ ‖M‖², as factors M = Aᵀ B.

    With S = Σ x xᵀ + λ and C = Σ x uᵀ that is S^(−1/2) times the truncated singular value decomposition of S^(−1/2) C; S^(−1/2)
    comes from an eigendecomposition, so S is never inverted. λ is the one with the least generalised cross-validation
    error of the map without a limit on the rank.
    """
    values, vectors = torch.linalg.eigh(moments.inputs)
    values = torch.where(values > LEAST * values[-1].clamp(min=0), values, 0.0)
    cross = vectors.T @ moments.cross
    size, live = float(moments.size), values > 0
    if not size or not bool(live.any()):
        empty = moments.inputs.new_zeros
        return LowRank(empty(0, moments.inputs.shape[0]), empty(0, cross.shape[1]), 0.0, 0.0, 0.0)
    ridge, unlimited = _ridge(values[live], cross[live].square().sum(1), moments)
    scale = torch.where(live, (values + ridge).rsqrt(), 0.0)[:, None]
    left, strengths, right = torch.linalg.svd(scale * cross, full_matrices=False)
    kept = min(rank, int((strengths > DROPPED * strengths[0]).sum()))
    root = strengths[:kept].sqrt()
    down, up = scale * left[:, :kept] * root, root[:, None] * right[:kept]
    explained = 2 * ((down.T @ cross) * up).sum() - ((down.T @ (values[:, None] * down)) * (up @ up.T)).sum()
    return LowRank((vectors @ down).T, up, ridge, _share(size - float(explained), size), _share(unlimited, size))


def _ridge(values: Tensor, energy: Tensor, moments: Moments) -> tuple[float, float]:
    """The ridge with the least cross-validation error, and Σ ‖u − x M‖² with it.

    Sums of terms that are all positive: as differences they would drown in rounding where there are fewer tokens than widths.

    Args:
        values: eigenvalues above zero of Σ x xᵀ [k].
        energy: squared lengths of Σ x uᵀ along their eigenvectors [k].
        moments: the rest.
    """
    unreachable = float(moments.size - (energy / values).sum())
    unreachable = unreachable if unreachable > 1e-12 * float(moments.size) else 0.0
    best: tuple[float, float, float] | None = None
    for share in RIDGES:
        ridge = share * float(values[-1])
        missed = unreachable + float((energy * ridge**2 / (values * (values + ridge) ** 2)).sum())
        free = max(moments.tokens - len(values), 0) + float((ridge / (values + ridge)).sum())
        error = missed / (free / moments.tokens) ** 2
        if (
            best is None or error < (1 - 1e-9) * best[0]
        ):  # of equals the smallest: as many tokens as directions say nothing
            best = (error, ridge, missed)
    assert best is not None
    return best[1:]


def _share(missed: float, size: float) -> float:
    return max(missed, 0.0) ** 0.5 / size**0.5
