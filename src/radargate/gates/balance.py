"""Load-balance statistics: is every expert used by some tokens? Padding counts nowhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_mean(values: Tensor, real: Tensor | None) -> Tensor:
    """Mean of ``values`` [..., n] over real tokens: [n]."""
    flat = values.reshape(-1, values.shape[-1])
    if real is None:
        return flat.mean(0)
    keep = real.reshape(-1, 1).to(flat)
    return (flat * keep).sum(0) / keep.sum().clamp(min=1)


def gshard(scores: Tensor, real: Tensor | None) -> Tensor:
    """n Σ_e mean_t(score) · (share of tokens whose first choice is e); 1 where all are used alike.

    Source: Switch, GShard; Tutel's ``gshard_loss`` (impls/losses.py).
    """
    n = scores.shape[-1]
    first = F.one_hot(scores.detach().argmax(-1), n).to(scores)
    return n * (token_mean(scores, real) * token_mean(first, real)).sum()


def squared_variation(values: Tensor) -> Tensor:
    """Squared coefficient of variation, var / (mean² + 1e-10)."""
    return values.var() / (values.mean().square() + 1e-10)


def load_importance(logits: Tensor, noisy: Tensor, top_k: int, spread: float, real: Tensor | None) -> Tensor:
    """½ [CV²(importance) + CV²(load)], load being the chance that noise brings an expert into the top k.

    Source: Shazeer et al. 2017 as in Tutel's ``load_importance_loss``; thresholds are logits and are compared with
    logits (Tutel compares them with probabilities).
    """
    scores = logits.softmax(-1)
    n = logits.shape[-1]
    threshold = noisy.topk(min(top_k, n), -1).values[..., -1:]
    chance = torch.special.ndtr((logits - threshold) / spread)
    return 0.5 * (squared_variation(token_mean(scores, real)) + squared_variation(token_mean(chance, real)))
