"""One decision for the whole model, from the text so far: which experts fit what is being asked."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from radargate.errors import OptionError

GAIN = 10.0  # so that the rate that suits the gates of single sites suits φ too: 4 learnt less in as many steps
PRIOR_TOKENS = 16  # as many tokens of an average text go before each one: a few words do not say what a text is about


class TextRouter(nn.Module):
    """Log-weights of all experts: log softmax(10 c φ / √d), c what the text so far has that texts on average have not.

    c = Σ_s (e_s − μ) / ((t + 16) σ) over the real tokens s ≤ t, in an encoder–decoder over all t that the encoder reads; e_s
    their embeddings in the base at unit RMS, μ and σ the mean over the texts that gates learn from and the spread around
    it. φ starts at 0: every expert weighs the same.

    Args:
        experts: N of the composition.
        width: d of the base's embeddings.
    """

    text_mean: Tensor
    text_spread: Tensor

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.softmax_router = nn.Parameter(torch.zeros(experts, width))
        self.register_buffer("text_mean", torch.zeros(width))
        self.register_buffer("text_spread", torch.zeros(()))
        self._described = False

    @torch.no_grad()
    def describe(self, sums: Tensor) -> None:
        """Take μ and σ from texts that were summed up, [texts, d + 1].

        Raises:
            OptionError: all texts are alike.
        """
        sums = sums.to(self.text_mean)
        content, count = sums[:, :-1], sums[:, -1:]
        mean = (content / count).mean(0)
        spread = ((content - count * mean) / (count + PRIOR_TOKENS)).square().mean().sqrt()
        if not spread > 1e-6:
            raise OptionError("router='text' has nothing to tell texts apart by: all training prompts are alike.")
        self.text_mean.copy_(mean)
        self.text_spread.copy_(spread)

    @torch.no_grad()
    def take_texts(self, other: TextRouter) -> None:
        """Take μ and σ from another composition's router."""
        self.text_mean.copy_(other.text_mean)
        self.text_spread.copy_(other.text_spread)

    def forward(self, sums: Tensor) -> Tensor:
        """Log-weights [..., N] after texts that were summed up, [..., d + 1].

        Raises:
            OptionError: it is trained before it knows μ and σ.
        """
        if self.training and not self._described and not self.text_spread.is_meta:
            self._described = bool(self.text_spread > 0)  # asked once: on a GPU the answer is waited for
        if self.training and not self._described and not self.text_spread.is_meta:
            raise OptionError(
                "router='text' does not know yet what texts look like. Call radargate.describe_texts(model, token_ids) with "
                "the training prompts before training; radargate train does."
            )
        theta, mean, spread = (t.to(sums) for t in (self.softmax_router, self.text_mean, self.text_spread))
        content, count = sums[..., :-1], sums[..., -1:]
        # μ is taken off behind the product, which is narrow
        logits = (content @ theta.T - count * (theta @ mean)) / (count + PRIOR_TOKENS)
        return (logits * (GAIN / (spread.clamp_min(1e-6) * math.sqrt(theta.shape[1])))).log_softmax(-1)
