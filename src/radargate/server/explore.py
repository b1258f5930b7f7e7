"""The live page at ``/``, and the traces it asks for: what the gates did with the tokens of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response

from radargate.errors import RadarGateError
from radargate.explorer.page import live_page, payload
from radargate.explorer.trace import trace
from radargate.server.clients import answer_unless_gone
from radargate.server.engine import ENDED, Engine
from radargate.server.fields import ApiError, check_names, flag, read_body, read_object
from radargate.server.jobs import Group
from radargate.server.requests import read_group, token_ids
from radargate.server.residents import Residents, masked

PATH = "/v1/traces"
MAX_TOKENS = 2048  # of one trace: everybody who decodes waits for it
_FIELDS = ("model", "experts", "prompt_token_ids", "token_ids", "effect")


@dataclass(frozen=True)
class AskedTrace:
    """A trace that can be made.

    Attributes:
        group: bundle and mask.
        prompt: token ids.
        answer: token ids, often of an answer to it; may be empty.
        effect: also read the tokens once without each expert.
    """

    group: Group
    prompt: list[int]
    answer: list[int]
    effect: bool


def add_page(app: FastAPI, residents: Residents, engine: Engine, body_bytes: int) -> None:
    """Add the page and its traces to an application."""
    pages: list[str] = []

    @app.get("/")
    async def page() -> Response:
        if not pages:
            try:
                pages.append(await asyncio.to_thread(live_page))
            except RadarGateError as error:
                raise ApiError(501, str(error)) from error
        return HTMLResponse(pages[0])

    @app.post(PATH)
    async def traces(request: Request) -> Response:
        body = await read_body(request, body_bytes)
        asked = await asyncio.to_thread(read_asked, body, residents)
        made = engine.between(lambda: make_trace(asked, residents))
        try:
            return await answer_unless_gone(request, asyncio.wrap_future(made))
        except RadarGateError as error:  # the request was checked: it is the server's fault, such as a full disk
            raise ApiError(500, f"the trace failed: {error}") from error
        except asyncio.CancelledError as error:
            if not made.cancelled():
                raise
            raise ApiError(503, ENDED) from error


def read_asked(body: bytes, residents: Residents) -> AskedTrace:
    """Check the JSON of a request for a trace.

    Raises:
        ApiError: 400, or 404 for an unknown model.
    """
    fields = read_object(body)
    check_names(fields, _FIELDS)
    group = read_group(fields, residents)
    prompt, answer = (_ids(fields, name, residents) for name in ("prompt_token_ids", "token_ids"))
    if not prompt:
        raise ApiError(400, "prompt_token_ids is missing or empty, expected token ids.", "prompt_token_ids")
    most = min(MAX_TOKENS, residents.context or MAX_TOKENS)
    if len(prompt) + len(answer) > most:
        raise ApiError(
            400,
            f"the text has {len(prompt) + len(answer)} tokens, a trace at most {most}. Ask for a shorter one.",
            "token_ids",
            "context_length_exceeded",
        )
    return AskedTrace(group, prompt, answer, flag({"effect": True, **fields}, "effect"))


def make_trace(asked: AskedTrace, residents: Residents) -> dict[str, Any]:
    """The trace as the page reads it; called by the thread that owns the model."""
    name = asked.group.bundle
    model = residents.activate(name)
    with masked(asked.group.mask):
        traced = trace(
            model,
            asked.prompt,
            answer=asked.answer,
            tokenizer=residents.tokenizer,
            leave_one_out=asked.effect,
            adapter_name=residents.adapter(name),
        )
    return {"name": name, **payload(traced)}


def _ids(fields: Mapping[str, Any], name: str, residents: Residents) -> list[int]:
    given = fields.get(name, [])
    return token_ids(given, name, residents) if given != [] else []
