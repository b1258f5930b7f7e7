"""Choosing the next token of one sequence, from its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = -9999.0  # what is reported for impossible tokens, as OpenAI does: JSON has no infinity


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen.

    Attributes:
        max_tokens: of the answer.
        temperature: 0 takes the likeliest token.
        top_p: share of probability that is kept.
        seed: of the random numbers; None takes fresh ones.
        stops: strings before which the answer ends.
        logprobs: how many alternatives to report for each token; None reports nothing.
        echo: whether the answer begins with its prompt, whose tokens are then reported too.
        repetition_penalty: in place of the model's own.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class Chosen:
    """One token of an answer.

    Attributes:
        id: the token.
        logprob: its log-probability under the model itself, whatever the temperature; None if nobody asked.
        top: the likeliest tokens with theirs.
        read: whether it is a token of the prompt.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    read: bool = False


def reported(logits: Tensor, tokens: Sequence[int], count: int, read: bool = False) -> list[Chosen]:
    """Tokens with their log-probabilities and ``count`` alternatives, from logits [tokens, vocabulary] in float32."""
    logs = logits.log_softmax(-1).clamp(min=LEAST)
    best = logs.topk(min(count, logs.shape[-1]), -1)
    own = logs.gather(-1, torch.tensor(tokens, dtype=torch.long)[:, None])[:, 0].tolist()
    tops = (tuple(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return [Chosen(*one, read) for one in zip(tokens, own, tops, strict=True)]


class Chooser:
    """Chooses the tokens of one sequence; the same seed gives the same choices in any batch.

    Args:
        sampling: how.
        index: which of a request's answers this is; each has its own random numbers.
        repetition_penalty: above 1, tokens that have occurred become less likely, as in transformers.
        prompt: what has occurred before the first choice.
    """

    def __init__(
        self, sampling: Sampling, index: int = 0, repetition_penalty: float = 1.0, prompt: Sequence[int] = ()
    ) -> None:
        self.sampling, self.penalty = sampling, repetition_penalty
        self._seen = torch.tensor(sorted(set(prompt)), dtype=torch.long)
        self.random = torch.Generator()
        if sampling.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed((sampling.seed * 1_000_003 + index) % 2**63)

    def choose(self, logits: Tensor) -> Chosen:
        """The next token, from logits [vocabulary] in float32 on the CPU."""
        weighed = logits
        if self.penalty != 1.0:
            old = logits[self._seen]
            weighed = logits.index_copy(0, self._seen, torch.where(old < 0, old * self.penalty, old / self.penalty))
        token = int(weighed.argmax()) if self.sampling.temperature == 0 else self._sample(weighed)
        if self.penalty != 1.0 and not (self._seen == token).any():
            self._seen = torch.cat([self._seen, self._seen.new_tensor([token])])
        if self.sampling.logprobs is None:
            return Chosen(token)
        return reported(logits[None], [token], self.sampling.logprobs)[0]

    def _sample(self, logits: Tensor) -> int:
        """One random number through the cumulative distribution, in double precision.

        So another batch's rounding changes a choice only where the number falls within that rounding of a border.
        """
        logits = logits.double()
        # the highest becomes 0 first: divided by a tiny temperature it would be infinite
        share = ((logits - logits.max()) / self.sampling.temperature).softmax(-1)
        order = None
        if self.sampling.top_p < 1:
            share, order = share.sort(descending=True, stable=True)
            before = share.cumsum(-1) - share
            share = torch.where(before < self.sampling.top_p, share, 0.0)
        border = share.cumsum(-1)
        number = torch.rand(1, generator=self.random, dtype=torch.float64) * border[-1]
        at = int(torch.searchsorted(border, number, right=True).clamp(max=len(border) - 1))
        while share[at] == 0 and at > 0:  # the last number before 1 may round to a token that was cut off
            at -= 1
        return at if order is None else int(order[at])
