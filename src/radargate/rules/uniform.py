"""Uniform: every expert weighs 1/n."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from radargate import ops
from radargate.gates.base import Call, Gate, GateOutput


class UniformRule(Gate):
    """g_i = 1/n for every expert (or in proportion to the multipliers of the call). Trains nothing."""

    @dataclass(frozen=True)
    class Options:
        """Uniform has no options."""

    def forward(self, call: Call) -> GateOutput:
        """Weights [..., n]."""
        logits = torch.zeros(*call.x.shape[:-1], self.site.n, dtype=call.x.dtype, device=call.x.device)
        return GateOutput(*ops.select(logits, None, multipliers=call.multipliers))
