"""Sequences that decode together: one left-padded key–value cache that others can join between two steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from radargate.data.batches import pad, positions
from radargate.gates.router.running_text import add_rows, cache_name, keep_rows

PIECE = 256  # tokens of a prompt whose logits are held at a time


class Batch:
    """The cache of some sequences under one bundle and one mask; the caller keeps the sequences in the same order.

    Args:
        base: the base model, to see what its forward takes.
        pad: a token id to fill up with.
    """

    def __init__(self, base: Any, pad: int) -> None:
        self.pad, self.device = pad, next(base.parameters()).device
        self.accepted = set(inspect.signature(base.forward).parameters)
        self.cache: DynamicCache | None = None
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=self.device)  # [sequences, length of the cache]

    def __len__(self) -> int:
        return len(self.mask)

    @torch.no_grad()
    def read(self, model: Any, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DynamicCache, Tensor]:
        """Read prompts, without a change here: logits [prompts, vocabulary], and cache and mask for `merge`."""
        ids, mask = (part.to(self.device) for part in pad(prompts, self.pad, left=True))
        cache = DynamicCache()
        return self._read(model, ids, mask, cache)[:, -1], cache, mask

    @torch.no_grad()
    def read_watched(
        self, model: Any, prompt: Sequence[int], watch: Callable[[int, Tensor], None]
    ) -> tuple[Tensor, DynamicCache, Tensor]:
        """The same for one prompt, piece by piece: ``watch`` gets each piece's start and logits [tokens, vocabulary]."""
        ids = torch.tensor([prompt], device=self.device)
        mask, cache = torch.ones_like(ids), DynamicCache()
        whole = getattr(model.base_model, "reads_whole_prompts", False)
        width = len(prompt) if whole else PIECE
        for start in range(0, len(prompt), width):
            piece = ids[:, start : start + width]
            end = start + piece.shape[1]
            logits = self._read(model, piece, mask[:, :end], cache, keep=piece.shape[1])[0]
            watch(start, logits)
        return logits[-1:], cache, mask

    def merge(self, cache: DynamicCache, mask: Tensor) -> None:
        """Add sequences that were read behind those that are here."""
        if self.cache is None:
            self.cache, self.mask = cache, mask
            return
        longest = max(mask.shape[1], self.mask.shape[1])
        add_rows(self.cache, cache)
        layer: Any  # the servers' models keep keys and values, which not every layer of a cache has
        new: Any
        for layer, new in zip(self.cache.layers, cache.layers, strict=True):
            layer.keys = torch.cat([_widened(layer.keys, longest), _widened(new.keys, longest)])
            layer.values = torch.cat([_widened(layer.values, longest), _widened(new.values, longest)])
        self.mask = torch.cat([_left(self.mask, longest), _left(mask, longest)])

    @torch.no_grad()
    def step(self, model: Any, tokens: Sequence[int]) -> Tensor:
        """Read one more token of every sequence; logits [sequences, vocabulary]."""
        assert self.cache is not None
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        ids = torch.tensor(tokens, device=self.device)[:, None]
        return self._read(model, ids, self.mask, self.cache)[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but these, and the columns that nobody needs any more."""
        if len(rows) == len(self.mask):
            return
        if not rows:
            self.cache, self.mask = None, self.mask[:0, :0]
            return
        assert self.cache is not None
        at = torch.tensor(rows, device=self.device)
        self.mask = self.mask[at]
        unused = int(self.mask.sum(0).bool().int().argmax())  # columns left of the first real token
        self.mask = self.mask[:, unused:]
        keep_rows(self.cache, at)
        layer: Any
        for layer in self.cache.layers:
            layer.keys = layer.keys[at, :, unused:]
            layer.values = layer.values[at, :, unused:]

    def _read(self, model: Any, ids: Tensor, mask: Tensor, cache: DynamicCache, keep: int = 1) -> Tensor:
        extras = {"position_ids": positions(mask)[:, -ids.shape[1] :], "logits_to_keep": keep}
        taken = {name: value for name, value in extras.items() if name in self.accepted}
        taken[cache_name(self.accepted)] = cache
        out = model.base_model(input_ids=ids, attention_mask=mask, use_cache=True, **taken)
        return out.logits[:, -keep:].float().cpu()


def _widened(states: Tensor, length: int) -> Tensor:
    """Keys or values [sequences, heads, columns, d], filled with zeros on the left."""
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


def _left(mask: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(mask, (length - mask.shape[1], 0))
