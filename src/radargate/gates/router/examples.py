"""What example prompts of each expert say of the texts it fits: features on the router's own arithmetic, and two ways to learn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from radargate.base_models.loading import load_tokenizer
from radargate.data.batches import pad
from radargate.data.prompts import encode_context, encode_row, render_context
from radargate.errors import OptionError, shown
from radargate.gates.router.hooks import embeddings, hidden_sums
from radargate.gates.router.running_text import summed

Examples = Mapping[str, Sequence[str | Sequence[int]]]
WAYS = ("classifier", "centroid")
AT_ONCE = 16  # texts that the base reads together
PROMPTS = 200  # of each expert's rows
PENALTY = 1e-3  # on the classifier's squared weights; 1e-2 and 1e-4 route as well (docs/log.md)


class ReadsExamples:
    """What a gate with a router gains that starts from example prompts: ``examples={expert: [prompt, …]}``, or rows."""

    every: ClassVar[bool] = False  # whether each expert needs some

    @classmethod
    def wants_examples(cls, values: Mapping[str, Any]) -> bool:
        """Whether the options that a user gave ask for examples."""
        raise NotImplementedError

    @classmethod
    def take(cls, values: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Options as they are saved, and the example prompts: None where none are asked for."""
        wanted = cls.wants_examples(values)
        kept = {key: value for key, value in values.items() if key != "examples" or not wanted}
        return kept, values.get("examples", {}) if wanted else None

    @classmethod
    def check_given(cls, given: Any, experts: Sequence[str]) -> Any:
        """Experts have example prompts, and each its own."""
        return None if given is None else check_examples(given, experts, cls.every)

    @classmethod
    def read_given(cls, given: Any, base: Any, options: Any) -> Any:
        """The example prompts, summed up."""
        text = any(isinstance(prompt, str) for prompts in given.values() for prompt in prompts)
        hidden = getattr(options, "features", None) == "hidden"
        return example_sums(given, base, load_tokenizer(base.name_or_path) if text else None, hidden)

    @classmethod
    def reads_own_rows(cls, values: Mapping[str, Any]) -> bool:
        """Unless the user gave examples."""
        return cls.wants_examples(values) and "examples" not in values

    @classmethod
    def from_rows(cls, values: dict[str, Any], base: Any, tokenizer: Any, own: Any) -> dict[str, Any]:
        """Options with the prompts of each expert's own rows as examples."""
        two_stacks, most = bool(base.config.is_encoder_decoder), values.get("prompts", PROMPTS)
        return {
            **values,
            "examples": {
                name: [encode_row(row.prompt, row.target, tokenizer, two_stacks).context for row in evenly(rows, most)]
                for name, rows in own.items()
                if rows
            },
        }

    @classmethod
    def start_router(cls, router: Any, sums: Mapping[str, Tensor], experts: Sequence[str], options: Any) -> None:
        """Let the composition's router learn from the example prompts."""
        router.start([sums.get(name) for name in experts], getattr(options, "by", WAYS[0]))


def evenly(rows: Sequence[Any], most: int) -> Sequence[Any]:
    """At most so many of the rows, from all of their tasks."""
    return rows[:: max(1, -(-len(rows) // most))]


def check_examples(examples: Any, experts: Sequence[str], every: bool = True) -> Examples:
    """Example prompts of an expert or of every one, as text or token ids.

    Raises:
        OptionError: an expert has none, an unknown one has some, or two experts have the same.
    """
    if not isinstance(examples, Mapping):
        raise OptionError(f"examples is {shown(repr(examples))}, expected a table: expert → list of prompts.")
    found = {str(name): [texts] if isinstance(texts, str) else list(texts) for name, texts in examples.items()}
    unknown = [name for name in found if name not in experts]
    missing = [name for name in experts if not any(len(text) for text in found.get(name, []))]
    if unknown or (missing and (every or len(missing) == len(experts))):
        what = f"names {unknown[0]!r}, which is no expert" if unknown else f"has no prompt for expert {missing[0]!r}"
        raise OptionError(f"examples {what}. Give each of these at least one prompt: {', '.join(experts)}.")
    kept = {name: [text for text in found[name] if len(text)] for name in experts if name not in missing}
    seen: dict[tuple[Any, ...], str] = {}
    for name, texts in kept.items():
        key = tuple(sorted(str(text) for text in texts))
        if key in seen and len(experts) > 1:
            raise OptionError(
                f"experts {seen[key]!r} and {name!r} have the same example prompts, so nothing tells them apart. Give each its own."
            )
        seen[key] = name
    return kept


def example_sums(examples: Examples, base: Any, tokenizer: Any = None, hidden: bool = False) -> dict[str, Tensor]:
    """Each expert's prompts, read and summed up as a router sums texts: [prompts, d + 1].

    Args:
        examples: expert → prompts, as text or token ids.
        base: the model whose embeddings read them.
        tokenizer: of the base; only text needs one.
        hidden: sum up the base's own states three quarters up instead of embeddings.
    """

    def ids(text: str | Sequence[int]) -> list[int]:
        return encode_context(render_context(text, tokenizer), tokenizer) if isinstance(text, str) else list(text)

    sums = hidden_text_sums if hidden else text_sums
    return {name: sums([ids(text) for text in texts], base) for name, texts in examples.items()}


@torch.no_grad()
def hidden_text_sums(texts: Sequence[Sequence[int]], base: Any) -> Tensor:
    """The same as `text_sums` from the base's own states three quarters up: [texts, hidden width + 1]."""
    was_training, place, found = base.training, embeddings(base).weight.device, []
    base.eval()
    for start in range(0, len(texts), AT_ONCE):
        ids, mask = pad([list(text) for text in texts[start : start + AT_ONCE]], 0, left=False)
        inputs = {"input_ids": ids.to(place), "attention_mask": mask.to(place)}
        found.append(hidden_sums(base.get_decoder(), inputs))
    base.train(was_training)
    return torch.cat(found)


@torch.no_grad()
def text_sums(texts: Sequence[Sequence[int]], base: Any) -> Tensor:
    """Whole texts, given as token ids, summed up as a router sums them: [texts, d + 1]."""
    weight = embeddings(base).weight
    weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
    found = [F.embedding(torch.tensor([list(ids)], device=weight.device), weight) for ids in texts]
    return torch.stack([summed(embedded)[0, -1] for embedded in found])


def learn(features: Sequence[Tensor], by: str) -> Tensor:
    """One direction [N, d] for each expert, whose products with a text's features are logits.

    ``"centroid"``: the expert's mean, at unit length and ten times the root of d: logits are ten times the cosine of
    an average text. ``"classifier"``: multinomial logistic regression without a bias, each expert's prompts of equal
    weight in all, with a squared penalty (convex: L-BFGS from zero finds its only solution).

    Args:
        features: [prompts, d] of each expert, centred and of unit spread.
        by: which.
    """
    means = torch.stack([of_one.mean(0) for of_one in features])
    if by == "centroid":
        return F.normalize(means, dim=-1) * (10.0 / means.shape[-1] ** 0.5)
    x = torch.cat(list(features))
    expert = torch.repeat_interleave(torch.arange(len(features)), torch.tensor([len(f) for f in features])).to(x.device)
    share = torch.cat([torch.full((len(f),), 1 / (len(f) * len(features))) for f in features]).to(x)
    weights = torch.zeros_like(means, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            surprise = (F.cross_entropy(x @ weights.T, expert, reduction="none") * share).sum()
            total = surprise + PENALTY / 2 * weights.square().sum()
        total.backward()
        return total

    optimizer.step(objective)
    return weights.detach()
