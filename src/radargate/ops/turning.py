"""From codes to angles, and turning by them: shared by the forms on block codes and on dense codes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def project(source: Tensor, matrix: Tensor, indices: Tensor | None, slot: int) -> Tensor:
    """``source`` [tokens, d] times a shared [d, c] matrix, or times that of the expert in the slot, [n, d, c]."""
    if matrix.dim() == 2:
        return source @ matrix
    if indices is None:
        return source @ matrix[slot]
    n, d, c = matrix.shape
    every = (source @ matrix.transpose(0, 1).reshape(d, n * c)).view(-1, n, c)
    return every.gather(1, indices[:, slot].view(-1, 1, 1).expand(-1, 1, c)).squeeze(1)


def angle(code: Tensor, up: Tensor, indices: Tensor | None, slot: int, angle_norm: str) -> Tensor:
    """Angles in radians [tokens, d // 2] of the expert in one slot, from its rotation code [tokens, r_a]."""
    if up.dim() == 2 or indices is None:
        alpha = code @ (up if up.dim() == 2 else up[slot])
    else:
        n, c, half = up.shape
        mine = F.one_hot(indices[:, slot], n).to(code.dtype)
        alpha = (mine.unsqueeze(-1) * code.unsqueeze(1)).view(-1, n * c) @ up.reshape(n * c, half)
    return math.pi * torch.tanh(alpha / math.pi) if angle_norm == "tanh" else alpha


def turn_pairs(v: Tensor, alpha: Tensor) -> Tensor:
    """``v`` [tokens, d] with every pair (2m, 2m+1) turned by ``alpha`` [tokens, d // 2]. Source: Eq. 18."""
    pairs = alpha.shape[-1]
    if not pairs:
        return v  # a single output, as a reward model's score, has nothing to turn with
    both = v[:, : 2 * pairs].view(-1, pairs, 2)
    even, odd = both.unbind(-1)
    cos, sin = alpha.cos(), alpha.sin()
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).view(-1, 2 * pairs)
    return turned if 2 * pairs == v.shape[-1] else torch.cat([turned, v[:, 2 * pairs :]], -1)
