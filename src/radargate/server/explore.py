"""The live page at ``/``, and the traces it asks for: what the gates did with the tokens of an answer."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import Field

from radargate.errors import RadarGateError
from radargate.explorer.page import live_page, payload
from radargate.server.bodies import ApiError, parse, read_body
from radargate.server.clients import answer_unless_gone
from radargate.server.engine import ENDED, Engine
from radargate.server.jobs import Group
from radargate.server.loaded import LoadedBundles
from radargate.server.requests import BundleBody, Flag, Ids, SomeIds, check_ids

PATH = "/v1/traces"
MAX_TOKENS = 2048  # of one trace: everybody who decodes waits for it


class TraceBody(BundleBody):
    """A request for a trace of a prompt and, often, an answer to it; ``effect`` reads the tokens once without each expert."""

    prompt_token_ids: SomeIds
    token_ids: Ids = Field([])
    effect: Flag = True


def add_page(app: FastAPI, bundles: LoadedBundles, engine: Engine, body_bytes: int) -> None:
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
        fields, group = await asyncio.to_thread(read_trace, body, bundles)
        made = engine.between(lambda: _trace(fields, group, bundles))
        try:
            return await answer_unless_gone(request, asyncio.wrap_future(made))
        except RadarGateError as error:  # the request was checked: it is the server's fault, such as a full disk
            raise ApiError(500, f"the trace failed: {error}") from error
        except asyncio.CancelledError as error:
            if not made.cancelled():
                raise
            raise ApiError(503, ENDED) from error


def read_trace(body: bytes, bundles: LoadedBundles) -> tuple[TraceBody, Group]:
    """Check the JSON of a request for a trace; also its bundle and mask.

    Raises:
        ApiError: 400, or 404 for an unknown model.
    """
    fields = parse(TraceBody, body, bundles)
    count = sum(len(check_ids(getattr(fields, name), name, bundles)) for name in ("prompt_token_ids", "token_ids"))
    most = min(MAX_TOKENS, bundles.context or MAX_TOKENS)
    if count > most:
        problem = f"the text has {count} tokens, a trace at most {most}. Ask for a shorter one."
        raise ApiError(400, problem, "token_ids", "context_length_exceeded")
    return fields, fields.group(bundles)


def _trace(fields: TraceBody, group: Group, bundles: LoadedBundles) -> dict[str, Any]:
    """The trace as the page reads it."""
    ids, options = fields.prompt_token_ids, {"answer": fields.token_ids, "leave_one_out": fields.effect}
    return {"name": group.bundle, **payload(bundles.trace(group.bundle, group.mask, ids, **options))}
