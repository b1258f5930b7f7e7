"""What a router says of each token, in N + 1 numbers of state: its logits are linear in what was read so far.

A router's logits after t tokens are (Σ_s e_s φᵀ − t φμ) · 10 / ((t + 16) σ √d) (see `TextRouter`), e_s the embedding of
token s at unit RMS. So a table of one row a token of the vocabulary, [e φᵀ − φμ, 1], says all: state is a sum of rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from radargate.gates.router.router import GAIN, PRIOR_TOKENS, TextRouter

ROWS = 8192  # of the vocabulary at once


class TextSums:
    """A router's arithmetic on sums of rows of its table.

    Args:
        router: of the bundle.
        embedding: [vocabulary, d] of the base.
        device: where the model is.
    """

    def __init__(self, router: TextRouter, embedding: Tensor, device: torch.device) -> None:
        theta, mean = router.softmax_router.detach().double(), router.text_mean.double()
        self.factor = GAIN / (max(float(router.text_spread), 1e-6) * math.sqrt(theta.shape[1]))
        self.experts = theta.shape[0]
        table = torch.ones(embedding.shape[0], self.experts + 1, dtype=torch.float64)
        for start in range(0, embedding.shape[0], ROWS):
            rows = embedding[start : start + ROWS].float()
            rows = rows * (rows.square().mean(-1, keepdim=True) + 1e-12).rsqrt()  # as `running_text.summed` does
            table[start : start + ROWS, :-1] = rows.double() @ theta.T - theta @ mean
        self.table = table.to(device)

    def rows(self, ids: Tensor) -> Tensor:
        """What each token adds: [tokens, N + 1]."""
        return self.table[ids.long()]

    def of_text(self, ids: list[int]) -> Tensor:
        """The state after a whole text: [N + 1]."""
        return self.rows(torch.tensor(ids, dtype=torch.long, device=self.table.device)).sum(0)

    def log_weights(self, sums: Tensor) -> Tensor:
        """Log-weights [..., N] of the experts after texts of state [..., N + 1]."""
        logits = sums[..., :-1] * self.factor / (sums[..., -1:] + PRIOR_TOKENS)
        return logits.log_softmax(-1).float()


class StepText:
    """What the router said of the tokens of the step that runs; layers ask it as they ask a `TextSoFar`.

    The rows keep their place in memory, so that a captured graph reads them anew each time.

    Args:
        sums: the router's arithmetic.
        tokens: the most in one step.
        device: where the model is.
    """

    whole = False

    def __init__(self, sums: TextSums, tokens: int, device: torch.device) -> None:
        self.sums = sums
        self.said = torch.zeros(tokens, sums.experts, dtype=torch.float32, device=device)
        self.count = tokens

    def say(self, log_weights: Tensor, tokens: int) -> None:
        """Take log-weights [real tokens, N] of a step of ``tokens``, padding included."""
        self.said[: log_weights.shape[0]] = log_weights
        self.count = tokens

    def log_weights(self, router: TextRouter) -> Tensor:
        """[tokens, N] of this step."""
        return self.said[: self.count]
