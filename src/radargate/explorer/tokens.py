"""The text of every token, where a character may take several tokens and a space belong to the next word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"  # what decoders write for bytes that are no character (yet)
_LONGEST = 4  # bytes of a character in UTF-8, so tokens that may share one


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text before it; put together they are the text.

    A character that is split over tokens stands at the last of them, and the others are empty. Each chunk is decoded behind the
    one before, because some tokenizers drop the space in front of whatever comes first.

    Args:
        ids: token ids [T].
        tokenizer: of the model.

    Returns:
        T texts. Bytes that never become a character stay U+FFFD; one that the text itself holds stands at the token after it.
    """
    texts: list[str] = []
    before = start = 0  # ids[before:start] are done, and ids[start:] may not be whole characters yet
    for end in range(1, len(ids) + 1):
        known = _decode(ids[before:start], tokenizer)
        text = _decode(ids[before:end], tokenizer)
        hopeless = end - start >= _LONGEST or end == len(ids)
        if text.endswith(_BROKEN) and not hopeless:
            texts.append("")
            continue
        texts.append(text[len(known) :])
        before, start = (end if text.endswith(_BROKEN) else start), end
    return texts


def _decode(ids: Sequence[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) if ids else ""
