"""Fields of a request, one by one, and the error that a wrong one gets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from radargate.errors import RadarGateError
from radargate.registry import unknown_name


class ApiError(RadarGateError):
    """A request that gets an error in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """What is sent."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


async def read_body(request: Request, limit: int) -> bytes:
    """A request's body.

    Raises:
        ApiError: 413, it has more bytes than ``limit``.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise ApiError(413, f"the body has more than {limit} bytes. Send less.", code="body_too_large")
    return bytes(body)


def read_object(body: bytes) -> dict[str, Any]:
    """A request's JSON object, without its nulls.

    Raises:
        ApiError: it is something else.
    """
    try:
        fields = json.loads(body)
        json.dumps(fields, ensure_ascii=False).encode()  # half a character, such as "\ud83d", could not be answered
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({error}).", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body is a JSON {type(fields).__name__}, expected an object.", code="invalid_json")
    return {name: value for name, value in fields.items() if value is not None}


def check_names(fields: Mapping[str, Any], known: Sequence[str], others: Sequence[str] = (), within: str = "") -> None:
    """Check that each field is known, or one of the others.

    Args:
        fields: of a request, or of an object in it.
        known: what is honoured.
        others: what is passed over.
        within: the object's place in the request.

    Raises:
        ApiError: one is neither; the nearest known ones are named.
    """
    for name in fields:
        if name not in (*known, *others):
            problem = unknown_name("parameter", name, list(known))
            raise ApiError(400, f"{within}: {problem}" if within else problem, within or name, "unknown_parameter")


def flag(fields: Mapping[str, Any], name: str) -> bool:
    """True or false, false where it is absent.

    Raises:
        ApiError: it is something else.
    """
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} is {value!r}, expected true or false.", name)
    return value


def integer(fields: Mapping[str, Any], name: str, default: int | None, low: int, high: int) -> int | None:
    """A whole number between two others, or the default.

    Raises:
        ApiError: it is something else.
    """
    value = fields.get(name, default)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise ApiError(400, f"{name} is {value!r}, expected a whole number from {low} to {high}.", name)
    return value


def number(fields: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A finite number between two others, or the default.

    Raises:
        ApiError: it is something else.
    """
    value = fields.get(name, default)
    if type(value) not in (int, float) or not low <= value <= high:  # so are NaN and infinity
        raise ApiError(400, f"{name} is {value!r}, expected a number from {low} to {high}.", name)
    return float(value)
