"""MoLE: independent experts, each with its own A and B; block i of the codes is expert i's."""

from __future__ import annotations

from torch import Tensor

from radargate import ops


class MoLE:
    """x → h = (x A) ⊙ σ. Promises that permuting experts, or other tokens, leave a token's output."""

    order_free = True
    token_local = True

    @staticmethod
    def codes(x: Tensor, A: Tensor, scale: Tensor) -> Tensor:
        """Codes [..., R] for x [..., d_in]; A [R, d_in], scale [R]."""
        return ops.codes(x, A, scale)
