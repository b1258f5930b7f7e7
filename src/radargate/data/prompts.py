"""Rows to tokens. Context and continuation are split as lm-eval splits them, for training and scoring alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def render_context(prompt: str, tokenizer: Any) -> str:
    """The text before the answer: the tokenizer's chat template where it has one, else the prompt itself."""
    if getattr(tokenizer, "chat_template", None):
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    return prompt


def answer_delimiter(tokenizer: Any) -> str:
    """What stands between context and answer: nothing after a chat template, else one space (as lm-eval)."""
    return "" if getattr(tokenizer, "chat_template", None) else " "


def encode_context(context: str, tokenizer: Any) -> list[int]:
    """Token ids of a rendered context; special tokens are added only where no chat template wrote them."""
    templated = bool(getattr(tokenizer, "chat_template", None))
    return tokenizer.encode(context, add_special_tokens=not templated)


@dataclass(frozen=True)
class EncodedPair:
    """Tokens of a context and of one continuation of it.

    Attributes:
        context: token ids the model has read before it answers.
        continuation: token ids that are ranked; no end-of-sequence token.
        lead: how many first tokens of the continuation are white space that belongs to the prompt (the
            newline that ends a chat template). They are ranked as lm-eval ranks them, but are no part of
            the answer: neither training loss nor gold-answer NLL counts them.
    """

    context: list[int]
    continuation: list[int]
    lead: int = 0


def encode_pair(context: str, continuation: str, tokenizer: Any) -> EncodedPair:
    """Split the tokens of ``context + continuation`` into the two parts.

    Trailing white space of the context moves to the continuation; the continuation's tokens are what the
    whole text has beyond the context's own token count.

    Source: lm-eval, ``TemplateLM._encode_pair``.
    """
    stripped = context.rstrip()
    context_ids = encode_context(stripped, tokenizer)
    whole = encode_context(context + continuation, tokenizer)
    full = encode_context(context, tokenizer) if stripped != context else context_ids
    lead = len(full) - len(context_ids) if whole[: len(full)] == full else 0
    return EncodedPair(context_ids, whole[len(context_ids) :], lead)


def encode_row(prompt: str, answer: str, tokenizer: Any, encoder_decoder: bool) -> EncodedPair:
    """Token ids of a row's context and of one answer; the two are encoded apart for encoder–decoders."""
    context = render_context(prompt, tokenizer)
    if encoder_decoder:
        return EncodedPair(tokenizer.encode(context), tokenizer.encode(answer, add_special_tokens=False))
    return encode_pair(context, answer_delimiter(tokenizer) + answer, tokenizer)


def render_messages(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> str:
    """The text before the next answer of a conversation; without a chat template, its contents line by line."""
    if getattr(tokenizer, "chat_template", None):
        return tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
    return "\n".join(message["content"] for message in messages)


def encode_to_answer(context: str, tokenizer: Any) -> list[int]:
    """Token ids of a whole rendered context, up to where a generated answer starts, white space included."""
    pair = encode_pair(context, answer_delimiter(tokenizer) + "x", tokenizer)
    return pair.context + pair.continuation[: pair.lead]
