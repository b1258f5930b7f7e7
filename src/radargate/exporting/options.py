"""How one LoRA is fitted to a composition. Imports no torch, so that the command line's help is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from radargate.data.options import Batching
from radargate.registry import option


@dataclass(frozen=True)
class Fitting(Batching):
    """How a LoRA is fitted.

    Attributes:
        rank: of the LoRA at every site (less where a site is narrower, or needs less).
        seed: of the intervals' resampling.
    """

    rank: int = option(
        dataclasses.MISSING,
        "fit a LoRA of this rank to what the bundle adds on the rows of `data`, and measure what it loses; "
        "without it the LoRA is exact, which static rules alone allow",
        metavar="N",
        least=1,
    )
    seed: int = 0
