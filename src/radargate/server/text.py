"""From tokens to text while they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from radargate.server.decoder import Decoder


def prompt_text(ids: Sequence[int], tokenizer: Any, written: str | None = None) -> tuple[str, list[int]]:
    """A prompt as a text, and where in it each token begins.

    Args:
        ids: its tokens. Special ones are shown, but for those that the tokenizer puts in front of every text by itself.
        tokenizer: made them.
        written: the prompt where it was sent as a text, which is then repeated as it is.
    """
    if written is None:
        return _decoded(ids, tokenizer)
    if tokenizer.is_fast:
        read = tokenizer(written, return_offsets_mapping=True)
        if read["input_ids"] == list(ids):
            return written, [start for start, _ in read["offset_mapping"]]
    return written, [min(start, len(written)) for start in _decoded(ids, tokenizer)[1]]


def _decoded(ids: Sequence[int], tokenizer: Any) -> tuple[str, list[int]]:
    added = tokenizer.encode("")
    hidden = next((i for i, pair in enumerate(zip(ids, added, strict=False)) if pair[0] != pair[1]), len(added))
    special = {token for token, known in tokenizer.added_tokens_decoder.items() if known.special}
    text, starts, decoder = "", list[int](), Decoder(tokenizer)
    for place, token in enumerate(ids):
        if token in special:
            text, decoder = text + decoder.finish(), Decoder(tokenizer)
        starts.append(len(text) + decoder.waiting)
        text += decoder.add(token)
        if token in special and place >= hidden:
            text += tokenizer.convert_ids_to_tokens(token)
    return text + decoder.finish(), starts


class Writer:
    """The text of one answer as it grows.

    Args:
        tokenizer: turns ids into text.
        stops: strings before which the answer ends.

    Attributes:
        starts: where in the text each token begins.
        told: characters that are certain: no half character, and no beginning of a stop string.
        stopped: whether a stop string has come.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.stops, self._decoder = tuple(stops), Decoder(tokenizer)
        self.starts: list[int] = []
        self.told = 0
        self.stopped = False
        self._held = ""  # whole characters that may be the beginning of a stop string

    def add(self, token: int) -> str:
        """Take one more token; returns what it makes certain, often nothing."""
        self.starts.append(self.told + len(self._held) + self._decoder.waiting)
        return self._tell(self._decoder.add(token))

    def finish(self) -> str:
        """What was held back, once nothing more comes."""
        return "" if self.stopped else self._tell(self._decoder.finish(), last=True)

    def _tell(self, fresh: str, last: bool = False) -> str:
        """Only what was held back and what is new can hold a stop string that was not there before."""
        text = self._held + fresh
        found = [at for at in map(text.find, self.stops) if at >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(text) if last else len(text) - self._possible_stop(text)
        self._held = "" if self.stopped else text[end:]
        self.told += end
        return text[:end]

    def _possible_stop(self, text: str) -> int:
        """How long an end of the text is the beginning of a stop string."""
        longest = max(map(len, self.stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stops):
                return size
        return 0
