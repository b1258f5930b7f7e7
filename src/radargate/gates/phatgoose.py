"""PHATGOOSE: each expert brings a gate vector of its own, trained with it alone; tokens go to the experts whose vectors fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from radargate import ops
from radargate.gates.base import Call, Gate, GateSite


class PhatgooseGate(Gate):
    """Weights softmax(x̄ · v̄_i / √d_in) over the top-k, x and v_i standardised; each v_i was trained with its expert alone, as σ(x · v_i).

    In training mode an expert that is switched on weighs σ(x · v_i), whatever the others do; `radargate.training` switches on
    one at a time, on the rows of the task of its name, so that no vector ever sees another's rows. A loop of one's own does
    the same with `radargate.using`. Vectors start at 0.

    Source: PHATGOOSE (arXiv 2402.05859), Sec. 3; the authors' ``moe.py``: layer norms without affine parameters of both
    input and vectors, scores times √(1/d_in), kept weights normalised to sum 1.
    """

    role = "rival"
    acts_alone = True
    trains_alone = True

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, site: GateSite, options: Any) -> None:
        super().__init__(site, options)
        # a tensor each: AdamW would move a row of a common one by its momentum while another expert is trained
        self._names = tuple(f"softmax_vector_{_key(name)}" for name in site.experts or map(str, range(site.n)))
        for name in self._names:
            self.register_parameter(name, nn.Parameter(torch.zeros(site.d_in)))

    @classmethod
    def weighs_codes(cls, options: Any) -> bool:
        """x alone decides."""
        return False

    def own_parameters(self, expert: int) -> tuple[str, ...]:
        """Its vector."""
        return (self._names[expert],)

    def vectors(self) -> Tensor:
        """v_i: [n, d_in]."""
        return torch.stack([getattr(self, name) for name in self._names])

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Weights and indices of the experts this call keeps; in training, of those that are switched on."""
        if self.training:
            return self._each_by_itself(call)
        width = (self.site.d_in,)
        logits = F.layer_norm(call.x, width) @ F.layer_norm(self.vectors().to(call.x), width).T
        return ops.select(logits * self.site.d_in**-0.5, call.top_k, renormalize="always", multipliers=call.multipliers)

    def _each_by_itself(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """σ(x · v_i) of the experts that are on; the vectors of all others get no gradient at all, not even zeros."""
        if call.multipliers is None:
            return (call.x @ self.vectors().to(call.x).T).sigmoid(), None
        on = [i for i, factor in enumerate(call.multipliers.tolist()) if factor > 0]
        vectors = torch.stack([getattr(self, self._names[i]) for i in on]).to(call.x)
        weights = (call.x @ vectors.T).sigmoid() * call.multipliers[on]
        return weights, torch.tensor(on, device=weights.device).repeat(*weights.shape[:-1], 1)


def _key(name: str) -> str:
    """An expert's name as part of a parameter's, which has no dots."""
    return name.replace("%", "%25").replace(".", "%2E")
