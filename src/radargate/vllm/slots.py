"""The text's state beside the slots of keys and values, for vLLM's V1 model runner (CPUs): each token's own sums, under its slot.

A cached block holds the keys and values of certain tokens after certain tokens, and so the sums of just these: prefix cache, chunks and
preemption need nothing of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from radargate.errors import RadarGateError
from radargate.vllm.text import StepText

KEY = "radargate prompts"  # in vLLM's table of what is looked up by name


class SlotText:
    """Reads each step's tokens before vLLM's model does: a forward pre-hook.

    Args:
        step: where layers look.
        prompts: whether each request's prompt decides, once.
    """

    def __init__(self, step: StepText, prompts: bool) -> None:
        self.step, self.prompts = step, prompts
        self.kept = torch.zeros(0, step.sums.experts + 1, dtype=torch.float64, device=step.said.device)

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Say what the router thinks of each token of the step."""
        from vllm.forward_context import get_forward_context

        ids = kwargs.get("input_ids", args[0] if args else None)
        context = get_forward_context()
        batch = _batch(context.attn_metadata)
        if batch is None or ids is None:  # vLLM looks how much memory a step takes, or compiles
            self.step.count = self.step.said.shape[0] if ids is None else ids.shape[0]
            return
        starts, tokens = batch.query_start_loc, batch.num_actual_tokens
        if self.prompts:
            said = context.no_compile_layers[KEY].said(len(starts) - 1)
            self.step.say(said.repeat_interleave(starts.diff(), 0), ids.shape[0])
            return
        block = _block_size(context)
        sums = self.read(ids[:tokens], starts, batch.seq_lens, batch.block_table, batch.slot_mapping[:tokens], block)
        self.step.say(self.step.sums.log_weights(sums), ids.shape[0])

    def read(self, ids: Tensor, starts: Tensor, lengths: Tensor, blocks: Tensor, slots: Tensor, block: int) -> Tensor:
        """The sums [tokens, N + 1] after each token of a step, kept under the tokens' slots.

        Args:
            ids: [tokens].
            starts: [requests + 1], where each request's tokens begin.
            lengths: [requests], tokens of each request when the step is over.
            blocks: [requests, …], its blocks in order.
            slots: [tokens], where each token's keys and values go.
            block: tokens a block.
        """
        self._grow(int(slots.max()) + 1 if len(slots) else 0)
        counts, lengths = starts.diff(), lengths[: len(starts) - 1]
        before = (lengths - counts).long()  # tokens of each request that were read in earlier steps
        last = (before - 1).clamp(min=0)
        places = blocks[torch.arange(len(last)), last // block].long() * block + last % block
        added = _running(self.step.sums.rows(ids), starts)
        continued = before > 0
        slots = slots.long()
        self._grow(int(places[continued].max()) + 1 if bool(continued.any()) else 0)
        if not bool(torch.isin(places[continued], slots).any()):
            past = torch.where(continued[:, None], self.kept[places.clamp(max=len(self.kept) - 1)], 0.0)
            sums = added + past.repeat_interleave(counts, 0)
            self.kept[slots] = sums
            return sums
        # a request may continue what another one of this very step reads: whoever starts earlier goes first
        sums = added
        for request in torch.argsort(before, stable=True).tolist():
            own = slice(int(starts[request]), int(starts[request + 1]))
            if before[request] > 0:
                sums[own] += self.kept[places[request]]
            self.kept[slots[own]] = sums[own]
        return sums

    def _grow(self, rows: int) -> None:
        if rows > len(self.kept):
            more = self.kept.new_zeros(max(rows, 2 * len(self.kept)) - len(self.kept), self.kept.shape[1])
            self.kept = torch.cat([self.kept, more])


def _running(rows: Tensor, starts: Tensor) -> Tensor:
    """Sums of rows [tokens, …] within each request up to each token."""
    whole = torch.cat([rows.new_zeros(1, rows.shape[1]), rows.cumsum(0)])
    return whole[1:] - whole[starts[:-1].long()].repeat_interleave(starts.diff(), 0)


def _batch(metadata: Any) -> Any:
    """How a step's tokens belong to requests, from the first layer of the model that keeps keys and values."""
    if isinstance(metadata, list):
        metadata = metadata[0] if metadata else None
    found = next(iter(metadata.values()), None) if isinstance(metadata, dict) else metadata
    if found is not None and not hasattr(found, "slot_mapping"):
        raise RadarGateError(
            f"vLLM's attention ({type(found).__name__}) does not say where its keys and values go, which a router must know."
        )
    return found


def _block_size(context: Any) -> int:
    """Tokens a block, by the shape of the first layer's cache on a CPU: [blocks, heads, tokens, …]."""
    return int(context.no_compile_layers[next(iter(context.attn_metadata))].kv_cache.size(2))
