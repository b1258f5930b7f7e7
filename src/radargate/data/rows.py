"""One row of a task, and the checks that every row must pass."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from radargate.errors import DataError

FIELDS = ("prompt", "target", "choices", "answer_index", "task", "id", "rationale", "metric")
ANSWER_METRICS = ("exact_match", "math", "translation", "label")
TEXT_FIELDS = ("prompt", "text", "sentence")  # what a row with a label may call its text


@dataclass(frozen=True)
class Row:
    """A prompt with its gold answer.

    Attributes:
        prompt: the text the model sees, or a `radargate.data.prompts.Conversation` of several turns.
        target: the gold answer.
        choices: the candidates where the row is multiple choice, else empty.
        answer_index: index of the right choice, None where there are no choices.
        task: the task's name.
        id: unique within a source.
        metric: how a free answer is judged, one of `ANSWER_METRICS`; where it is empty the task's name decides.
    """

    prompt: str
    target: str
    choices: tuple[str, ...] = ()
    answer_index: int | None = None
    task: str = ""
    id: str = ""
    metric: str = ""

    @property
    def candidates(self) -> tuple[str, ...]:
        """The choices in the form the target takes: themselves, or labels such as ``(A)``, ``(B)`` ….

        Where the target is not ``choices[answer_index]`` it must be that index's letter or number in some
        dress; the same dress is then put on every index.
        """
        if not self.choices or self.answer_index is None:
            return ()
        if self.target == self.choices[self.answer_index]:
            return self.choices
        return _labels(self.target, self.answer_index, len(self.choices))


def parse_row(raw: Any, where: str, task: str = "", position: int = 0) -> Row:
    """Check one decoded JSON object and turn it into a `Row`.

    Args:
        raw: the decoded object.
        where: file and line, put first in every message.
        task: used where the row names no task.
        position: used to make an id where the row has none.

    Raises:
        DataError: a field is missing or has the wrong type; file, line and field are named.
    """
    if not isinstance(raw, dict):
        raise DataError(f"{where}: found {type(raw).__name__}, expected a JSON object with prompt and target.")
    raw = _from_label(raw)
    for field in ("prompt", "target"):
        value = raw.get(field)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: field '{field}' is {_shown(value)}, expected non-empty text.")
    for field in ("task", "id", "rationale"):
        if raw.get(field) is not None and not isinstance(raw[field], (str, int)):
            raise DataError(f"{where}: field '{field}' is {_shown(raw[field])}, expected text.")
    choices, index = raw.get("choices"), raw.get("answer_index")
    if choices is None and index is not None:
        raise DataError(f"{where}: field 'answer_index' is given without 'choices'.")
    if choices is not None:
        if (
            not isinstance(choices, list)
            or len(choices) < 2
            or not all(isinstance(c, str) and c.strip() for c in choices)
        ):
            raise DataError(
                f"{where}: field 'choices' is {_shown(choices)}, expected a list of at least 2 texts, none empty."
            )
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
            raise DataError(f"{where}: field 'answer_index' is {_shown(index)}, expected 0 to {len(choices) - 1}.")
    metric = raw.get("metric")
    if metric is not None and metric not in ANSWER_METRICS:
        raise DataError(f"{where}: field 'metric' is {_shown(metric)}, expected one of {', '.join(ANSWER_METRICS)}.")
    if metric is not None and choices:
        raise DataError(f"{where}: field 'metric' is for free answers; leave it out where there are 'choices'.")
    for text in (raw["prompt"], raw["target"], str(raw.get("task")), str(raw.get("id")), *(choices or ())):
        if not _encodable(text):
            raise DataError(
                f"{where}: {_shown(text)} holds half a surrogate pair, which is no text. Write the file again as UTF-8."
            )
    row = Row(
        prompt=raw["prompt"],
        target=raw["target"],
        choices=tuple(choices or ()),
        answer_index=index if choices else None,
        task=str(raw.get("task") or task),
        id=str(raw.get("id") if raw.get("id") is not None else f"{task}/{position}"),
        metric=metric or "",
    )
    if row.choices:
        try:
            candidates = row.candidates
        except DataError as error:
            raise DataError(f"{where}: field 'target': {error}") from error
        if len(set(candidates)) != len(candidates):
            raise DataError(f"{where}: field 'choices' holds the same text twice: {_shown(choices)}.")
    return row


def _from_label(raw: dict[str, Any]) -> dict[str, Any]:
    """A row with a text and a label in the form of all rows; others as they are."""
    label, text = raw.get("label"), next((raw[name] for name in TEXT_FIELDS if name in raw), None)
    if "target" in raw or not isinstance(label, (str, int, float)):
        return raw
    return {"metric": "label", **raw, "prompt": text, "target": str(int(label) if isinstance(label, bool) else label)}


def rows_hash(rows: Iterable[Row]) -> str:
    """Short sha256 over the contents of rows, for provenance."""
    digest = hashlib.sha256()
    for row in rows:
        own = (row.metric,) if row.metric else ()  # rows without one keep the hash they always had
        digest.update(repr((row.prompt, row.target, row.choices, row.answer_index, row.task, *own)).encode())
    return digest.hexdigest()[:16]


def row_hash(row: Row) -> str:
    """Short sha256 of what a row asks and wants."""
    return hashlib.sha256(repr((row.prompt, row.target)).encode()).hexdigest()[:10]


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labels(target: str, index: int, count: int) -> tuple[str, ...]:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for alphabet in (
        letters,
        letters.lower(),
        [str(i + 1) for i in range(count)],
        [str(i) for i in range(count)],
    ):
        if index < len(alphabet) and count <= len(alphabet):
            label = re.escape(alphabet[index])
            match = re.fullmatch(rf"(\W*){label}(\W*)", target)
            if match:
                return tuple(f"{match[1]}{alphabet[i]}{match[2]}" for i in range(count))
    raise DataError(
        f"{target!r} is neither choices[{index}] nor the label of answer {index}, such as '({letters[index % 26]})'."
    )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
