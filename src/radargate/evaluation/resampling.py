"""Bootstrap intervals, p-values over rows, seeds and tasks, and Holm's correction. Knows nothing of records."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2_000
MOST_FLIPPED = 16  # units whose signs are flipped in all ways: 65,536


def bootstrap_intervals(groups: Sequence[np.ndarray], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals of means over groups; rows are resampled within each group, the same rows for every column.

    Args:
        groups: one array [rows, columns] for each task; a column is a system or a difference of two.
        seed: of the resampling.

    Returns:
        Lower and upper ends, each [columns].
    """
    generator = np.random.default_rng(seed)
    means = np.zeros((RESAMPLES, groups[0].shape[1]))
    for values in groups:
        means += resample_counts(generator, len(values)) @ values / (len(values) * len(groups))
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def resample_counts(generator: np.random.Generator, size: int) -> np.ndarray:
    """How often each of ``size`` rows is drawn in each resample [resamples, rows]."""
    picks = generator.integers(0, size, size=(RESAMPLES, size)) + size * np.arange(RESAMPLES)[:, None]
    return np.bincount(picks.ravel(), minlength=RESAMPLES * size).reshape(RESAMPLES, size)


def sign_flip_p(groups: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Two-sided p-values of mean differences, from flipping the signs of row differences (a tie stays a tie).

    Args:
        groups: row differences, one array [rows, pairs] for each task; the statistic is the mean over task means.
        seed: of the flips.
        resamples: how many flips; no p is below 1 / (1 + resamples).

    Returns:
        p [pairs].
    """
    generator = np.random.default_rng(seed)
    observed = np.mean([values.mean(0) for values in groups], axis=0)
    flipped = np.zeros((resamples, groups[0].shape[1]))
    for values in groups:
        for start in range(0, resamples, RESAMPLES):  # a chunk at a time bounds the memory
            chunk = flipped[start : start + RESAMPLES]
            signs = generator.choice([-1.0, 1.0], size=(len(chunk), len(values)))
            chunk += signs @ values / (len(values) * len(groups))
    return (1 + (np.abs(flipped) >= np.abs(observed) - 1e-12).sum(0)) / (1 + resamples)


def t_test_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of a paired t test, df one less than there are differences; None where there is one alone."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return 1.0 if values[0] == 0 else 0.0
    t = abs(float(values.mean())) / (float(values.std(ddof=1)) / math.sqrt(len(values)))
    return t_p(t, len(values) - 1)


def t_p(t: float, df: int) -> float:
    """Two-sided p of ``t`` ≥ 0 under Student's distribution.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4, finite sums for whole degrees of freedom.
    """
    angle = math.atan2(t, math.sqrt(df))
    cosine, odd = math.cos(angle), df % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(df // 2):  # cos + 2/3 cos³ + (2·4)/(3·5) cos⁵ …, or 1 + 1/2 cos² + (1·3)/(2·4) cos⁴ …
        total += term
        term *= cosine**2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return min(1.0, max(0.0, 1.0 - inside))


def all_flips_p(differences: Sequence[float]) -> float | None:
    """Exact two-sided p of a mean under all flips of signs; None for more than `MOST_FLIPPED` differences.

    No p is below 2 / 2ⁿ: five differences reach 0.0625, six 0.03125.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) > MOST_FLIPPED:
        return None
    flipped = np.abs(_all_signs(len(values)) @ values)
    return float((flipped >= abs(values.sum()) - 1e-12).mean())


@functools.cache
def _all_signs(count: int) -> np.ndarray:
    """Every row of signs whose last is +1 [2^(count − 1), count]: the others mirror these."""
    return 1.0 - 2.0 * (np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in the order given; none exceeds 1."""
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = running
    return corrected
