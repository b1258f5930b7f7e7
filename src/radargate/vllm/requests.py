"""What a request may not ask of vLLM's server: factors on experts, which `radargate serve` takes and cached keys would not survive."""

from __future__ import annotations

import json
from typing import Any

FIELD = "experts"
WORDS = (
    "experts: factors a request are not served by radargate vllm, as cached keys and values of other factors would be reused. Leave "
    "the field out, or ask radargate serve."
)


class RefuseFactors:
    """ASGI middleware that answers 400 to a request whose body has a field ``experts``."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Look at the body of a POST; hand everything else on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        parts, more = [], True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # whoever asked is gone
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(parts)
        if _names_experts(body):
            await _refuse(send)
            return
        told = False

        async def again() -> Any:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


def _names_experts(body: bytes) -> bool:
    if b'"experts"' not in body:
        return False
    try:
        asked = json.loads(body)
    except ValueError:
        return False  # vLLM says so itself
    return isinstance(asked, dict) and FIELD in asked


async def _refuse(send: Any) -> None:
    error = {"message": WORDS, "type": "BadRequestError", "param": FIELD, "code": 400}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
