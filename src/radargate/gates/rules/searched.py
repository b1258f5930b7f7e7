"""What a rule is that finds its weights by trying them, where a gate would be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from radargate.gates.base import Gate


class Batch(NamedTuple):
    """Summed loss over the answer tokens of a batch of examples, and the numbers of both."""

    loss: float
    tokens: int
    examples: int


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        weights: one for each expert of the composition: what the optimiser recommends.
        objective: the best value it saw, of ``loss + l1 · mean |w|``.
        loss: the loss there, as the form counts it.
        start: the objective at its start, all weights 0.
        evaluations: how many it made.
        optimizer: what NGOpt chose to be.
    """

    weights: list[float]
    objective: float
    loss: float
    start: float
    evaluations: int
    optimizer: str

    def facts(self) -> dict[str, Any]:
        """The same as a JSON-clean table."""
        return asdict(self)


class SearchedRule(Gate):
    """A rule with weights to search; `radargate.training` runs `search` and puts the result in with `place`.

    Its options say how many training rows it wants to look at, in ``examples``.
    """

    role = "rule"

    @classmethod
    def searches(cls, options: Any) -> bool:
        """Whether there is something to search, and the means to.

        Raises:
            RadarGateError: a package that it needs is missing.
        """
        return True

    @classmethod
    def search(
        cls, experts: Sequence[str], losses: Callable[[Mapping[str, float]], Sequence[Batch]], options: Any, seed: int
    ) -> Found:
        """Search the weights.

        Args:
            experts: names of the composition's experts.
            losses: from weights to what each batch of examples gives.
            options: of the rule.
            seed: the same seed finds the same weights.
        """
        raise NotImplementedError

    def place(self, weights: Mapping[str, float]) -> None:
        """Set the weights of the experts here, from expert → weight."""
        raise NotImplementedError
