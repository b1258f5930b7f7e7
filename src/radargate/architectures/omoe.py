"""OMoE: experts' outputs made orthogonal before any gate sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radargate import ops
from radargate.architectures.base import Architecture, Codes
from radargate.ops.selection import dense_weights
from radargate.ops.shared_basis import orthogonal
from radargate.registry import one_of

NORMS = ("none", "keep_input_norm", "unit")


class OMoE(Architecture):
    """Gram–Schmidt over the experts' outputs, then gate as usual; in coordinates of a thin QR of the stacked B.

    Source: OMoE (arXiv 2501.10062).
    """

    order_free = False
    mergeable = False

    @dataclass(frozen=True)
    class Options:
        """Readings of the orthogonalisation.

        Attributes:
            norm: ``"none"``, ``"keep_input_norm"`` or ``"unit"`` length of the orthogonal outputs.
            order: experts are taken by ``"index"``, or by ``"weight"``, the heaviest first.
            orthogonalize: ``"all"`` experts, or the ``"selected"`` ones only.
        """

        norm: str = one_of("none", NORMS)
        order: str = one_of("index", ("index", "weight"))
        orthogonalize: str = one_of("all", ("all", "selected"))

    def __init__(self, ranks: tuple[int, ...], options: Any) -> None:
        super().__init__(ranks, options)
        self._frozen: tuple[Any, Tensor, Tensor] | None = None
        self.settles = (options.order, options.orthogonalize) != ("index", "all")

    def codes(self, x: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Codes:
        """Dense codes; orthogonal at once where that needs no weights."""
        basis, spread = self._coordinates(B)
        h = ops.codes(x, A, scale)
        H = torch.stack([p @ s for p, s in zip(h.split(self.ranks, -1), spread.split(self.ranks), strict=True)], -2)
        if self.options.order == "index" and self.options.orthogonalize == "all":
            H = orthogonal(H, self.options.norm)
        return Codes(H, basis, None)

    def settle(self, codes: Codes, weights: Tensor, indices: Tensor | None) -> Codes:
        """Orthogonal codes where order or choice depends on the weights."""
        if not self.settles:
            return codes
        options, n = self.options, len(self.ranks)
        spread = dense_weights(weights.detach(), indices, n)
        order = spread.sort(dim=-1, descending=True, stable=True).indices if options.order == "weight" else None
        chosen = None
        if options.orthogonalize == "selected" and indices is not None:
            chosen = torch.zeros_like(spread).scatter(-1, indices, 1.0)
        return Codes(orthogonal(codes.h, options.norm, order, chosen), codes.B, None)

    def _coordinates(self, B: Tensor) -> tuple[Tensor, Tensor]:
        """Orthonormal Z [q, d] and S [R, q] with B = S Z; computed once for a frozen B."""
        key = (B.data_ptr(), B._version, B.dtype, B.device)
        if self._frozen is None or self._frozen[0] != key or B.requires_grad:
            Z, S = torch.linalg.qr(B.double().T)
            self._frozen = (key, Z.T.to(B.dtype).contiguous(), S.T.to(B.dtype).contiguous())
        return self._frozen[1], self._frozen[2]
