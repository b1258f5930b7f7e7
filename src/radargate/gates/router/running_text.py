"""What a model has read so far, summed up: what a router of the whole model looks at, kept beside the key–value cache."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from contextvars import Token
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from radargate.errors import OptionError, RadarGateError
from radargate.gates.call_state import CallState, current


@dataclass(eq=False)
class TextSoFar:
    """One call's text.

    Attributes:
        mask: [batch, whole length] 1 for real tokens, or None where all are.
        past: what `carried` gave of the call before, or None.
        cache: the cache that the call was given.
        fault: why this text cannot be summed up, which only matters to who asks for it.
        sums: [batch, length, width + 1] for each token of this call, summed over all real tokens up to it: its embedding
            scaled to unit RMS, and a 1; None until the base has embedded them.
        prompt: [batch, width + 1] sums of all that the first call read, up to its first token of an answer.
        hidden: [batch, hidden width + 1] the same of the base's own states three quarters up, where a router asks for them.
        whole: an encoder reads this text: every token of both stacks sees all of it, and ``sums`` are [batch, 1, width + 1].
        alone: the encoder was called without its model.
        listens: whether embeddings that are looked up now are this text's: not while only the decoder is at work.
    """

    mask: Tensor | None
    past: Tensor | None
    cache: Any = field(default=None, repr=False)
    fault: str | None = None
    sums: Tensor | None = None
    prompt: Tensor | None = None
    hidden: Tensor | None = None
    whole: bool = False
    alone: bool = field(default=False, repr=False)
    listens: bool = field(default=True, repr=False)
    token: Token[CallState] | None = field(default=None, repr=False)
    _said: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What copies take along, also of a call that was interrupted: a token belongs to its own context."""
        return {**self.__dict__, "token": None, "cache": None}

    def log_weights(self, router: Any) -> Tensor:
        """What a router says at each token, [batch, length, experts]; worked out once a call where nothing asks for gradients."""
        if self.sums is None:
            raise RadarGateError(f"router='text' {self.fault or 'found no token embeddings in this call.'}")
        if torch.is_grad_enabled():  # a checkpointed layer must find its own part of the graph again
            return self._ask(router, self.sums)
        if id(router) not in self._said:
            self._said[id(router)] = self._ask(router, self.sums)
        return self._said[id(router)]

    def _ask(self, router: Any, sums: Tensor) -> Tensor:
        if router.reads_hidden and self.hidden is None and not self.whole:
            raise RadarGateError(
                "features='hidden' does not know what this key–value cache holds: it was filled without it. Begin with an empty cache."
            )
        first = self.hidden if router.reads_hidden else self.prompt
        if router.keeps_first and first is not None:
            return cast(Tensor, router(first[:, None])).expand(-1, sums.shape[1], -1)
        return cast(Tensor, router(sums))

    def read(self, embedded: Tensor) -> None:
        """Add the embeddings [batch, length, width] of this call's tokens."""
        if self.fault:
            return
        sums = summed(embedded, None if self.mask is None else self.mask[:, -embedded.shape[1] :])
        if self.whole:
            sums = sums[:, -1:]
        width = sums.shape[-1]
        self.sums = sums if self.past is None else sums + self.past[:, :1, :width]
        if not self.whole:
            self.prompt = ended(sums) if self.past is None else self.past[:, 1, :width]

    def carried(self) -> Tensor:
        """What the next call must know, a row each, filled up to one width: sums of all so far, of the prompt, of its hidden states."""
        assert self.sums is not None and self.prompt is not None
        rows = [self.sums[:, -1], self.prompt, *([] if self.hidden is None else [self.hidden])]
        widest = max(row.shape[-1] for row in rows)
        return torch.stack([F.pad(row, (0, widest - row.shape[-1])) for row in rows], 1)


def ended(sums: Tensor) -> Tensor:
    """Running sums [batch, length, width] where prompts end: at the last token, or before the first of an answer."""
    answers = current.get().answers
    if answers is None or answers.shape != sums.shape[:2]:
        return sums[:, -1]
    before = (answers.to(sums.device).cumsum(1) == 0).sum(1)
    last = sums.gather(1, (before - 1).clamp(min=0)[:, None, None].expand(-1, 1, sums.shape[-1]))[:, 0]
    found = last * (before > 0)[:, None]
    return torch.where(found[:, -1:] > 0, found, sums[:, -1])  # labels on all tokens: nobody says what the prompt is


def summed(embedded: Tensor, mask: Tensor | None = None) -> Tensor:
    """Running sums [batch, length, width + 1] of embeddings [batch, length, width] scaled to unit RMS, and of a 1; masked tokens add 0."""
    states = embedded.detach().float()
    states = states * (states.square().mean(-1, keepdim=True) + 1e-12).rsqrt()
    states = torch.cat([states, torch.ones_like(states[..., :1])], -1)
    return (states if mask is None else states * mask[..., None]).cumsum(1)


class _Carries:
    """A cache whose rows take the sums of their tokens with them."""

    radargate_text: Tensor | None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._pick(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._pick(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.radargate_text is not None:
            self.radargate_text = self.radargate_text.repeat_interleave(repeats, 0)

    def crop(self, *args: Any) -> None:
        raise OptionError(
            "router='text' cannot take tokens back, which assisted generation asks for. Generate without an assistant."
        )

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.radargate_text = None

    def __reduce_ex__(self, protocol: Any) -> Any:  # the class is made here, where pickle cannot find it
        return _bare, (type(self).__mro__[2],), self.__dict__

    def _pick(self, rows: Tensor) -> None:
        if self.radargate_text is not None:
            self.radargate_text = self.radargate_text[rows.to(self.radargate_text.device)]


@functools.cache
def _carrying(kind: type) -> type:
    return kind if issubclass(kind, _Carries) else type(kind.__name__, (_Carries, kind), {})


def _bare(kind: Any) -> Any:
    made: Any = _carrying(kind)
    return made.__new__(made)


def carry(cache: Any, sums: Tensor) -> None:
    """Give a cache what `TextSoFar.carried` says of the tokens whose keys and values it holds, a row of the batch each."""
    kind: Any = type(cache)
    cache.__class__ = _carrying(kind)
    cache.radargate_text = sums


def keep_rows(cache: Any, rows: Tensor) -> None:
    """Let a cache forget the sums of all rows but these; for who cuts its keys and values by hand."""
    if getattr(cache, "radargate_text", None) is not None:
        cache.radargate_text = cache.radargate_text[rows]


def add_rows(cache: Any, other: Any) -> None:
    """Put the sums of another cache's rows behind a cache's own."""
    if getattr(cache, "radargate_text", None) is not None:
        cache.radargate_text = torch.cat([cache.radargate_text, other.radargate_text])


def cache_in(held: Any) -> Any:
    """The key–value cache among a call's inputs by name, or in a model's outputs; None where there is none.

    It is found by its kind: transformers 5.24 gave it another name.
    """
    values: Iterable[Any] = held.values() if isinstance(held, Mapping) else held if isinstance(held, tuple) else ()
    return next((value for value in values if isinstance(value, Cache)), None)


def cache_name(accepted: Collection[str]) -> str:
    """What a model calls its cache, from the names that its ``forward`` accepts."""
    return "cache" if "cache" in accepted else "past_key_values"
