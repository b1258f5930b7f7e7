"""The JSON body of a request as a pydantic model, and the error that a wrong request gets."""

from __future__ import annotations

import json
import reprlib
from typing import Any, ClassVar, TypeVar, get_args

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from radargate.errors import RadarGateError
from radargate.registry import unknown_name
from radargate.server.neutral import Values

Model = TypeVar("Model", bound="Body")


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


class Body(BaseModel):
    """An object in a request. The description of each field continues the sentence "NAME is VALUE, expected …"."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    neutral: ClassVar[Values] = {}  # see `radargate.server.neutral`
    within: ClassVar[str | None] = None  # the parameter of a request that this is a part of

    @classmethod
    def ignores(cls, name: str, value: Any) -> bool:
        """Whether a field is null or neutral, and passed over.

        Raises:
            ApiError: 400, it asks for what this server does not offer.
        """
        if value is None or name in cls.model_fields or name not in cls.neutral:
            return value is None
        harmless = cls.neutral[name]
        if harmless is not None and value not in harmless:
            problem = f"{name} is not supported by this server. Leave it out."
            raise ApiError(400, problem, cls.within or name, "unsupported_parameter")
        return True

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if not cls.ignores(name, value)}


async def read_body(request: Request, limit: int) -> bytes:
    """A request's body.

    Raises:
        ApiError: 413, it has more bytes than ``limit``; 415, it is packed.
    """
    packed = request.headers.get("content-encoding", "identity")
    if packed != "identity":
        raise ApiError(415, f"the body has the encoding {packed!r}, which is not read. Send it as it is.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise ApiError(413, f"the body has more than {limit} bytes. Send less.", code="body_too_large")
    return bytes(body)


def parse(model: type[Model], body: bytes, context: Any) -> Model:
    """A request's JSON as a model; its validators are given the context.

    Raises:
        ApiError: it does not fit; parameter, value and what was expected are named.
    """
    try:
        fields = json.loads(body)
        json.dumps(fields, ensure_ascii=False).encode()  # half a character, such as "\ud83d", could not be answered
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({error}).", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body is a JSON {type(fields).__name__}, expected an object.", code="invalid_json")
    try:
        return model.model_validate(fields, context=context)
    except ValidationError as error:
        raise _refusal(error, model) from error


def _refusal(error: ValidationError, model: type[Body]) -> ApiError:
    """The first fault that pydantic found, in OpenAI's form."""
    fault = error.errors(include_url=False)[0]
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, ApiError):
        return cause
    unknown = fault["type"] == "extra_forbidden"
    within: type[Body] | None = model
    place = expected = ""
    for part in fault["loc"][: -1 if unknown else None]:
        if isinstance(part, int) and within:  # else pydantic counts within a field
            place += f"[{part}]"
        elif within and part in within.model_fields:
            field = within.model_fields[str(part)]
            place = f"{place}.{part}" if place else str(part)
            expected, within = field.description or "", _model_in(field.annotation)
    name = str(fault["loc"][-1 if unknown else 0])
    if unknown and within:
        problem = unknown_name("parameter", name, list(within.model_fields))
        return ApiError(400, f"{place}: {problem}" if place else problem, place or name, "unknown_parameter")
    empty = fault["type"] == "missing" or fault["input"] in ("", [], {})
    found = "missing or empty" if empty else reprlib.repr(fault["input"])
    return ApiError(400, f"{place} is {found}, expected {expected}.", name)


def _model_in(annotation: Any) -> type[Body] | None:
    """The model in a type such as ``list[Message] | None``."""
    inner = get_args(annotation)
    if inner:
        return next(filter(None, map(_model_in, inner)), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Body) else None
