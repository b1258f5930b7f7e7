"""MoLE's gate: weights from what the experts say, with a learned temperature and a balance loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from radargate import ops
from radargate.gates.balance import token_mean
from radargate.gates.base import Call, Gate, GateSite
from radargate.registry import bounded, one_of


@dataclass(frozen=True)
class MoLEOptions:
    """Readings of MoLE's gate.

    Attributes:
        pool: weights for each ``"token"``, or one set for the whole ``"sequence"`` (the mean over its real tokens),
            which only an encoder may have: elsewhere a token would see those after it.
        temperature: start of the learned τ > 0.
        norm: ``"layer"`` or ``"rms"``, of the concatenated outputs.
        renormalize: as for stretch.
        auxiliary_weight: of the balance loss −Σ_i log q_i.
        init_std: spread of the initial e.
    """

    pool: str = one_of("token", ("token", "sequence"))
    temperature: float = bounded(1.0, above=0)
    norm: str = one_of("layer", ops.NORMS)
    renormalize: str = one_of("auto", ops.RENORMALIZE)
    auxiliary_weight: float = bounded(0.5, least=0)
    init_std: float = bounded(0.02, least=0)


class MoLEGate(Gate):
    """Weights from the concatenated expert outputs: softmax(norm(v_1 ⊕ … ⊕ v_n) e / τ), τ learned, with a balance loss.

    Source: MoLE (ICLR 2024), Eqs. 9-14.
    """

    Options = MoLEOptions

    def __init__(self, site: GateSite, options: MoLEOptions) -> None:
        super().__init__(site, options)
        self.token_local = options.pool == "token"
        self.whole_sequence = not self.token_local
        self.softmax_theta = self.normal(site.n * site.d_out, site.n, std=options.init_std)
        self.softmax_log_temperature = nn.Parameter(torch.tensor(float(options.temperature)).log())

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Weights and indices; over a sequence they come from the mean of its codes, which is the codes of the mean."""
        seen = call
        if self.options.pool == "sequence" and call.x.dim() > 2:
            seen = dataclasses.replace(call, codes=dataclasses.replace(call.codes, h=_mean(call.codes.h, call.real)))
        logits = ops.expert_logits(seen.h, seen.B, seen.ranks, self.softmax_theta.to(call.x), self.options.norm)
        logits = logits / self.softmax_log_temperature.to(call.x).exp()
        if self.options.pool == "sequence":
            logits = logits.expand(*call.x.shape[:-1], self.site.n)
        if self.training and self.options.auxiliary_weight:
            self.note(token_mean(logits.softmax(-1), call.real))
        return ops.select(logits, call.top_k, renormalize=self.options.renormalize, multipliers=call.multipliers)

    @classmethod
    def auxiliary(cls, terms: Sequence[tuple[Any, Tensor]]) -> Tensor:
        """−Σ_i log q_i, with q_i the mean weight of expert i over all gates and tokens; n log n where all are used alike."""
        mine: dict[str, list[Tensor]] = {}
        for gate, weights in terms:
            names = gate.site.experts or tuple(str(i) for i in range(gate.site.n))
            for name, weight in zip(names, weights, strict=True):
                mine.setdefault(name, []).append(weight)
        return -torch.stack([torch.stack(w).mean().clamp(min=1e-12).log() for w in mine.values()]).sum()


def _mean(h: Tensor, real: Tensor | None) -> Tensor:
    """Mean over the tokens of codes [batch, length, ...]: [batch, 1, ...]."""
    if real is None:
        return h.mean(1, keepdim=True)
    keep = real.to(h).view(*real.shape, *[1] * (h.dim() - 2))
    return (h * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True).clamp(min=1)
