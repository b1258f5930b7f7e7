"""Text from tokens as they come, in time that grows with their number: every token is decoded behind the few before it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

_BROKEN = "\ufffd"  # what decoders write for bytes that are no character (yet)
_MARKS = 3  # of those at an end that missing bytes may still replace: a character has up to four bytes
_LONGEST = 16  # tokens that wait for a character to become whole, before the window is cut nevertheless
_KEPT = 12  # tokens that such a cut leaves: more bytes than three marks can stand for
# an end that `clean_up_tokenization` may still change: the beginning of " .", " n't", " 've", " ' " and the like
_UNCLEAN = re.compile(r" [ 'nvr]*$")


class Decoder:
    """The text of a growing sequence of tokens, special ones left out, as the tokenizer decodes all of it.

    A short window of tokens is decoded at each one: those behind the last safe border, and in front of it those of the
    border before, because what a token looks like depends on what it follows (a space, is dropped at the start of
    a text). What was told is never taken back. So where a tokenizer spells characters with byte tokens, bytes that are
    no character are marked from where they begin, while the tokenizer itself would mark all byte tokens around them;
    how many marks stand there may differ.

    Args:
        tokenizer: turns ids into text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode, self._name, self._skipped = _backend(tokenizer)
        self._clean = _clean_up(tokenizer)
        self._window: list[int] = []
        self._known = 0  # tokens at the window's start that lie before the border
        self._before = ""  # their text
        self._told = 0  # characters of the window's text that are whole, those of `_before` included
        self._raw = ""  # whole characters that wait for `_clean`

    def add(self, token: int) -> str:
        """Take one more token; returns the characters that are whole now, often none."""
        if token in self._skipped or self._name(token) is None:
            return ""
        self._window.append(token)
        text = self._text()
        marks = _marks(text)
        fresh = self._tell(text, len(text) - marks)
        if fresh and not marks:
            self._border(self._window[self._known :])
        elif len(self._window) - self._known > _LONGEST:
            fresh += self._cut(text, marks)
        return self._cleaned(fresh)

    def finish(self) -> str:
        """What is left once no token comes any more."""
        text = self._text()
        return self._cleaned(self._tell(text, len(text)), last=True)

    @property
    def waiting(self) -> int:
        """Whole characters that were not told yet, because the tokenizer may still clean them up."""
        return len(self._clean(self._raw)) if self._clean and self._raw else 0

    def _text(self) -> str:
        text = self._decode(self._window)
        if self._known and not text.startswith(self._before):  # byte tokens that undo the character before them
            return self._before + self._decode(self._window[self._known :])
        return text

    def _tell(self, text: str, end: int) -> str:
        fresh = text[self._told : end]
        self._told = max(self._told, end)
        return fresh

    def _border(self, kept: list[int]) -> None:
        """All is told; later tokens are decoded behind ``kept``, unless those are nothing without what was before."""
        before = self._decode(kept)
        if before:
            self._window, self._known, self._before, self._told = kept, len(kept), before, len(before)

    def _cut(self, text: str, marks: int) -> str:
        """Shorten a window in which no character becomes whole for long; what is told in addition."""
        kept = self._window[-_KEPT:]
        shorter = self._decode(kept)
        if shorter.endswith(_BROKEN * marks):  # the same end, so the same characters are still open
            self._window, self._known, self._before, self._told = kept, 0, "", len(shorter) - marks
            return ""
        fresh = self._tell(text, len(text))
        self._border(kept)
        return fresh

    def _cleaned(self, fresh: str, last: bool = False) -> str:
        if self._clean is None:
            return fresh
        self._raw += fresh
        open_end = None if last else _UNCLEAN.search(self._raw)
        end = open_end.start() if open_end else len(self._raw)
        done, self._raw = self._raw[:end], self._raw[end:]
        return self._clean(done)


def _marks(text: str) -> int:
    """How many marks at the end of a text missing bytes may still replace."""
    return next((count for count in range(_MARKS, 0, -1) if text.endswith(_BROKEN * count)), 0)


def _backend(tokenizer: Any) -> tuple[Callable[[Sequence[int]], str], Callable[[int], Any], frozenset[int]]:
    """Ids to text without clean-up, an id's name (None for one that the tokenizer lacks), and the special ids.

    The tokenizer's own backend where nothing is put over it: it is four times faster.
    """
    kind = type(tokenizer)
    plain = isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in ("decode", "_decode")
    )
    if plain:
        backend = tokenizer.backend_tokenizer
        special = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        return lambda ids: str(backend.decode(ids, skip_special_tokens=True)), backend.id_to_token, special

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return decode, tokenizer.convert_ids_to_tokens, frozenset(tokenizer.all_special_ids)


def _clean_up(tokenizer: Any) -> Callable[[str], str] | None:
    """What the tokenizer does to decoded text, None for nothing."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    if type(getattr(backend, "model", None)).__name__ == "BPE" and not forced:
        return None  # transformers leaves it out there
    clean: Callable[[str], str] = tokenizer.clean_up_tokenization
    return clean
