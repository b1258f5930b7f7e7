"""Uniform: every expert of a site weighs 1/n."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from radargate.gates.rules.base import StaticRule


class UniformRule(StaticRule):
    """Every expert of a site weighs 1/n."""

    acts_alone = False

    @dataclass(frozen=True)
    class Options:
        """Uniform has no options."""

    def shares(self, multipliers: Tensor | None = None, everywhere: Tensor | None = None) -> Tensor:
        """1/n each, or in proportion to the multipliers."""
        factors = torch.ones(self.site.n, dtype=torch.float64) if multipliers is None else multipliers
        return factors / factors.sum()
