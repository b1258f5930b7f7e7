"""MoLE: independent experts, each with its own A and B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radargate import ops
from radargate.architectures.base import Architecture, Codes
from radargate.errors import OptionError
from radargate.ops import cpp
from radargate.registry import one_of

ROUTES = ("direct", "merged", "auto")


@dataclass(frozen=True)
class Unshrunk(Codes):
    """x before it is shrunk by A: ``h`` [..., 0] has no codes yet."""

    x: Tensor | None = None
    A: Tensor | None = None
    scale: Tensor | None = None


class MoLE(Architecture):
    """Independent experts, each with its own A and B; block i of the codes x A is expert i's. Source: MoLE (ICLR 2024)."""

    @dataclass(frozen=True)
    class Options:
        """Attributes:
        route: ``"direct"`` shrinks x by every expert's A. ``"merged"`` shrinks it by those of the chosen experts only and
            has Σ_j v_j from x M, M = Σ_j s_j A_j B_j: time does not grow with the number of experts, for d_in·d_out
            numbers more in memory at each site. It needs a gate that chooses from x alone. ``"auto"`` takes it where the
            gate allows it and `radargate.ops.merged_is_cheaper` says so, on a CPU with the compiled operations.
        """

        route: str = one_of("direct", ROUTES)

    def __init__(self, ranks: tuple[int, ...], options: Any) -> None:
        super().__init__(ranks, options)
        self._merged: tuple[Any, ...] | None = None
        self.settles, self.plain = options.route != "direct", options.route != "merged"

    @classmethod
    def check(cls, options: Any, gate: str, weighs_codes: bool) -> None:
        """Refuse the merged route to gates that look at every expert's output."""
        if options.route == "merged" and weighs_codes:
            raise OptionError(
                f"route='merged' finds outputs of the chosen experts only, but {gate!r} with these options looks at those of "
                "all before it chooses, or mixes A and B its own way. Use route='direct', or a gate that weighs x alone "
                "(gate_input='input')."
            )

    def codes(self, x: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Codes:
        """h = (x A) ⊙ σ."""
        return Codes(ops.codes(x, A, scale), B, self.ranks)

    def early(self, x: Tensor, A: Tensor, B: Tensor, scale: Tensor, top_k: int) -> Codes:
        """No codes yet on the merged route; where experts learn, or while tracing, M would be built at every call."""
        learns = torch.is_grad_enabled() and (A.requires_grad or B.requires_grad)
        if learns or torch.compiler.is_compiling() or not self._merges(x, A, B, top_k):
            return self.codes(x, A, B, scale)
        return Unshrunk(x[..., :0], B, self.ranks, x=x, A=A, scale=scale)

    def settle(self, codes: Codes, weights: Tensor, indices: Tensor | None) -> Codes:
        """Codes of the chosen experts, where they have waited for the choice."""
        if not isinstance(codes, Unshrunk):
            return codes
        x, A, B, scale = codes.x, codes.A, codes.B, codes.scale
        assert x is not None and A is not None and scale is not None
        if indices is None:
            return self.codes(x, A, B, scale)

        def summed() -> tuple[Tensor, Tensor]:
            M, sizes = self._merge(A, B, scale)
            total = x @ M
            return total, ops.rounding(x, sizes, total)

        return Codes(ops.chosen_codes(x, A, scale, self.ranks, indices), B, self.ranks, summed)

    def _merges(self, x: Tensor, A: Tensor, B: Tensor, top_k: int) -> bool:
        if self.options.route != "auto":
            return bool(self.options.route == "merged")
        chosen = top_k * max(self.ranks)
        return cpp.applies(x, A, B) and ops.merged_is_cheaper(A.shape[0], A.shape[1], B.shape[1], chosen)

    def _merge(self, A: Tensor, B: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """M and what `radargate.ops.rounding` needs; built once for frozen experts."""
        key = tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in (A, B, scale))
        if self._merged is None or self._merged[0] != key:
            # never an inference tensor, which a later training step could not save
            with torch.inference_mode(False), torch.no_grad():
                # A and B are held too, so that no others can come to lie where they lay
                self._merged = (key, *ops.merge(A, B, scale, self.ranks), A.detach(), B.detach())
        return self._merged[1], self._merged[2]
