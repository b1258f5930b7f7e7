"""Turns of a conversation, as chats are written down: role and content, from and value, pairs of question and answer."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

from radargate.data.prompts import Conversation
from radargate.errors import DataError, shown

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
}
SYSTEM = ("system", "system_prompt")  # what a system turn beside a conversation is called

Turn = dict[str, str]


def divided(turns: list[Turn], where: str) -> tuple[str, str]:
    """Prompt and answer of a conversation; one user turn alone is a plain prompt.

    Raises:
        DataError: there is no answer in it, or nothing before the answer.
    """
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise DataError(f"{where}: no turn is the assistant's, whose last one is the answer.")
    before, answer = turns[:last], turns[last]["content"]
    if not answer.strip():
        raise DataError(f"{where}: the assistant's last turn, which is the answer, is empty.")
    if all(turn["role"] == "system" for turn in before):
        raise DataError(f"{where}: the assistant's only turn comes first, so that there is nothing that it answers.")
    if [turn["role"] for turn in before] == ["user"]:
        return before[0]["content"], answer
    return Conversation(before, where), answer


def system_turn(raw: Mapping[str, Any], where: str) -> list[Turn]:
    """The system turn in a field of its own, if there is one."""
    given = next((field for field in SYSTEM if raw.get(field) not in (None, "")), None)
    return [] if given is None else [{"role": "system", "content": field_text(raw, given, where)}]


def history(raw: Mapping[str, Any], where: str) -> list[Turn]:
    """Earlier turns as Alpaca's pairs of question and answer."""
    pairs = raw.get("history") or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    ):
        raise DataError(f"{where}: field 'history' is {short(pairs)}, expected pairs of texts, [question, answer].")
    roles = ("user", "assistant")
    return [{"role": r, "content": text} for pair in pairs for r, text in zip(roles, pair, strict=True)]


def messages(value: Any, field: str, where: str) -> list[Turn]:
    """A list of messages, also as JSON text or as Arrow's columns (``{"role": [...], "content": [...]}``).

    Raises:
        DataError: it is no such list, or a message is no text of system, user or assistant.
    """
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)  # in a table's cell
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]  # Arrow's columns
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field '{field}' is {short(value)}, expected a list of {{role, content}}.")
    return [_turn(message, f"{where}: {field}[{i}]") for i, message in enumerate(value)]


def _turn(message: Any, place: str) -> Turn:
    if not isinstance(message, dict):
        raise DataError(f"{place} is {short(message)}, expected {{role, content}} or {{from, value}}.")
    said = message.get("role", message.get("from"))
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None or message.get("tool_calls") or message.get("function_call"):
        found = "calls tools" if role else f"has the role {short(said)}"
        raise DataError(f"{place} {found}; expected texts of system, user (human) and assistant (gpt).")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else content
    if not isinstance(content, (str, type(None))):
        raise DataError(f"{place} holds {short(content)}, expected text.")
    return {"role": role, "content": content or ""}


def number_as_text(value: Any) -> Any:
    """A number as it is written; anything else as it is."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if number and (isinstance(value, int) or math.isfinite(value)) else value


def field_text(raw: Mapping[str, Any], field: str, where: str) -> str:
    """The text of a field; raises `DataError` where there is none."""
    value = number_as_text(raw[field])
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: field '{field}' is {short(value)}, expected non-empty text.")
    return value


def short(value: Any) -> str:
    """A value for a message."""
    try:
        return shown(repr(value), 60)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
