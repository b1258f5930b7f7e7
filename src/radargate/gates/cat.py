"""CAT: the experts' A and B concatenated, with one learned weight for each expert at each adapted layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from radargate.gates.base import GateSite
from radargate.gates.rules.base import StaticRule


class CatGate(StaticRule):
    """One learned weight α_i for each expert at each layer, the same for every token: ΔW = Σ_i α_i B_i A_i; all experts act.

    Weights have any sign and any sum, and multipliers of `radargate.using` multiply them. As nothing depends on the input, the
    whole is the LoRA of the A stacked and the α_i B_i stacked, and `radargate.save_as_lora` writes it. The authors' code
    differs: it starts its weights at random and puts them through a softmax over the experts. The start here, 1/n, is that of
    a helper there that nothing calls.

    Source: LoRA Soups (arXiv 2410.13025), CAT.
    """

    role = "gate"

    @dataclass(frozen=True)
    class Options:
        """CAT has no options."""

    def __init__(self, site: GateSite, options: Any) -> None:
        super().__init__(site, options)
        self.weights = nn.Parameter(torch.full((site.n,), 1.0 / site.n))

    def shares(self, multipliers: Tensor | None = None, everywhere: Tensor | None = None) -> Tensor:
        """The weights learned, times the multipliers."""
        return self.weights if multipliers is None else self.weights.to(multipliers) * multipliers
