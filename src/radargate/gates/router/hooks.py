"""Hooks by which a base model sums up what it reads, for a router of the whole model."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from radargate.base_models.kinds import other_inputs
from radargate.errors import OptionError
from radargate.gates.call_state import current
from radargate.gates.router.running_text import TextSoFar, cache_in, carry, ended, summed

_HANDLES = "_radargate_text_hooks"
DEPTH = 3  # quarters of the layers after which hidden states are looked at; half as deep routes a little worse (docs/log.md)
_HIDDEN = "_radargate_reads_hidden"
_KEY = "radargate_text"  # of an encoder's outputs, whose rows generation repeats for beams


def embeddings(base: Any) -> Any:
    """The token embeddings of the stack whose text counts: an encoder's, where there is one.

    Raises:
        OptionError: that stack does not read tokens, or does not say by what.
    """
    found = None
    with contextlib.suppress(AttributeError, NotImplementedError):
        found = (base.get_encoder() if base.config.is_encoder_decoder else base).get_input_embeddings()
    if not hasattr(found, "embedding_dim"):
        raise OptionError(
            f"router='text' needs a model that looks its tokens up in an embedding, and {type(base).__name__} has "
            f"{'none that it names' if found is None else type(found).__name__} there. Leave the router out."
        )
    return found


def check_reads_text(base: Any) -> None:
    """Raise `OptionError` where a model reads more than text, so that its layers' inputs are not the text's tokens."""
    others = other_inputs(base)
    if others:
        raise OptionError(
            f"router='text' decides by the text that a model reads, and {type(base).__name__} reads {', '.join(others)} too: what "
            "its layers see are not the text's tokens. Leave the router out."
        )


def reads_tokens(site: str) -> bool:
    """Whether a layer stands in one of a model's numbered blocks, where each token of the text has a state of its own."""
    return any(part.isdigit() for part in site.split("."))


def watch(base: Any, hidden: bool = False) -> None:
    """Let a base model sum up what it reads, until `unwatch`; with ``hidden`` also its own states three quarters up.

    Raises:
        OptionError: the model keeps more than a cache of keys and values, or has no embeddings.
    """
    if hidden:
        base.get_decoder().__dict__[_HIDDEN] = True
    if _HANDLES in base.__dict__:
        return
    if getattr(base, "_is_stateful", False):
        raise OptionError(
            f"router='text' needs a model with a key–value cache, and {type(base).__name__} is stateful. Leave the router out."
        )
    # a vocabulary that is resized later may put one embedding in the place of two
    looked_up = {id(module): module for module in (embeddings(base), base.get_input_embeddings())}
    if base.config.is_encoder_decoder:
        stack, begin, end = base.get_encoder(), _encoder_begins, _encoder_ends
        whole = [
            base.register_forward_pre_hook(_model_begins, with_kwargs=True),
            base.register_forward_hook(_model_ends, always_call=True),
        ]
    else:
        stack, begin, end, whole = base.get_decoder(), _begin, _end, []
    base.__dict__[_HANDLES] = [
        *whole,
        stack.register_forward_pre_hook(begin, with_kwargs=True),
        *(module.register_forward_hook(_embedded) for module in looked_up.values()),
        stack.register_forward_hook(end, always_call=True),
    ]


def forward_of(base: Any) -> Any:
    """A model's forward, with the hooks on the model itself where it is the very stack that reads: a backbone."""
    own = _HANDLES in base.__dict__ and not base.config.is_encoder_decoder and base.get_decoder() is base
    return base if own else base.forward


def unwatch(base: Any) -> None:
    """Take the hooks off."""
    for handle in base.__dict__.pop(_HANDLES, ()):
        handle.remove()
    if not base.config.is_encoder_decoder:
        leave_hidden(base)


def leave_hidden(base: Any) -> None:
    """Stop looking at the base's own states: no composition asks for them any more."""
    base.get_decoder().__dict__.pop(_HIDDEN, None)


def hidden_sums(stack: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """What a decoder's own states three quarters up say of whole texts, read without any composition: [batch, hidden width + 1].

    Args:
        stack: the decoder.
        given: its inputs by name.
    """
    kept = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
    inputs = {key: given[key] for key in kept if given.get(key) is not None}
    with current.block(plain=True), torch.no_grad():
        states = stack(**inputs, use_cache=False, output_hidden_states=True).hidden_states
    return ended(summed(states[DEPTH * len(states) // 4], given.get("attention_mask")))


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a module was given, by name."""
    return {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs} if args else kwargs


def _begin(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if current.get().plain:
        return
    given = _named(stack, args, kwargs)
    mask, cache, places = given.get("attention_mask"), cache_in(given), given.get("position_ids")
    past, fault = getattr(cache, "radargate_text", None), None
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        fault = (
            "needs an attention mask of [batch, length], which says what the tokens are; found another one. Generate with a "
            "dynamic cache (the default), and give the model its mask as the tokenizer made it."
        )
    elif past is None and cache is not None and cache.get_seq_length():
        fault = "does not know what this key–value cache holds: it was filled without it. Begin with an empty cache."
    elif given.get("cu_seq_lens_q") is not None or (
        mask is None and places is not None and bool((places[..., 1:] < places[..., :-1]).any())
    ):
        fault = "would mix texts that are packed into one row. Give each a row of its own, with padding."
    text = TextSoFar(mask, past, cache, fault)
    if _HIDDEN in stack.__dict__ and not fault:
        width = stack.config.hidden_size + 1  # type: ignore[union-attr, operator]
        if past is None:
            text.hidden = hidden_sums(stack, given)
        elif past.shape[1] > 2:
            text.hidden = past[:, 2, :width]
    text.token = current.open(text=text)
    if given.get("inputs_embeds") is not None:
        text.read(given["inputs_embeds"])


def _embedded(embedding: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    state, text = current.get(), current.get().text
    if not state.plain and text is not None and text.sums is None and text.listens:
        text.read(output)


def _end(stack: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    text = current.get().text
    if text is None or text.token is None or current.get().plain:
        return
    # some models fill the cache that they are given, and return none
    cache = text.cache if text.cache is not None else cache_in(output)
    if cache is not None and text.sums is not None:
        carry(cache, text.carried())
    _close(text)


def _close(text: TextSoFar) -> None:
    """End a text's call; without token and cache, as layers remember the text while they train, and are copied."""
    if text.token is not None:
        current.close(text.token)
    text.token = text.cache = None


@contextlib.contextmanager
def reading(base: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Iterator[None]:
    """One call of a model, after which nothing that an interrupted one left open is open.

    With ``kwargs`` it is one of ``forward`` itself, which hooks on an encoder–decoder do not see.
    """
    if _HANDLES not in base.__dict__:
        yield
        return
    begins = kwargs is not None and base.config.is_encoder_decoder
    with current.block(text=_text_of(_named(base, args, kwargs or {})) if begins else None):
        yield


def _text_of(given: Mapping[str, Any]) -> TextSoFar:
    """What the encoder's outputs in a call were made from, or an empty text where the encoder is still to read it."""
    encoded, text = given.get("encoder_outputs"), TextSoFar(None, None, whole=True, listens=False)
    if encoded is not None:
        sums = encoded.get(_KEY) if isinstance(encoded, Mapping) else None
        if sums is None:
            text.fault = (
                "does not know what these encoder_outputs were made from. Give the model input_ids, or outputs of its own "
                "encoder as they are."
            )
        else:
            text.sums = sums[:, None]
    return text


def _model_begins(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    text = _text_of(_named(base, args, kwargs))
    text.token = current.open(text=text)


def _model_ends(base: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    text = current.get().text
    if text is not None:
        _close(text)


def _encoder_begins(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    text, given = current.get().text, _named(stack, args, kwargs)
    if text is None or not text.whole or text.sums is not None or text.fault:  # generation calls the encoder on its own
        text = TextSoFar(None, None, whole=True, alone=True)
        text.token = current.open(text=text)
    text.listens = True
    mask = given.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        text.fault = "needs an attention mask of [batch, length], which says what the tokens are; found another one."
    text.mask = mask
    if given.get("inputs_embeds") is not None:
        text.read(given["inputs_embeds"])


def _encoder_ends(stack: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    text = current.get().text
    if text is None:
        return output
    text.listens = False
    if text.sums is not None and isinstance(output, Mapping):
        output = _knowing(type(output))(**output, radargate_text=text.sums[:, 0])
    if text.alone:
        _close(text)
    return output


@functools.cache
def _knowing(kind: Any) -> Any:
    """Outputs of one kind with one field more, of which trees of tensors, beams and pickle know."""
    fields = {"__annotations__": {_KEY: "Tensor | None"}, _KEY: None, "__module__": __name__}
    return dataclass(type(kind.__name__, (kind,), {**fields, "__reduce__": lambda self: (_made, (kind, dict(self)))}))


def _made(kind: Any, values: dict[str, Any]) -> Any:
    return _knowing(kind)(**values)
