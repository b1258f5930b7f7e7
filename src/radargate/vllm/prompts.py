"""Each request's prompt for a router that decides by all of it, in vLLM's V1 model runner: what logits processors are told of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from radargate.vllm.slots import KEY
from radargate.vllm.text import TextSums


class ReadsPrompts(LogitsProcessor):
    """Changes no logits: vLLM tells it, before each step, which request stands at which place of the batch, and its prompt.

    That holds under chunked prefill and after a preemption, as a prompt is handed over whole, without the answer so far.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.sums: TextSums | None = None
        self.decisions: dict[int, Tensor] = {}
        self.prompts: dict[int, list[int]] = {}
        vllm_config.compilation_config.static_forward_context[KEY] = self

    def is_argmax_invariant(self) -> bool:
        """It changes nothing."""
        return True

    def apply(self, logits: Tensor) -> Tensor:
        """The logits as they are."""
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Requests left, came, or changed places."""
        if batch_update is None:
            return
        for place in batch_update.removed:
            self.prompts.pop(place, None)
            self.decisions.pop(place, None)
        for place, _, prompt, _ in batch_update.added:
            self.prompts[place] = list(prompt or ())
            self.decisions.pop(place, None)
        for one, other, how in batch_update.moved:
            for table in (self.prompts, self.decisions):
                _move(table, one, other, how == MoveDirectionality.SWAP)

    def said(self, requests: int) -> Tensor:
        """Log-weights [requests, N] of the experts for each request of the batch, in its order."""
        assert self.sums is not None
        for place in range(requests):
            if place not in self.decisions:
                self.decisions[place] = self.sums.log_weights(self.sums.of_text(self.prompts[place]))
        return torch.stack([self.decisions[place] for place in range(requests)])


def _move(table: dict[int, Any], one: int, other: int, swap: bool) -> None:
    first, second = table.pop(one, None), table.pop(other, None)
    if first is not None:
        table[other] = first
    if swap and second is not None:
        table[one] = second
