"""The HTTP interface: OpenAI's endpoints over the engine, with health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from radargate.server.answers import Answer
from radargate.server.bodies import ApiError, read_body
from radargate.server.clients import answer_unless_gone
from radargate.server.engine import Engine, QueueFull
from radargate.server.explore import PATH, add_page
from radargate.server.guard import Guard
from radargate.server.jobs import Chunk, Job
from radargate.server.limits import Limits
from radargate.server.loaded import LoadedBundles
from radargate.server.metrics import Metrics
from radargate.server.requests import ChatBody, CompletionBody, check_model, read_request

ENDPOINTS = ("/", PATH, "/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")


def make_app(bundles: LoadedBundles, limits: Limits, host: str) -> FastAPI:
    """The application for an address, with an engine of its own that ends with it (``app.state.engine``)."""
    metrics = Metrics()
    engine = Engine(bundles, slots=limits.slots, queue=limits.queue, count=metrics.count)
    metrics.watch(engine)
    started = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.stop, limits.shutdown_seconds)

    app = FastAPI(title="RadarGate", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine = engine

    app.add_middleware(_Middleware, metrics=metrics, guard=Guard(limits, host))
    if limits.allow_origin:  # outside, because a browser's question before a request holds no key
        origins, methods = list(limits.allow_origin), ["GET", "POST"]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["*"])
    add_page(app, bundles, engine, limits.body_bytes)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> Response:
        return await refused(request, ApiError(429 if engine.alive else 503, str(error), code="queue_full"))

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # in the middle of its request; nobody reads it

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse(ApiError(500, f"the server failed: {type(error).__name__}.").body(), 500)

    @app.exception_handler(HTTPException)
    async def no_such_page(request: Request, error: HTTPException) -> Response:
        words = f"{request.method} {request.url.path}: {error.detail}. There are /v1/models, /v1/completions, /v1/chat/completions."
        return JSONResponse(ApiError(error.status_code, words).body(), error.status_code)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok" if engine.alive else "stopping"}, 200 if engine.alive else 503)

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(metrics.text(), media_type=metrics.media_type)

    def described(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "radargate",
            "experts": list(bundles.config(name).experts),
        }

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in bundles.names]})

    @app.get("/v1/models/{name:path}")  # a Hub id has a slash
    async def model(name: str) -> Response:
        check_model(name, bundles)
        return JSONResponse(described(name))

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def answered(request: Request) -> Response:
        model = ChatBody if request.url.path.endswith("/chat/completions") else CompletionBody
        body = await read_body(request, limits.body_bytes)
        wanted = await asyncio.to_thread(read_request, body, model, bundles, limits.max_tokens)
        running = _Running(engine, Answer(wanted, bundles.tokenizer))
        if wanted.body.stream:
            return _Stream(running)
        try:
            return await answer_unless_gone(request, running.whole())
        finally:
            running.cancel()

    return app


class _Running:
    """A request in the engine, whose chunks come to an asyncio loop and into its answer."""

    def __init__(self, engine: Engine, answer: Answer) -> None:
        loop, request = asyncio.get_running_loop(), answer.request
        self.answer, self._engine = answer, engine
        self._queue: asyncio.Queue[Chunk] = asyncio.Queue()

        def send(chunk: Chunk) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._queue.put_nowait, chunk)

        self._job = Job(request.group, request.prompts, request.sampling, send, request.texts)
        engine.submit(self._job)

    async def chunks(self) -> AsyncIterator[Chunk]:
        while not self.answer.complete:
            chunk = await self._queue.get()
            if chunk.error:
                raise ApiError(500, f"the model failed: {chunk.error}")
            self.answer.add(chunk)
            yield chunk

    async def whole(self) -> dict[str, Any]:
        async for _ in self.chunks():
            pass
        return self.answer.whole()

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events."""
        try:
            for opening in self.answer.first_chunks():
                yield _event(opening)
            async for chunk in self.chunks():
                yield _event(self.answer.chunk(chunk))
            if self.answer.request.body.stream_options.include_usage:
                yield _event(self.answer.usage_chunk())
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body())

    def cancel(self) -> None:
        self._job.cancelled.set()
        self._engine.wake()


class _Stream(StreamingResponse):
    """The events of a request; when the client leaves, at any time, the slots are free."""

    def __init__(self, running: _Running) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(running.events(), media_type="text/event-stream", headers=headers)
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.cancel()


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


class _Middleware:
    """Guards against requests that may not be made, and counts all."""

    def __init__(self, app: ASGIApp, metrics: Metrics, guard: Guard) -> None:
        self.app, self.metrics, self.guard = app, metrics, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), 499

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self.guard.refusal(scope)
            answer = self.app if refusal is None else JSONResponse(refusal.body(), refusal.status)
            await answer(scope, receive, noting)
        except Exception:  # it is answered further out
            status = 500
            raise
        finally:
            endpoint = scope["path"] if scope["path"] in ENDPOINTS else "other"
            self.metrics.request(endpoint, status, time.monotonic() - begun)
