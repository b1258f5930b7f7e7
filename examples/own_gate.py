"""A gate of your own is one class and one line: python examples/own_gate.py BASE ADAPTER ADAPTER …"""

import sys
from dataclasses import dataclass

import torch

import radargate
from radargate import ops
from radargate.gates import GATES
from radargate.gates.base import Call, Gate
from radargate.registry import bounded


class LoudestGate(Gate):
    """Weighs experts by the size of what they say: softmax(s · ‖v_i‖), one learned s a layer."""

    @dataclass(frozen=True)
    class Options:
        """How sharply to start."""

        sharpness: float = bounded(1.0, above=0)

    def __init__(self, site, options) -> None:
        super().__init__(site, options)
        self.softmax_sharpness = torch.nn.Parameter(torch.tensor(options.sharpness))

    def weigh(self, call: Call):
        logits = ops.expert_norms(call.h, call.B, call.ranks) * self.softmax_sharpness
        return ops.select(logits, call.top_k, multipliers=call.multipliers)


GATES.register("loudest", f"{__name__}:LoudestGate")
model = radargate.compose(sys.argv[1], sys.argv[2:], gate="loudest", sharpness=2.0)
print(next(name for name, p in model.named_parameters() if p.requires_grad))
