"""LoraHub: one weight per expert for the whole model, found by a gradient-free search on a few examples."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from radargate.architectures.base import Codes
from radargate.errors import RadarGateError
from radargate.gates.base import Call, GateSite
from radargate.gates.rules.base import MixedApartRule, StaticRule, as_weights, check_weights
from radargate.gates.rules.searched import Batch, Found, SearchedRule
from radargate.registry import bounded, one_of

logger = logging.getLogger(__name__)

FORMS = ("faithful", "sane")
SAY_EVERY = 5  # evaluations between lines of progress


class LoraHubRule(SearchedRule, MixedApartRule):
    """n weights w for the whole model, searched by NGOpt from 0 within ±bound for the least loss + l1 · mean |w|.

    - ``"faithful"``: as its code: A and B mixed apart (w enters squared, cross terms), and the sum over batches of
      the mean token loss divided by the number of examples, so l1 weighs more than it looks.
    - ``"sane"``: outputs mixed, linear in w; mean token loss.

    Before a search every weight is 1/n. Multipliers of `radargate.using` scale the weights; nothing is normalised.

    Source: LoraHub (COLM 2024) and its code, ``lorahub/algorithm.py``.
    """

    architectures = ("mole", "hydra")
    why_not = "it mixes A and B apart, which outputs made orthogonal do not have."

    @dataclass(frozen=True)
    class Options:
        """Attributes:
        form: ``"faithful"`` or ``"sane"``.
        budget: evaluations of the search.
        examples: rows it looks at, drawn by the seed.
        l1: weight of mean |w| in the objective.
        bound: largest |w|.
        weights: expert → w, to use as they are instead of searching.
        """

        form: str = one_of("faithful", FORMS)
        budget: int = bounded(40, least=1)
        examples: int = bounded(5, least=1)
        l1: float = bounded(0.05, least=0)
        bound: float = bounded(1.5, above=0)
        weights: Mapping[str, float] = field(default_factory=dict)

        def __post_init__(self) -> None:
            """Check every value."""
            object.__setattr__(self, "weights", as_weights(self.weights, negative=True))

    weights: Tensor

    def __init__(self, site: GateSite, options: Any) -> None:
        super().__init__(site, options)
        start = [options.weights.get(name, 1 / len(site.composition)) for name in site.experts]
        self.register_buffer("weights", torch.tensor(start, dtype=torch.float32))

    @classmethod
    def check(cls, options: Any, experts: Sequence[str], architecture: str) -> None:
        """Given weights name every expert."""
        if options.weights:
            check_weights(options.weights, experts)

    @classmethod
    def needs_equal_ranks(cls, options: Any) -> bool:
        """Only where blocks of A are added to each other."""
        return options.form == "faithful"

    def shares(self, multipliers: Tensor | None = None, everywhere: Tensor | None = None) -> Tensor:
        """The weights found, times the multipliers."""
        return self.weights if multipliers is None else self.weights.to(multipliers) * multipliers

    def settle(self, call: Call, weights: Tensor, indices: Tensor | None) -> Codes:
        """A mixed apart from B in the faithful form."""
        parent = MixedApartRule if self.options.form == "faithful" else StaticRule
        return parent.settle(self, call, weights, indices)

    def lora(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the one LoRA that equals this."""
        parent = MixedApartRule if self.options.form == "faithful" else StaticRule
        return parent.lora(self, A, B)

    def place(self, weights: Mapping[str, float]) -> None:
        """Set the weights of the experts here, from expert → w."""
        self.weights.copy_(self.weights.new_tensor([weights[name] for name in self.site.experts]))

    @classmethod
    def searches(cls, options: Any) -> bool:
        """Whether there is something to search, and the means to.

        Raises:
            RadarGateError: nevergrad is not installed.
        """
        if options.weights:
            return False
        if importlib.util.find_spec("nevergrad") is None:
            raise RadarGateError(
                "gate 'lorahub' searches its weights with nevergrad, which is not installed. Install it with pip "
                "install 'radargate[rules]', or give the option weights={math: 0.5, …}."
            )
        return True

    @classmethod
    def search(
        cls, experts: Sequence[str], losses: Callable[[Mapping[str, float]], Sequence[Batch]], options: Any, seed: int
    ) -> Found:
        """NGOpt from all zeros; the recommendation after the budget."""
        import nevergrad
        import numpy

        n = len(experts)
        space = nevergrad.p.Array(init=[0.0] * n, lower=[-options.bound] * n, upper=[options.bound] * n)
        space.random_state = numpy.random.RandomState(seed % (1 << 32))
        optimizer = nevergrad.optimizers.NGOpt(parametrization=space, budget=options.budget)
        best, best_loss, start = float("inf"), float("inf"), float("inf")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SciPy's remarks on the settings NGOpt gives it
            for count in range(1, options.budget + 1):
                candidate = optimizer.ask()
                weights = [float(w) for w in candidate.value]
                loss = cls._loss(losses(dict(zip(experts, weights, strict=True))), options)
                objective = loss + options.l1 * sum(abs(w) for w in weights) / n
                optimizer.tell(candidate, objective)
                if count == 1:
                    start = objective
                if objective < best:
                    best, best_loss = objective, loss
                if count % SAY_EVERY == 0 or count == options.budget:
                    logger.info(f"search {count}/{options.budget}  best objective {best:.4f} (loss {best_loss:.4f})")
            recommended = [float(w) for w in optimizer.provide_recommendation().value]
        chosen = getattr(optimizer, "optim", None)
        return Found(recommended, best, best_loss, start, options.budget, getattr(chosen, "name", None) or "NGOpt")

    @staticmethod
    def _loss(batches: Sequence[Batch], options: Any) -> float:
        if options.form == "faithful":
            return sum(b.loss / b.tokens for b in batches) / sum(b.examples for b in batches)
        return sum(b.loss for b in batches) / sum(b.tokens for b in batches)
