"""A control: stretch plus one learned output vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from radargate.gates.base import Call, GateSite
from radargate.gates.stretch import StretchGate, StretchOptions


class VectorGate(StretchGate):
    """Control: stretch plus one learned output vector, the same for every token (it starts at 0)."""

    role = "control"
    beside_weights = ("rotation_vector",)

    def __init__(self, site: GateSite, options: StretchOptions) -> None:
        super().__init__(site, options)
        self.rotation_vector = nn.Parameter(torch.zeros(site.d_out))

    def extra(self, call: Call) -> Tensor:
        """The vector, for every token."""
        return self.rotation_vector.to(call.x).expand(*call.x.shape[:-1], -1)
