"""Single: one expert alone, as if the others were not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radargate.errors import OptionError
from radargate.gates.rules.base import StaticRule, check_names


class SingleRule(StaticRule):
    """Weight 1 on one expert, 0 on all others; sites it does not adapt are silent."""

    @dataclass(frozen=True)
    class Options:
        """Attributes:
        expert: the expert's name; may be left out where there is only one.
        """

        expert: str = ""

    @classmethod
    def check(cls, options: Any, experts: Sequence[str], architecture: str) -> None:
        """The expert exists."""
        if options.expert:
            check_names("expert", [options.expert], experts)
        elif len(experts) != 1:
            raise OptionError(f"gate 'single' needs expert=NAME, one of: {', '.join(experts)}.")

    def shares(self, multipliers: Tensor | None = None, everywhere: Tensor | None = None) -> Tensor:
        """1 for the expert, or 0 where it is switched off."""
        name = self.options.expert or self.site.composition[0]
        shares = torch.tensor([float(expert == name) for expert in self.site.experts], dtype=torch.float64)
        return shares if multipliers is None else shares.to(multipliers) * (multipliers > 0)
