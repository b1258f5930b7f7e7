"""How much is tried. Imports no torch, so that the command line's help is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

from radargate.data.options import Batching
from radargate.errors import OptionError
from radargate.registry import option


@dataclass(frozen=True)
class Choosing(Batching):
    """How much is tried, and what may be chosen."""

    minutes: float = option(15.0, "time that the choice may take on this machine", above=0)
    union: bool = option(False, "also train one LoRA on all rows together")
    serve_as_one_lora: bool = option(False, "choose only among what exports exactly as one LoRA")
    max_new_tokens: int = option(32, "tokens of a free answer", least=1)
    head: str | None = option(
        None,
        "adapter whose trained head (modules_to_save) is kept, where adapters bring different ones",
        metavar="NAME",
    )
    seed: int = option(0, "seed of initial values and row order")

    def __post_init__(self) -> None:
        """Check what flags cannot.

        Raises:
            OptionError: ``minutes`` is no time.
        """
        if not 0 < self.minutes < math.inf:
            raise OptionError(f"minutes is {self.minutes}, expected a number above 0.")
