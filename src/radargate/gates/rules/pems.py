"""PEMs: arithmetic on adapters; A and B are added, negated or put into an analogy, apart from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from radargate.errors import OptionError
from radargate.gates.rules.base import MixedApartRule, as_names, as_weights, check_names, check_weights
from radargate.registry import one_of

OPERATIONS = ("add", "negate", "analogy")
ROLES = ("task", "target", "source")


class PEMsRule(MixedApartRule):
    """A* = Σ λ_i A_i and B* = Σ ± λ_i B_i with Σ λ_i = 1 over the whole composition; a negated expert's B changes sign.

    An expert that does not adapt a site counts there as zeros, so a site with one expert weighs it λ_i².
    Multipliers of `radargate.using` scale the λ_i, which are then normalised again.

    Source: Zhang et al., Composing Parameter-Efficient Modules with Arithmetic Operations (NeurIPS 2023), Sec. 3.
    """

    architectures = ("mole", "hydra")
    why_not = "it mixes A and B apart, which outputs made orthogonal do not have."

    @dataclass(frozen=True)
    class Options:
        """Attributes:
        operation: ``"add"``, ``"negate"`` or ``"analogy"``.
        weights: expert → λ ≥ 0, normalised to sum 1; empty for all equal. An analogy gives its task and target
            expert one each (normalised; the source has the target's).
        negated: experts whose B changes sign (``"negate"``).
        analogy: role → expert, for task − source + target: a ``task`` expert of the source domain, and language
            experts of the ``target`` and the ``source`` domain.
        """

        operation: str = one_of("add", OPERATIONS)
        weights: Mapping[str, float] = field(default_factory=dict)
        negated: Sequence[str] = ()
        analogy: Mapping[str, str] = field(default_factory=dict)

        def __post_init__(self) -> None:
            """Check every value, and the combinations."""
            weights = as_weights(self.weights, negative=False)
            if weights and not sum(weights.values()) > 0:
                raise OptionError("weights are all 0, expected at least one above 0.")
            object.__setattr__(self, "weights", weights)
            object.__setattr__(self, "negated", as_names(self.negated, "negated"))
            if bool(self.negated) != (self.operation == "negate"):
                raise OptionError(
                    f"operation is {self.operation!r} and negated is {list(self.negated)}: name the experts to negate "
                    "with operation='negate', and only then."
                )
            if not isinstance(self.analogy, Mapping) or bool(self.analogy) != (self.operation == "analogy"):
                raise OptionError(
                    f"operation is {self.operation!r} and analogy is {self.analogy!r}: give {{task: …, target: …, "
                    "source: …}} with operation='analogy', and only then."
                )
            if self.analogy and (set(self.analogy) != set(ROLES) or len(set(self.analogy.values())) != 3):
                raise OptionError(f"analogy is {dict(self.analogy)}, expected three experts as: {', '.join(ROLES)}.")

    @classmethod
    def check(cls, options: Any, experts: Sequence[str], architecture: str) -> None:
        """All names exist, and every expert has a part."""
        check_names("negated", options.negated, experts)
        check_names("analogy", list(options.analogy.values()), experts)
        if options.analogy:
            idle = [name for name in experts if name not in options.analogy.values()]
            if idle:
                raise OptionError(f"expert {idle[0]!r} has no role in the analogy; compose its three experts alone.")
            weighted = [options.analogy["task"], options.analogy["target"]]
            if options.weights:
                check_weights(options.weights, weighted)
        elif options.weights:
            check_weights(options.weights, experts)

    def coefficients(self) -> dict[str, float]:
        """λ of every expert of the composition."""
        options, names = self.options, self.site.composition
        if options.analogy:
            task, target, source = (options.analogy[role] for role in ROLES)
            weights = options.weights or {task: 1.0, target: 1.0}
            total = weights[task] + weights[target]
            return {task: weights[task] / total, target: weights[target] / total, source: weights[target] / total}
        weights = options.weights or dict.fromkeys(names, 1.0)
        total = sum(weights.values())
        return {name: weights[name] / total for name in names}

    def signs(self) -> list[float]:
        """−1 for the B of negated experts and of an analogy's source."""
        minus = {*self.options.negated, self.options.analogy.get("source")}
        return [-1.0 if name in minus else 1.0 for name in self.site.experts]

    def shares(self, multipliers: Tensor | None = None, everywhere: Tensor | None = None) -> Tensor:
        """λ of the experts here; multipliers change the proportions and not the sum over the composition."""
        table = self.coefficients()
        whole = torch.tensor([table[name] for name in self.site.composition], dtype=torch.float64)
        if everywhere is not None:
            scaled = whole * everywhere.to(whole)
            whole = scaled * (whole.sum() / scaled.sum()) if bool(scaled.any()) else scaled
        return whole[[self.site.composition.index(name) for name in self.site.experts]]
