"""From tokens to text while they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"  # what decoders write for bytes that are no character (yet)


class Writer:
    """The text of one answer as it grows.

    Args:
        tokenizer: turns ids into text.
        stops: strings before which the answer ends.

    Attributes:
        ids: tokens so far.
        text: what is certain: no half character, and no beginning of a stop string.
        starts: where in the text each token begins.
        stopped: whether a stop string has come.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.ids: list[int] = []
        self.starts: list[int] = []
        self.text = ""
        self.stopped = False
        self._length = 0  # of the whole characters so far, held-back ones included

    def add(self, token: int) -> str:
        """Take one more token; returns what it makes certain, often nothing."""
        self.starts.append(self._length)
        self.ids.append(token)
        whole = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        found = [at for at in (whole.find(stop, len(self.text)) for stop in self.stops) if at >= 0]
        if found:
            self.stopped = True
            return self._extend(whole[: min(found)])
        characters = _whole_characters(whole)
        self._length = len(characters)
        return self._extend(characters[: len(characters) - self._possible_stop(characters)])

    def finish(self) -> str:
        """What was held back, once nothing more comes."""
        if self.stopped:
            return ""
        return self._extend(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def _extend(self, text: str) -> str:
        fresh, self.text = text[len(self.text) :], max(text, self.text, key=len)
        return fresh

    def _possible_stop(self, text: str) -> int:
        """How long an end of the text is the beginning of a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(text) - len(self.text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stops):
                return size
        return 0


def _whole_characters(text: str) -> str:
    """A text without the up to three marks at its end that a character's missing bytes may still replace."""
    for _ in range(3):
        text = text.removesuffix(_BROKEN)
    return text
