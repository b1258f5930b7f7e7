"""MoLE: independent experts, each with its own A and B."""

from __future__ import annotations

from torch import Tensor

from radargate import ops
from radargate.architectures.base import Architecture, Codes


class MoLE(Architecture):
    """Independent experts, each with its own A and B; block i of the codes x A is expert i's. Source: MoLE (ICLR 2024)."""

    def codes(self, x: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Codes:
        """h = (x A) ⊙ σ."""
        return Codes(ops.codes(x, A, scale), B, self.ranks)
