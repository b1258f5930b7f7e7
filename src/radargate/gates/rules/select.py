"""Select: the expert, or the few, whose example prompts are most like the text so far; nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radargate import ops
from radargate.errors import OptionError
from radargate.gates.base import Call, Gate
from radargate.gates.router.examples import PROMPTS, WAYS, ReadsExamples
from radargate.registry import bounded, one_of

USES = ("best", "weighted")
SCOPES = ("prompt", "text")
FEATURES = ("embedding", "hidden")


class SelectRule(ReadsExamples, Gate):
    """Weight 1 on the expert that fits the text so far best, or the k best weighted by their scores; the same at every site.

    Scores come from example prompts of each expert (``examples={name: [prompt, …]}`` of `radargate.compose`, or rows of
    tasks named like the experts), on the router's own features: see `TextRouter` and `radargate.gates.router.examples`.

    Source: retrieval of adapters by prompts, as LoraRetriever (arXiv 2402.09997) and LoRAuter (2601.21795) do with
    sentence embeddings.
    """

    role = "rule"
    every = True
    joins = True
    acts_alone = True
    routes_alone = True

    @dataclass(frozen=True)
    class Options:
        """Attributes:
        by: ``"classifier"``, a logistic regression on the example prompts, or ``"centroid"``, the cosine with their mean.
        use: ``"best"``, that expert alone; ``"weighted"``, the ``top_k`` best, by their scores.
        scope: ``"prompt"``: one choice from all that the first call reads, for every token of it and of the answer; who reads
            a prompt in pieces lets the first piece decide, and a forward without a cache looks at all that it is given.
            ``"text"``: at each token a choice from the text up to it, however it is read.
        features: what a text is known by: the mean of its tokens' ``"embedding"`` at unit RMS, or of the base's ``"hidden"`` states
            three quarters up, which costs one more reading of each prompt.
        temperature: τ > 0 of the scores under ``"weighted"``.
        prompts: rows read of each expert's task, where rows are the examples.
        """

        by: str = one_of("classifier", WAYS)
        use: str = one_of("best", USES)
        scope: str = one_of("prompt", SCOPES)
        features: str = one_of("embedding", FEATURES)
        temperature: float = bounded(1.0, above=0)
        prompts: int = PROMPTS

        def __post_init__(self) -> None:
            """Check every value."""
            if self.features == "hidden" and self.scope != "prompt":
                raise OptionError(
                    "features='hidden' is known of whole prompts only. Use scope='prompt', or features='embedding'."
                )

    @classmethod
    def check_joins(cls, options: Any) -> None:
        """A classifier learns from the prompts of all experts together, and those of before are gone."""
        if options.by != "centroid":
            raise OptionError(
                f"select with by={options.by!r} learns from the prompts of all experts together. Compose all of them again, or compose "
                "with by='centroid', which new experts can join."
            )

    @classmethod
    def routes(cls, options: Any) -> bool:
        """The router is all it has."""
        return True

    @classmethod
    def routes_prompts(cls, options: Any) -> bool:
        """Where the scope is the prompt."""
        return bool(options.scope == "prompt")

    @classmethod
    def weighs_codes(cls, options: Any) -> bool:
        """Weights come from the text alone."""
        return False

    @classmethod
    def wants_examples(cls, values: Mapping[str, Any]) -> bool:
        """They are all it knows."""
        return True

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
