"""Writing answers in OpenAI's forms, whole or in pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from radargate.server.jobs import Piece
from radargate.server.requests import Asked


class Answer:
    """One request's answer: the pieces of all its sequences, and the JSON they become.

    Args:
        asked: the request.
        tokenizer: to show single tokens.
    """

    def __init__(self, asked: Asked, tokenizer: Any) -> None:
        self.asked, self.tokenizer = asked, tokenizer
        count = len(asked.prompts)
        self.texts = [""] * count
        self.tokens: list[list[Any]] = [[] for _ in range(count)]
        self.finish: list[str | None] = [None] * count
        self.generated = [0] * count
        self._head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked.model,
        }

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        self.texts[piece.index] += piece.text
        self.tokens[piece.index] += piece.tokens
        self.finish[piece.index] = piece.finish
        self.generated[piece.index] = piece.generated

    @property
    def complete(self) -> bool:
        """Whether every sequence has ended."""
        return all(self.finish)

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        made = sum(self.generated)
        return {"prompt_tokens": self.asked.read, "completion_tokens": made, "total_tokens": self.asked.read + made}

    def whole(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        choices = []
        for i, text in enumerate(self.texts):
            said = {"message": {"role": "assistant", "content": text}} if self.asked.chat else {"text": text}
            choices.append(
                {
                    "index": i,
                    **said,
                    "logprobs": self._logprobs(self.tokens[i]),
                    "finish_reason": self.finish[i],
                    **self._ids(self.tokens[i]),
                    **self._prompt_ids(i, in_choice=True),
                }
            )
        kind = "chat.completion" if self.asked.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self.usage(), **self._prompt_ids()}

    def first_chunks(self) -> list[dict[str, Any]]:
        """What a stream begins with: in a chat, who speaks; the prompt's token ids where they were asked for."""
        if not (self.asked.chat or self.asked.ids):
            return []
        said = {"delta": {"role": "assistant", "content": ""}} if self.asked.chat else {"text": ""}
        chunks = [{**self._chunk(i, said), **self._prompt_ids(i)} for i in range(len(self.texts))]
        for i, chunk in enumerate(chunks):
            chunk["choices"][0].update(self._prompt_ids(i, in_choice=True))
        return chunks

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A piece of a stream."""
        said = {"delta": {"content": piece.text} if piece.text else {}} if self.asked.chat else {"text": piece.text}
        return self._chunk(piece.index, said, piece.tokens, piece.finish)

    def usage_chunk(self) -> dict[str, Any]:
        """What a stream ends with where it was asked for."""
        return {**self._head, "object": self._chunk_kind, "choices": [], "usage": self.usage()}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.asked.chat else "text_completion"

    def _chunk(
        self, index: int, said: dict[str, Any], tokens: Sequence[Any] = (), finish: str | None = None
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            **said,
            "logprobs": self._logprobs(tokens) if tokens else None,
            "finish_reason": finish,
            **self._ids(tokens),
        }
        return {**self._head, "object": self._chunk_kind, "choices": [choice]}

    def _ids(self, tokens: Sequence[Any]) -> dict[str, Any]:
        """Token ids of an answer or a piece of one, where they were asked for, as vLLM sends them."""
        return {"token_ids": [chosen.id for chosen, _ in tokens]} if self.asked.ids else {}

    def _prompt_ids(self, index: int = 0, in_choice: bool = False) -> dict[str, Any]:
        """The same of a prompt; a chat has one, so it stands beside the choices, completions have it in each."""
        wanted = self.asked.ids and in_choice != self.asked.chat
        return {"prompt_token_ids": self.asked.prompts[index]} if wanted else {}

    def _logprobs(self, tokens: Sequence[Any]) -> dict[str, Any] | None:
        if self.asked.sampling.logprobs is None:
            return None
        if self.asked.chat:
            return {
                "content": [
                    {
                        **self._shown(chosen.id, chosen.logprob),
                        "top_logprobs": [self._shown(*pair) for pair in chosen.top],
                    }
                    for chosen, _ in tokens
                ],
                "refusal": None,
            }
        return {
            "tokens": [self._name(chosen.id) for chosen, _ in tokens],
            "token_logprobs": [chosen.logprob for chosen, _ in tokens],
            "top_logprobs": [{self._name(token): logprob for token, logprob in chosen.top} for chosen, _ in tokens],
            "text_offset": [start for _, start in tokens],
        }

    def _shown(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(token)
        return {
            "token": self._name(token),
            "logprob": logprob,
            "bytes": None if text is None else list(text.encode()),
        }

    def _name(self, token: int) -> str:
        """A token as text; the vocabulary's own name for one that is no whole character, so that no two look alike."""
        text = self._text(token)
        return self.tokenizer.convert_ids_to_tokens(token) if text is None else text

    def _text(self, token: int) -> str | None:
        """What a token adds to a text; None for one that is no whole character."""
        alone = self.tokenizer.decode([token])
        if "\ufffd" in alone:
            return None
        # behind another one, because some decoders drop the space in front of whatever comes first
        return self.tokenizer.decode([token, token])[len(alone) :]
