"""Rows to tokens. Context and continuation are split as lm-eval splits them, for training and scoring alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radargate.errors import DataError, first_line


class Conversation(str):
    """A prompt of several turns. As a text it is their contents line by line, which a base without chat template reads.

    Args:
        messages: the turns, each with ``role`` and ``content``.
        where: file and row, for messages.
    """

    messages: tuple[Mapping[str, str], ...]
    where: str

    def __new__(cls, messages: Sequence[Mapping[str, str]], where: str = "") -> Conversation:
        made = super().__new__(cls, _line_by_line(messages))
        made.messages, made.where = tuple(messages), where
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:  # what pickle calls `__new__` with
        return self.messages, self.where

    def __repr__(self) -> str:  # which a hash of rows is made from: roles count
        return repr(self.messages)


def render_context(prompt: str, tokenizer: Any) -> str:
    """The text before the answer: the tokenizer's chat template where it has one, else the prompt itself.

    Raises:
        DataError: the template refuses the turns of a `Conversation`.
    """
    if not isinstance(prompt, Conversation):
        return render_messages([{"role": "user", "content": prompt}], tokenizer)
    try:
        return render_messages(prompt.messages, tokenizer)
    except DataError as error:
        raise DataError(f"{prompt.where}: {error}") from error


def answer_delimiter(tokenizer: Any) -> str:
    """What stands between context and answer: nothing after a chat template, else one space (as lm-eval)."""
    return "" if getattr(tokenizer, "chat_template", None) else " "


def encode_context(context: str, tokenizer: Any) -> list[int]:
    """Token ids of a rendered context; special tokens are added only where no chat template wrote them."""
    templated = bool(getattr(tokenizer, "chat_template", None))
    return tokenizer.encode(context, add_special_tokens=not templated)


_ANSWER = "answer"


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
    """The text before the next answer of a conversation; without a chat template, its contents line by line.

    Raises:
        DataError: the template refuses them, such as a system turn that it does not know.
    """
    if not getattr(tokenizer, "chat_template", None):
        return _line_by_line(messages)
    try:
        return tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise what they like
        raise DataError(f"the chat template refuses these messages: {first_line(error)}") from error


def _line_by_line(messages: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages)


def end_token(tokenizer: Any) -> int | None:
    """The special token that ends an assistant turn of the chat template, else the tokenizer's end of sequence.

    Many instruction-tuned models have another one for turns (Gemma's ``<end_of_turn>``, ``<|im_end|>`` over a plain
    base), and are asked for answers in turns.
    """
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # a template for other conversations
            return tokenizer.eos_token_id
        behind = tokenizer.encode(text.rpartition(_ANSWER)[2].lstrip(), add_special_tokens=False)
        added = tokenizer.added_tokens_decoder
        if behind and behind[0] in added and added[behind[0]].special:
            return behind[0]
    return tokenizer.eos_token_id


def stop_tokens(tokenizer: Any) -> list[int]:
    """Tokens that end a generated answer."""
    return sorted({end_token(tokenizer), tokenizer.eos_token_id} - {None})


def encode_to_answer(context: str, tokenizer: Any) -> list[int]:
    """Token ids of a whole rendered context, up to where a generated answer starts, white space included."""
    pair = encode_pair(context, answer_delimiter(tokenizer) + "x", tokenizer)
    return pair.context + pair.continuation[: pair.lead]
