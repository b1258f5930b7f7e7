"""What a request asks of the engine, and what the engine says back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from radargate.server.loaded import Mask
from radargate.server.sampling import Chooser, Chosen, Sampling, reported
from radargate.server.text import Writer, prompt_text


@dataclass(frozen=True)
class Chunk:
    """Something new of one sequence.

    Attributes:
        index: of the sequence within its request.
        text: what became certain.
        tokens: tokens whose text that is, with the place where each starts.
        finish: ``stop`` or ``length`` with the last chunk, else None.
        generated: tokens made so far, the end token included.
        error: what went wrong; it is the last chunk then.
    """

    index: int
    text: str = ""
    tokens: tuple[tuple[Chosen, int], ...] = ()
    finish: str | None = None
    generated: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Group:
    """What sequences must have in common to share a batch."""

    bundle: str
    mask: Mask


@dataclass
class Job:
    """All sequences of one request.

    Attributes:
        group: bundle and mask.
        prompts: token ids, one entry a sequence.
        sampling: the same for all.
        send: called by the engine's thread with each `Chunk`.
        texts: the prompts as they were written, None for those sent as tokens; nothing for a conversation.
        cancelled: set it to free the slots; no more chunks come then.
    """

    group: Group
    prompts: list[list[int]]
    sampling: Sampling
    send: Callable[[Chunk], None]
    texts: list[str | None] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)


class Sequence:
    """One answer in the making."""

    def __init__(self, job: Job, index: int, tokenizer: object, ends: frozenset[int], penalty: float) -> None:
        self.job, self.index, self.prompt, self.ends = job, index, job.prompts[index], ends
        self.sampling, self.tokenizer = job.sampling, tokenizer
        self.writer = Writer(tokenizer, job.sampling.stops)
        own = job.sampling.repetition_penalty
        self.chooser = Chooser(job.sampling, index, penalty if own is None else own, self.prompt)
        self.last = 0
        self.generated = 0
        self._unsent: list[tuple[Chosen, int]] = []
        self._read = [Chosen(self.prompt[0], read=True)]  # nothing predicts the first token
        self._begins = 0  # characters of the prompt, where the answer begins with it

    @property
    def reports_prompt(self) -> bool:
        """Whether the log-probabilities of its prompt's tokens are wanted."""
        return self.sampling.echo and self.sampling.logprobs is not None

    def read(self, start: int, logits: Tensor) -> None:
        """Note what was predicted of the prompt: logits [tokens, vocabulary] behind its tokens from ``start`` on."""
        assert self.sampling.logprobs is not None
        following = self.prompt[start + 1 : start + 1 + len(logits)]
        self._read += reported(logits[: len(following)], following, self.sampling.logprobs, read=True)

    def take(self, logits: Tensor) -> bool:
        """Choose a token and send what is new; True where it was the last."""
        if self.sampling.echo and not self.generated:
            self._send_prompt()
        if not self.sampling.max_tokens:
            self.job.send(Chunk(self.index, finish="length"))
            return True
        chosen = self.chooser.choose(logits)
        self.last, self.generated = chosen.id, self.generated + 1
        finish, text = None, ""
        if chosen.id in self.ends:
            finish = "stop"
        else:
            text = self.writer.add(chosen.id)
            self._unsent.append((chosen, self._begins + self.writer.starts[-1]))
            if self.writer.stopped:
                finish = "stop"
            elif self.generated >= self.job.sampling.max_tokens:
                finish = "length"
        if finish:
            text += self.writer.finish()
        if chosen.id in self.ends and self.sampling.echo:  # who scores a prompt counts on one token behind it
            self._unsent.append((chosen, self._begins + self.writer.told))
        tokens = self._sendable(bool(finish) and not self.writer.stopped)
        if text or tokens or finish:
            self.job.send(Chunk(self.index, text, tokens, finish, self.generated))
        return finish is not None

    def _send_prompt(self) -> None:
        text, starts = prompt_text(self.prompt, self.tokenizer, self.job.texts[self.index])
        self._begins = len(text)
        tokens = tuple(zip(self._read, starts, strict=True)) if self.reports_prompt else ()
        self.job.send(Chunk(self.index, text, tokens))

    def _sendable(self, all_of_them: bool) -> tuple[tuple[Chosen, int], ...]:
        """Tokens that begin in the text that is certain by now."""
        end = self._begins + self.writer.told
        count = sum(all_of_them or start < end for _, start in self._unsent)
        tokens, self._unsent = self._unsent[:count], self._unsent[count:]
        return tuple(tokens)
