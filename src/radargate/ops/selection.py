"""From logits to weights: softmax, temperature, top-k. Shared by the literal form and the form on codes."""

from __future__ import annotations

import torch
from torch import Tensor

from radargate.errors import OptionError

RENORMALIZE = ("auto", "always", "never", "straight_through")
# of logits on a CPU: 6 times as fast as sorting at 512 tokens of 40 experts, slower below
FEW_PASSES, WORTH_PASSES = 4, 4096


def select(
    logits: Tensor,
    top_k: int | None = None,
    temperature: float = 1.0,
    renormalize: str = "auto",
    indices: Tensor | None = None,
    multipliers: Tensor | None = None,
    prior: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Weights of the chosen experts: topk(softmax(logits / τ)).

    Args:
        logits: [..., n].
        top_k: experts kept; None or n keeps all.
        temperature: τ > 0.
        renormalize: scale the kept weights to sum 1: ``"always"`` (as printed), ``"never"``, or ``"auto"`` (only
            for k > 1: renormalised top-1 weights are constant, so the gate would not learn).
            ``"straight_through"`` keeps the best expert alone, whatever ``top_k`` says, with weight 1 and the gradient
            of the whole softmax: p + (onehot − p) with the bracket held constant. That reaches every expert's weight,
            so where logits ask for gradients all n weights are given, zeros among them.
        indices: [..., k] fixes the chosen experts.
        multipliers: [n] of factors ≥ 0 on the softmax weights, 0 switches an expert off.
        prior: [..., n] logarithms of more such factors, for each token its own.

    Returns:
        weights [..., k], and indices [..., k], highest weight first and ties to the lowest index; indices
        are None where all experts are kept in order.

    Source: Eq. 1; Tutel's rule for k = 1; Hard-Routed MoR-LoRA (arXiv 2606.31413) for the straight-through form.
    """
    n = logits.shape[-1]
    scaled = logits if temperature == 1 else logits / temperature
    if prior is not None:
        scaled = scaled + prior
    if multipliers is not None:
        scaled = scaled + multipliers.to(scaled).log()
    if renormalize == "straight_through":
        return _straight_through(scaled, indices)
    if indices is None:
        if top_k is None or top_k >= n:
            return scaled.softmax(-1), None
        indices = _highest(scaled.detach(), top_k)
    k = indices.shape[-1]
    if renormalize == "always" or (renormalize == "auto" and k > 1):
        return scaled.gather(-1, indices).softmax(-1), indices
    return scaled.softmax(-1).gather(-1, indices), indices


def _straight_through(logits: Tensor, indices: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight 1 on the best expert, or the first of ``indices``; gradients as of the softmax over all."""
    best = _highest(logits.detach(), 1) if indices is None else indices[..., :1]
    if not logits.requires_grad:
        return torch.ones_like(best, dtype=logits.dtype), best
    shares = logits.softmax(-1)
    # shares less themselves are 0 exactly, so what acts is 1 and 0 exactly
    return torch.zeros_like(shares).scatter(-1, best, 1.0) + (shares - shares.detach()), None


def _highest(logits: Tensor, k: int) -> Tensor:
    """The k highest of the last dimension, highest first and ties to the lowest index."""
    if k == 1:
        return logits.argmax(-1, keepdim=True)
    if k > FEW_PASSES or logits.numel() < WORTH_PASSES or logits.device.type != "cpu":
        return logits.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    # so few passes over many numbers are cheaper than sorting; below all that is left stands what was taken
    left, taken = logits.clamp(min=torch.finfo(logits.dtype).min), []
    for _ in range(k):
        taken.append(left.max(-1, keepdim=True).indices)
        left.scatter_(-1, taken[-1], -torch.inf)
    return torch.cat(taken, -1)


def dense_weights(weights: Tensor, indices: Tensor | None, n: int) -> Tensor:
    """Spread chosen weights [..., k] over all experts [..., n], zero elsewhere."""
    if indices is None:
        return weights
    return torch.zeros(*weights.shape[:-1], n, dtype=weights.dtype, device=weights.device).scatter(-1, indices, weights)


def check_selection(
    n: int, top_k: int | None, temperature: float, renormalize: str, reference: str | None = None
) -> None:
    """Raise `OptionError` for a top-k, temperature or renormalisation that cannot work with n experts.

    ``reference`` is what a rotation relates to, where there is one.
    """
    if top_k is not None and not 1 <= top_k <= n:
        raise OptionError(f"top_k is {top_k}, expected 1 to {n}, the number of experts.")
    if not temperature > 0:
        raise OptionError(f"temperature is {temperature}, expected a number above 0.")
    if renormalize not in RENORMALIZE:
        raise OptionError(f"renormalize is {renormalize!r}, expected one of {', '.join(RENORMALIZE)}.")
    if renormalize == "straight_through" and reference == "selected":
        raise OptionError(
            "renormalize='straight_through' keeps one expert, so reference='selected' leaves it no other to relate to. Use "
            "reference='all'."
        )
