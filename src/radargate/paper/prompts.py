"""Other forms of a task's prompts: the text that all of them share is cut out, or said in other words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from radargate.data.prompts import Conversation
from radargate.data.rows import Row, row_hash
from radargate.errors import DataError
from radargate.ops.choices import check_choice
from radargate.paper.paraphrases import PARAPHRASES

Rows = dict[str, list[Row]]
AS_GIVEN, CUT, PARAPHRASED = "as given", "cut", "paraphrased"


def in_form(form: str, train: Rows, test: Rows) -> tuple[Rows, Rows, list[str]]:
    """Training and test rows with prompts of a form, and what could not be given it.

    Args:
        form: ``"as given"``; ``"cut"``, without the text that all prompts of a task's training rows begin or end with;
            ``"paraphrased"``, with one of the task's `PARAPHRASES` in its place, chosen by the row's hash: one of the first
            half for training rows, of the other half for test rows.
        train: task → training rows.
        test: task → rows that are scored.

    Raises:
        OptionError: no such form.
        DataError: a prompt is a conversation, or nothing but what all share.
    """
    check_choice("prompts", form, (AS_GIVEN, CUT, PARAPHRASED))
    if form == AS_GIVEN:
        return train, test, []
    notes: list[str] = []
    shared = {task: shared_text([row.prompt for row in rows]) for task, rows in {**test, **train}.items()}

    def changed(by_task: Rows, held_out: bool) -> Rows:
        found = {}
        for task, rows in by_task.items():
            ways = ("{}",) if form == CUT else PARAPHRASES.get(task, ())
            if not ways:
                notes.append(f"{task} has no paraphrases and keeps its prompts")
            half = len(ways) // 2
            found[task] = _put(rows, shared[task], ways[half:] if held_out else ways[: half or 1], notes)
        return found

    return changed(train, False), changed(test, True), list(dict.fromkeys(notes))


def shared_text(prompts: Sequence[str]) -> tuple[str, str]:
    """The longest text that all prompts begin with, and the longest that all end with; neither ends inside a word."""
    return _beginning(prompts), _beginning([prompt[::-1] for prompt in prompts])[::-1]


def _beginning(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # what these two share, all share
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    while size and any(text[size - 1].isalnum() and text[size : size + 1].isalnum() for text in texts):
        size -= 1
    return first[:size]


def _put(rows: Sequence[Row], shared: tuple[str, str], ways: Sequence[str], notes: list[str]) -> list[Row]:
    """Rows with what is their own put into one of ``ways``; without any, as they are."""
    found = []
    for row in rows if ways else ():
        text = _own_text(row, shared)
        if text is None:
            notes.append(f"prompts of {row.task} that lack the text shared by its training rows stay as they are")
        way = "" if text is None else ways[int(row_hash(row), 16) % len(ways)]
        found.append(row if text is None else dataclasses.replace(row, prompt=way.replace("{}", text)))
    return found or list(rows)


def _own_text(row: Row, shared: tuple[str, str]) -> str | None:
    """What is left of a prompt without the shared text; None where it lacks that."""
    prompt, (first, last) = row.prompt, shared
    if isinstance(prompt, Conversation):
        raise DataError(f"{prompt.where}: found a conversation, expected a single text. Leave {row.task} out.")
    if not (prompt.startswith(first) and prompt.endswith(last)):
        return None
    text = prompt[len(first) : max(len(first), len(prompt) - len(last))].strip()
    if not text:
        raise DataError(
            f"{row.task}: found a prompt that is nothing but what all of them share, {prompt[:60]!r}. Leave it out."
        )
    return text
