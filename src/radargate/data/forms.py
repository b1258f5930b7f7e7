"""The forms that rows come in, found from their fields: pairs, conversations, Alpaca, ShareGPT, labels."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radargate.data.rows import FIELDS
from radargate.data.turns import SYSTEM, Turn, divided, field_text, history, messages, short, system_turn
from radargate.errors import DataError, shown

BESIDE = ("input", "context")  # what an Alpaca input is called
LABEL_TEXTS = ("label_text", "label_name")
MAX_LABELS = 100  # a file with more has no list to choose from


@dataclass(frozen=True)
class Form:
    """How a row is written.

    Attributes:
        name: for messages.
        needs: its fields; the last holds the answer.
        turns: reads a row's conversation, the answer last.
    """

    name: str
    needs: tuple[str, ...]
    turns: Callable[[Form, Mapping[str, Any], str], list[Turn]]

    def fits(self, raw: Mapping[str, Any]) -> bool:
        """Whether a row has all fields of this form, none of them null."""
        return all(raw.get(field) is not None for field in self.needs)

    def uses(self, field: str) -> bool:
        """Whether a field is read."""
        beside = BESIDE if self.turns is _pair else LABEL_TEXTS if self.turns is _label else ()
        return field in (*self.needs, *SYSTEM, *FIELDS, *beside, "history")


@dataclass(frozen=True)
class Found:
    """A row in its own schema (see `radargate.data.rows.Row`), and the form that it was written in."""

    row: dict[str, Any]
    form: Form


def native(raw: Any, where: str) -> Found:
    """A row of any form as prompt and target.

    A conversation's last assistant turn is the answer, the turns before it are the prompt; what comes behind is left out.

    Args:
        raw: the row as it was read.
        where: file and row, put first in every message.

    Raises:
        DataError: it fits no form; its fields, the nearest form and what it lacks are named. Or a field's value is unfit.
    """
    if not isinstance(raw, dict):
        raise DataError(f"{where}: found {type(raw).__name__}, expected a JSON object with prompt and target.")
    if {"prompt", "target"} <= raw.keys() and not _has_turns(raw):
        return Found(raw, FORMS[0])
    form = next((form for form in FORMS if form.fits(raw)), None)
    if form is None:
        raise DataError(f"{where}: {_no_form(raw)}")
    if form.needs == ("prompt", "completion") and raw.get("label") is not None:
        raise DataError(
            f"{where}: prompt, completion and label judge an answer (as KTO takes it), and not every one of them is to be "
            "learned. Keep the good ones, without `label`."
        )
    prompt, target = divided(form.turns(form, raw, where), where)
    kept = {field: raw[field] for field in FIELDS if raw.get(field) is not None and field not in form.needs}
    return Found({**kept, "prompt": prompt, "target": target}, form)


def _has_turns(raw: Mapping[str, Any]) -> bool:
    """Whether prompt and target are more than two texts."""
    lists = any(isinstance(raw[field], list) for field in ("prompt", "target"))
    return lists or any(raw.get(field) for field in (*SYSTEM, "history"))


def with_labels(found: Sequence[Found]) -> list[dict[str, Any]]:
    """The rows; those with a label have all of the labels to choose from, where these are few and more than one."""
    labels = sorted({one.row["target"] for one in found if one.form.turns is _label}, key=_in_order)
    if not 2 <= len(labels) <= MAX_LABELS:
        return [one.row for one in found]
    return [
        {**one.row, "choices": labels, "answer_index": labels.index(one.row["target"])}
        if one.form.turns is _label and "choices" not in one.row
        else one.row
        for one in found
    ]


def _in_order(label: str) -> tuple[bool, int, str]:
    number = label.isdecimal() and len(label) < 10
    return not number, int(label) if number else 0, label


def _pair(form: Form, raw: Mapping[str, Any], where: str) -> list[Turn]:
    """Question and answer, each a text or a list of messages."""
    *asked, answer = form.needs
    turns = system_turn(raw, where) + history(raw, where)
    if isinstance(raw[asked[0]], list):
        turns += messages(raw[asked[0]], asked[0], where)
    else:
        beside = [f for f in BESIDE if raw.get(f) not in (None, "") and f not in form.needs]
        texts = [field_text(raw, field, where) for field in (*asked, *beside)]
        turns.append({"role": "user", "content": "\n\n".join(texts)})
    if isinstance(raw[answer], list):
        return turns + messages(raw[answer], answer, where)
    return [*turns, {"role": "assistant", "content": field_text(raw, answer, where)}]


def _conversation(form: Form, raw: Mapping[str, Any], where: str) -> list[Turn]:
    """A list of messages, with a system turn beside it where it has none itself."""
    turns = messages(raw[form.needs[0]], form.needs[0], where)
    return turns if turns and turns[0]["role"] == "system" else system_turn(raw, where) + turns


def _label(form: Form, raw: Mapping[str, Any], where: str) -> list[Turn]:
    """One text, or several with their names, and a class."""
    *asked, answer = form.needs
    texts = [field_text(raw, field, where) for field in asked]
    if len(asked) > 1:
        texts = [f"{field}: {text}" for field, text in zip(asked, texts, strict=True)]
    label = next((raw[field] for field in LABEL_TEXTS if isinstance(raw.get(field), str)), raw[answer])
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool):
        label = str(label).lower()
    if label == -1 or not isinstance(label, (str, int, float)) or label != label:
        raise DataError(
            f"{where}: field '{answer}' is {short(label)}, expected the name or number of a class, or a number."
        )
    asked_and_told = {"user": "\n".join(texts), "assistant": str(label)}
    return system_turn(raw, where) + [{"role": role, "content": text} for role, text in asked_and_told.items()]


FORMS = (
    Form("prompt/target", ("prompt", "target"), _pair),
    Form("prompt/completion", ("prompt", "completion"), _pair),
    Form("messages", ("messages",), _conversation),
    Form("ShareGPT", ("conversations",), _conversation),
    Form("ShareGPT", ("conversation",), _conversation),
    Form("Alpaca", ("instruction", "output"), _pair),
    Form("instruction/response", ("instruction", "response"), _pair),
    Form("question/answer", ("question", "answer"), _pair),
    Form("question/response", ("question", "response"), _pair),
    Form("query/response", ("query", "response"), _pair),
    Form("prompt/response", ("prompt", "response"), _pair),
    Form("inputs/targets", ("inputs", "targets"), _pair),
    Form("input/output", ("input", "output"), _pair),
    Form("label", ("sentence1", "sentence2", "label"), _label),
    Form("label", ("premise", "hypothesis", "label"), _label),
    Form("label", ("question1", "question2", "label"), _label),
    Form("label", ("text", "label"), _label),
    Form("label", ("sentence", "label"), _label),
    Form("label", ("prompt", "label"), _label),
)


def _no_form(raw: Mapping[str, Any]) -> str:
    """What a row without form is told."""
    present = [field for field, value in raw.items() if value is not None and isinstance(field, str)]
    fields = f"the fields {', '.join(shown(f, 30) for f in present[:12])}" if present else "no field with a value"
    if {"chosen", "rejected"} <= set(present):
        name = "messages" if isinstance(raw["chosen"], list) and "prompt" not in present else "target"
        return (
            f"{fields} hold two answers to prefer between, and one is learned here. Name it: `column` {name}=chosen"
            + ("." if name == "messages" or "prompt" in present else ", beside a prompt.")
        )
    form = max(FORMS, key=lambda form: sum(_near(need, present) for need in form.needs) / len(form.needs))
    lacking = [need for need in form.needs if need not in present]
    needed = " and ".join(lacking)
    alone = " A text alone has no answer in it: divide it into prompt and target." if form.needs[0] == "text" else ""
    return (
        f"{fields} fit no form of rows. The nearest is {form.name} ({', '.join(form.needs)}), of which {needed} "
        f"{'is' if len(lacking) == 1 else 'are'} missing or null. Where a column has another name, give `column` "
        f"{lacking[0]}=NAME.{alone}"
    )


def _near(need: str, present: Sequence[str]) -> float:
    return max((difflib.SequenceMatcher(None, need, field).ratio() for field in present), default=0.0)
