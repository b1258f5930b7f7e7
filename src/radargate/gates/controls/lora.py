"""A control: stretch plus one small LoRA with as many parameters as radar's rotation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from radargate.gates.base import Call, GateSite
from radargate.gates.controls.matched import MatchedOptions
from radargate.gates.stretch import StretchGate


class LoRAGate(StretchGate):
    """Control: stretch plus one small LoRA of its own, with as many parameters as radar's rotation (it starts at 0)."""

    role = "control"
    beside_weights = ("rotation_lora_A", "rotation_lora_B")

    Options = MatchedOptions

    def __init__(self, site: GateSite, options: MatchedOptions) -> None:
        super().__init__(site, options)
        rank = options.rank_at(site, site.d_in + site.d_out)
        # stored at unit size like P, for the same reason (see `radargate.gates.rotation.size_of_down`)
        self.rotation_lora_A = self.normal(rank, site.d_in, std=1.0, salt=1)
        self.rotation_lora_B = nn.Parameter(torch.zeros(site.d_out, rank))

    def extra(self, call: Call) -> Tensor:
        """The LoRA's output [..., d_out]."""
        code = call.x @ self.rotation_lora_A.to(call.x).T * self.site.d_in**-0.5
        return code @ self.rotation_lora_B.to(call.x).T
