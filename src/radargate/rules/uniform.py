"""Uniform: every expert weighs 1/n."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from radargate import ops
from radargate.gates.base import Call, Gate


class UniformRule(Gate):
    """Every expert weighs 1/n."""

    static = True

    @dataclass(frozen=True)
    class Options:
        """Uniform has no options."""

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Weights [..., n], in proportion to the call's multipliers."""
        logits = torch.zeros(*call.x.shape[:-1], self.site.n, dtype=call.x.dtype, device=call.x.device)
        return ops.select(logits, None, multipliers=call.multipliers)
