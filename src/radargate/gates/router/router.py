"""One decision for the whole model, from the text so far: which experts fit what is being asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from radargate.errors import OptionError
from radargate.gates.router.examples import learn

GAIN = 10.0  # scales the logits so that φ trains well at the gates' learning rate; a gain of 4 learned less in the same number of steps
PRIOR_TOKENS = 16  # pseudo-count: prepend 16 average tokens, so that the first few words do not decide the routing


class TextRouter(nn.Module):
    """Log-weights of all experts: log softmax(10 c φ / √d), c what the text so far has that texts on average have not.

    c = Σ_s (e_s − μ) / ((t + 16) σ) over the real tokens s ≤ t, in an encoder–decoder over all t that the encoder reads; e_s
    their embeddings in the base at unit RMS, μ and σ the mean over the texts that gates learn from and the spread around
    it. φ starts at 0, where every expert weighs the same, or where example prompts of each expert put it (`start`).

    Args:
        experts: N of the composition.
        width: d of the base's embeddings.
        trained: whether φ is a parameter; a buffer otherwise.
        reads_hidden: it looks at the base's own states three quarters up instead of embeddings.
        keeps_first: what it says of all that the first call reads, a prompt, holds for every token of it and for all later ones.
    """

    softmax_router: Tensor

    text_mean: Tensor
    text_spread: Tensor

    def __init__(
        self, experts: int, width: int, trained: bool = True, keeps_first: bool = False, reads_hidden: bool = False
    ) -> None:
        super().__init__()
        self.reads_hidden = reads_hidden
        self.keeps_first = keeps_first
        if trained:
            self.softmax_router = nn.Parameter(torch.zeros(experts, width))
        else:
            self.register_buffer("softmax_router", torch.zeros(experts, width))
        self.register_buffer("text_mean", torch.zeros(width))
        self.register_buffer("text_spread", torch.zeros(()))
        self._described = False

    @property
    def knows_texts(self) -> bool:
        """Whether it has μ and σ."""
        return bool(self.text_spread > 0)

    @torch.no_grad()
    def describe(self, sums: Tensor, mean: Tensor | None = None) -> None:
        """Take μ and σ from texts that were summed up, [texts, d + 1]; or σ alone, around a given μ.

        Raises:
            OptionError: all texts are alike.
        """
        sums = sums.to(self.text_mean)
        content, count = sums[:, :-1], sums[:, -1:]
        mean = (content / count).mean(0) if mean is None else mean
        spread = ((content - count * mean) / (count + PRIOR_TOKENS)).square().mean().sqrt()
        if not spread > 1e-6:
            raise OptionError(
                "a router has nothing to choose by: all training prompts are alike. Take a gate without one, such as radar."
            )
        self.text_mean.copy_(mean)
        self.text_spread.copy_(spread)

    @torch.no_grad()
    def take_texts(self, other: TextRouter) -> None:
        """Take μ and σ from another composition's router."""
        self.text_mean.copy_(other.text_mean)
        self.text_spread.copy_(other.text_spread)

    @torch.no_grad()
    def start(self, by_expert: Sequence[Tensor | None], by: str) -> None:
        """Learn φ from each expert's own example prompts, summed up as [prompts, d + 1]; μ is the mean over experts.

        φ of an expert without examples stays 0.

        Raises:
            OptionError: all prompts are alike.
        """
        known = {place: sums.to(self.text_mean) for place, sums in enumerate(by_expert) if sums is not None}
        mean = torch.stack([(sums[:, :-1] / sums[:, -1:]).mean(0) for sums in known.values()]).mean(0)
        if len(known) > 1:
            self.describe(torch.cat([*known.values()]), mean)
            learned = learn([self._features(sums) for sums in known.values()], by)
            self.softmax_router[list(known)] = learned * (math.sqrt(learned.shape[1]) / GAIN)
        elif len(by_expert) == 1:  # an only expert is chosen whatever it reads
            self.text_mean.copy_(mean)
            self.text_spread.fill_(1)

    @torch.no_grad()
    def join(self, before: TextRouter, by_expert: Sequence[Tensor]) -> None:
        """Take over a smaller router; the experts behind its own get the centroids of their example prompts, [prompts, d + 1] each."""
        self.take_texts(before)
        new = learn([self._features(sums.to(self.text_mean)) for sums in by_expert], "centroid")
        rows = torch.cat([before.softmax_router.to(new), new * (math.sqrt(new.shape[1]) / GAIN)])
        self.softmax_router.copy_(rows)

    def _features(self, sums: Tensor) -> Tensor:
        """c [..., d] of texts that were summed up."""
        content, count = sums[..., :-1], sums[..., -1:]
        return (content - count * self.text_mean) / ((count + PRIOR_TOKENS) * self.text_spread)

    def forward(self, sums: Tensor) -> Tensor:
        """Log-weights [..., N] after texts that were summed up, [..., d + 1].

        Raises:
            OptionError: it is trained before it knows μ and σ.
        """
        if self.training and not self._described and not self.text_spread.is_meta:
            self._described = self.knows_texts  # asked once: on a GPU the answer is waited for
        if self.training and not self._described and not self.text_spread.is_meta:
            raise OptionError(
                "the router does not know yet what texts look like. Call radargate.describe_texts(model, token_ids) with "
                "the training prompts before training; radargate train does."
            )
        theta, mean, spread = (t.to(sums) for t in (self.softmax_router, self.text_mean, self.text_spread))
        content, count = sums[..., :-1], sums[..., -1:]
        # μ is taken off behind the product, which is narrow
        logits = (content @ theta.T - count * (theta @ mean)) / (count + PRIOR_TOKENS)
        return (logits * (GAIN / (spread.clamp_min(1e-6) * math.sqrt(theta.shape[1])))).log_softmax(-1)
