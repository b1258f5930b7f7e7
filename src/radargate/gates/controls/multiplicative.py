"""A control: outputs times a factor where radar turns them."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from radargate import ops
from radargate.gates.base import Call, GateOutput, GateSite
from radargate.gates.controls.matched import MatchedOptions
from radargate.gates.rotation import relation_codes
from radargate.gates.stretch import StretchGate


class MultiplicativeGate(StretchGate):
    """Control: stretch on outputs v_i ⊙ (1 + code_i Q), coordinate by coordinate, where radar turns v_i (it starts at 1).

    code_i is the one of radar, from how v_i relates to all the others.
    """

    role = "control"
    beside_weights = ("rotation_down", "rotation_up")

    Options = MatchedOptions

    def __init__(self, site: GateSite, options: MatchedOptions) -> None:
        super().__init__(site, options)
        rank = options.rank_at(site, 2 * site.d_out)
        self.rotation_down = self.normal(site.d_out, rank, std=1.0, salt=1)
        self.rotation_up = nn.Parameter(torch.zeros(rank, site.d_out))

    def forward(self, call: Call) -> GateOutput:
        """Stretch, and Σ_i g_i v_i ⊙ (code_i Q) beside it: for each row q of Q one mixture of the v_i, times q."""
        gated = super().forward(call)
        call = dataclasses.replace(call, codes=gated.codes)
        code, up = relation_codes(call, gated.indices, self.rotation_down), self.rotation_up.to(call.x)
        mixtures = (
            ops.mix(call.h, call.B, call.ranks, gated.weights * code[..., r], gated.indices) * up[r]
            for r in range(len(up))
        )
        return dataclasses.replace(gated, extra=sum(mixtures, call.x.new_zeros(())))
