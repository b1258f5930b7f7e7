"""A control: linear weights of any sign, without a softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from radargate import ops
from radargate.gates.base import Call, Gate, GateSite
from radargate.registry import bounded


class SignedGate(Gate):
    """Control: weights x θ + b of any sign and size, without a softmax; the k largest in size are kept as they are."""

    role = "control"

    @dataclass(frozen=True)
    class Options:
        """Attributes:
        init_std: spread of the initial θ; b starts at 1/n.
        """

        init_std: float = bounded(0.002, least=0)

    def __init__(self, site: GateSite, options: Options) -> None:
        super().__init__(site, options)
        self.softmax_theta = self.normal(site.n, site.d_in, std=options.init_std)
        self.softmax_bias = nn.Parameter(torch.full((site.n,), 1.0 / site.n))

    @classmethod
    def weighs_codes(cls, options: Any) -> bool:
        """x alone decides."""
        return False

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Weights [..., k] and indices."""
        weights = call.x @ self.softmax_theta.to(call.x).T + self.softmax_bias.to(call.x)
        if call.multipliers is not None:
            weights = weights * call.multipliers
        if call.top_k is None or call.top_k >= self.site.n:
            return weights, None
        on = None if call.multipliers is None else (call.multipliers > 0).to(call.x)
        _, indices = ops.select(weights.detach().abs(), call.top_k, multipliers=on)
        assert indices is not None
        return weights.gather(-1, indices), indices
