"""Writing answers in OpenAI's forms, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from radargate.server.jobs import Chunk
from radargate.server.requests import AnswerRequest, ChatBody


class Answer:
    """One request's answer: the chunks of all its sequences, and the JSON they become.

    Args:
        request: the request.
        tokenizer: to show single tokens.
    """

    def __init__(self, request: AnswerRequest, tokenizer: Any) -> None:
        self.request, self.tokenizer = request, tokenizer
        self.chat, self._with_ids = isinstance(request.body, ChatBody), request.body.return_token_ids
        count = len(request.prompts)
        self.texts = [""] * count
        self.tokens: list[list[Any]] = [[] for _ in range(count)]
        self.finish: list[str | None] = [None] * count
        self.generated = [0] * count
        self._head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.group.bundle,
        }
        self._chunk_head = {**self._head, "object": "chat.completion.chunk" if self.chat else "text_completion"}

    def add(self, chunk: Chunk) -> None:
        """Take a chunk in."""
        self.texts[chunk.index] += chunk.text
        self.tokens[chunk.index] += chunk.tokens
        self.finish[chunk.index] = chunk.finish
        self.generated[chunk.index] = chunk.generated

    @property
    def complete(self) -> bool:
        """Whether every sequence has ended."""
        return all(self.finish)

    def usage(self) -> dict[str, int]:
        """Tokens read, those of a prompt once for all its answers, and tokens written."""
        read, written = sum(map(len, self.request.prompts)) // self.request.body.n, sum(self.generated)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def whole(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        choices = []
        for i, text in enumerate(self.texts):
            content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            logprobs = self._logprobs(self.tokens[i])
            choices.append(self._choice(i, content, self.tokens[i], logprobs, self.finish[i]))
            choices[i].update(self._prompt_ids(i, in_choice=True))
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self.usage(), **self._prompt_ids()}

    def first_chunks(self) -> list[dict[str, Any]]:
        """What a stream begins with: in a chat, the role; the prompt's token ids where the request wants them."""
        if not (self.chat or self._with_ids):
            return []
        content = {"delta": {"role": "assistant", "content": ""}} if self.chat else {"text": ""}
        chunks = []
        for i in range(len(self.texts)):
            choice = {**self._choice(i, content), **self._prompt_ids(i, in_choice=True)}
            chunks.append({**self._chunk_head, "choices": [choice], **self._prompt_ids(i)})
        return chunks

    def chunk(self, chunk: Chunk) -> dict[str, Any]:
        """A chunk of a stream."""
        text, tokens = chunk.text, chunk.tokens
        content = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        choice = self._choice(chunk.index, content, tokens, self._logprobs(tokens) if tokens else None, chunk.finish)
        return {**self._chunk_head, "choices": [choice]}

    def usage_chunk(self) -> dict[str, Any]:
        """What a stream ends with where the request wants it."""
        return {**self._chunk_head, "choices": [], "usage": self.usage()}

    def _choice(
        self,
        index: int,
        content: dict[str, Any],
        tokens: Sequence[Any] = (),
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        # token ids as vLLM sends them
        ids = {"token_ids": [chosen.id for chosen, _ in tokens if not chosen.read]} if self._with_ids else {}
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish, **ids}

    def _prompt_ids(self, index: int = 0, in_choice: bool = False) -> dict[str, Any]:
        """Token ids of a prompt; a chat has one, so it stands beside the choices, completions have it in each."""
        wanted = self._with_ids and in_choice != self.chat
        return {"prompt_token_ids": self.request.prompts[index]} if wanted else {}

    def _logprobs(self, tokens: Sequence[Any]) -> dict[str, Any] | None:
        if self.request.sampling.logprobs is None:
            return None
        if self.chat:
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
            "top_logprobs": [
                None if chosen.logprob is None else {self._name(token): logprob for token, logprob in chosen.top}
                for chosen, _ in tokens
            ],
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
