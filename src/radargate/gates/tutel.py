"""Tutel's gates: linear or cosine top-k routing, with noise, capacity and load-balance losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from radargate import ops
from radargate.errors import OptionError
from radargate.gates.balance import gshard, load_importance
from radargate.gates.base import Call, Gate, GateSite
from radargate.registry import bounded, one_of

LOSSES = ("gshard", "load_importance")


@dataclass(frozen=True)
class TutelOptions:
    """Tutel's own switches.

    Attributes:
        kind: ``"linear"`` logits, or ``"cosine"`` of a projection with learned scale.
        projection: width of the cosine projection.
        noise: of logits in training: noise · N(0, 1) / n.
        capacity: 0 drops nothing; c > 0 lets an expert take k · ⌊c · ⌈tokens / n⌉⌋ tokens of a batch, c < 0 the same
            but no more than the fullest expert needs. Dropped choices count nothing, the kept are not rescaled.
        batch_prioritized: under a capacity, tokens with higher scores come first (else in order).
        normalize: kept weights sum to 1 for k > 1.
        loss: ``"gshard"`` or ``"load_importance"`` (needs noise).
        auxiliary_weight: of that loss.
    """

    kind: str = one_of("linear", ("linear", "cosine"))
    projection: int = bounded(256, least=1)
    noise: float = bounded(0.0, least=0)
    capacity: float = 0.0
    batch_prioritized: bool = False
    normalize: bool = True
    loss: str = one_of("gshard", LOSSES)
    auxiliary_weight: float = bounded(0.01, least=0)

    def __post_init__(self) -> None:
        """Check what depends on each other."""
        if self.loss == "load_importance" and not self.noise and self.auxiliary_weight:
            raise OptionError(
                "loss='load_importance' measures what noise changes; give noise above 0, or loss='gshard'."
            )


class TutelGate(Gate):
    """Top-k routing as in Tutel: a linear or cosine gate with noise, capacity and a load-balance loss.

    Source: Tutel (Hwang et al., MLSys 2023): gates/top.py, gates/cosine_top.py, impls/fast_dispatch.py, impls/losses.py.
    """

    role = "paper"

    Options = TutelOptions

    def __init__(self, site: GateSite, options: TutelOptions) -> None:
        super().__init__(site, options)
        self.token_local = options.capacity == 0
        bound = site.d_in**-0.5
        if options.kind == "linear":
            self.softmax_weight = self.uniform(site.n, site.d_in, bound=bound)
        else:
            self.softmax_projection = self.uniform(options.projection, site.d_in, bound=bound)
            self.softmax_bias = self.uniform(options.projection, bound=bound, salt=1)
            self.softmax_similarity = self.normal(site.n, options.projection, std=0.01, salt=2)
            self.softmax_scale = nn.Parameter(torch.tensor(math.log(2.0)))

    @classmethod
    def weighs_codes(cls, options: Any) -> bool:
        """x alone decides."""
        return False

    def logits(self, x: Tensor) -> Tensor:
        """Logits [..., n] without noise."""
        if self.options.kind == "linear":
            return x @ self.softmax_weight.to(x).T
        h = F.normalize(F.linear(x, self.softmax_projection.to(x), self.softmax_bias.to(x)), dim=-1)
        scale = self.softmax_scale.to(x).clamp(max=math.log(100.0)).exp()
        return h @ F.normalize(self.softmax_similarity.to(x), dim=-1).T * scale

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Weights and indices; a choice beyond an expert's capacity weighs 0."""
        options, n = self.options, self.site.n
        logits = self.logits(call.x)
        noisy = logits
        if self.training and options.noise:
            noisy = logits + options.noise * torch.randn_like(logits) / n
        if self.training and options.auxiliary_weight:
            if options.loss == "gshard":
                self.note(gshard(noisy.softmax(-1), call.real))
            else:
                self.note(load_importance(logits, noisy, call.top_k or n, options.noise / n, call.real))
        weights, indices = ops.select(
            noisy, call.top_k, renormalize="auto" if options.normalize else "never", multipliers=call.multipliers
        )
        if options.capacity and indices is not None:
            weights = weights * within_capacity(
                indices, weights, n, options.capacity, options.batch_prioritized, call.real
            )
        return weights, indices


def within_capacity(
    indices: Tensor, weights: Tensor, n: int, capacity: float, prioritized: bool, real: Tensor | None
) -> Tensor:
    """1 for choices [..., k] that their expert has room for, 0 for the others; first choices are served first."""
    k = indices.shape[-1]
    flat = indices.reshape(-1, k)
    counted = torch.ones(flat.shape[0], 1, dtype=torch.long, device=flat.device)
    if real is not None:
        counted = real.reshape(-1, 1).long()
    tokens = int(counted.sum())
    taken = [F.one_hot(flat[:, slot], n) * counted for slot in range(k)]
    room = k * int(abs(capacity) * math.ceil(tokens / n))
    if capacity < 0:
        room = min(room, int(torch.stack(taken).sum((0, 1)).max()))
    order = torch.arange(flat.shape[0], device=flat.device)
    if prioritized:
        order = weights.detach().reshape(-1, k).amax(-1).argsort(descending=True, stable=True)
    before = torch.zeros(n, dtype=torch.long, device=flat.device)
    kept = torch.zeros_like(flat, dtype=weights.dtype)
    for slot, one in enumerate(taken):
        place = (one[order].cumsum(0) - 1 + before)[order.argsort()].gather(1, flat[:, slot : slot + 1])
        kept[:, slot] = (place[:, 0] < room).to(weights.dtype)
        before = before + one.sum(0)
    return kept.view(indices.shape)
