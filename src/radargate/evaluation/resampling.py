"""Bootstrap intervals, sign-flip p-values and Holm's correction, for many systems at once. Knows nothing of records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2_000


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in the order given; none exceeds 1."""
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = running
    return corrected
