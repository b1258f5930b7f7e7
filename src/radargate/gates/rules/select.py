"""Select: the expert, or the few, whose example prompts are most like the text so far; nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radargate import ops
from radargate.base_models.loading import load_tokenizer
from radargate.data.prompts import encode_row
from radargate.errors import OptionError
from radargate.gates.base import ByTask, Call, Gate
from radargate.gates.router.examples import WAYS, check_examples, example_sums

USES = ("best", "weighted")


class SelectRule(Gate):
    """Weight 1 on the expert that fits the text so far best, or the k best weighted by their scores; the same at every site.

    Scores come from example prompts of each expert (``examples={name: [prompt, …]}`` of `radargate.compose`, or rows of
    tasks named like the experts), on the router's own features: see `TextRouter` and `radargate.gates.router.examples`.

    Source: retrieval of adapters by prompts, as LoraRetriever (arXiv 2402.09997) and LoRAuter (2601.21795) do with
    sentence embeddings.
    """

    role = "rule"
    acts_alone = True
    routes_alone = True

    @dataclass(frozen=True)
    class Options:
        """Attributes:
        by: ``"classifier"``, a logistic regression on the example prompts, or ``"centroid"``, the cosine with their mean.
        use: ``"best"``, that expert alone; ``"weighted"``, the ``top_k`` best, by their scores.
        temperature: τ > 0 of the scores under ``"weighted"``.
        prompts: rows read of each expert's task, where rows are the examples.
        """

        by: str = "classifier"
        use: str = "best"
        temperature: float = 1.0
        prompts: int = 200

        def __post_init__(self) -> None:
            """Check every value."""
            ops.check_choice("by", self.by, WAYS)
            ops.check_choice("use", self.use, USES)
            if not 0 < self.temperature < float("inf"):
                raise OptionError(f"temperature is {self.temperature}, expected a number above 0.")
            if self.prompts < 1:
                raise OptionError(f"prompts is {self.prompts}, expected at least 1.")

    @classmethod
    def routes(cls, options: Any) -> bool:
        """The router is all it has."""
        return True

    @classmethod
    def weighs_codes(cls, options: Any) -> bool:
        """Weights come from the text alone."""
        return False

    @classmethod
    def take(cls, values: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Options as they are saved, and the example prompts."""
        return {k: v for k, v in values.items() if k != "examples"}, values.get("examples", {})

    @classmethod
    def check_given(cls, given: Any, experts: Sequence[str]) -> Any:
        """Every expert has example prompts of its own."""
        return check_examples(given, experts)

    @classmethod
    def read_given(cls, given: Any, base: Any) -> Any:
        """The example prompts, summed up."""
        text = any(isinstance(prompt, str) for prompts in given.values() for prompt in prompts)
        return example_sums(given, base, load_tokenizer(base.name_or_path) if text else None)

    @classmethod
    def reads_rows(cls, values: Mapping[str, Any]) -> bool:
        """Unless the user gave example prompts."""
        return "examples" not in values

    @classmethod
    def from_rows(
        cls, values: dict[str, Any], base: Any, tokenizer: Any, by_task: ByTask, experts: Sequence[str]
    ) -> dict[str, Any]:
        """Example prompts from the rows of each expert's own task, unless the user gave some.

        Raises:
            OptionError: an expert has no task of its name.
        """
        if not cls.reads_rows(values):
            return values
        missing = [name for name in experts if name not in by_task]
        if missing:
            raise OptionError(
                f"gate 'select' reads prompts of each expert's own task, and there is no task named {missing[0]!r}, only "
                f"{', '.join(by_task)}. Name the experts like their tasks (NAME=PATH), or give examples={{expert: [prompt, …]}}."
            )
        two_stacks, most = bool(base.config.is_encoder_decoder), cls.Options(**values).prompts
        return {
            **values,
            "examples": {
                name: [
                    encode_row(row.prompt, row.target, tokenizer, two_stacks).context for row in by_task[name][:most]
                ]
                for name in experts
            },
        }

    def receive(self, sums: Mapping[str, Tensor]) -> None:
        """Learn from the example prompts, at the one gate that holds the router."""
        router: Any = self._modules.get("router")
        if router is not None:
            router.start([sums[name] for name in self.site.composition], self.options.by)

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The same choice among all experts at every site; a site that lacks the chosen ones is silent."""
        if call.prior is None:  # what reads no tokens, such as a pooler, cannot know the text's experts: all alike
            shares = torch.ones(self.site.n).to(call.x) if call.multipliers is None else call.multipliers
            return (shares / shares.sum()).expand(*call.x.shape[:-1], -1), None
        best = self.options.use == "best"
        kept = 1 if best else self.site.asked
        everywhere = call.all_multipliers
        weights, chosen = ops.select(call.prior, kept, self.options.temperature, "always", multipliers=everywhere)
        experts, here = self.site.composition, self.site.experts
        if here == experts:
            return weights, chosen
        places = [experts.index(name) for name in here]
        return ops.dense_weights(weights, chosen, len(experts))[..., places].contiguous(), None
