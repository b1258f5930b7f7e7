"""What a server accepts. Imports no torch and no fastapi, so that the command line's help is quick."""

from __future__ import annotations

from dataclasses import dataclass

from radargate.registry import option

KEY_VARIABLE = "RADARGATE_API_KEY"


@dataclass(frozen=True)
class Limits:
    """What a server accepts; None as ``api_key`` asks for none."""

    api_key: str | None = option(
        None, f"ask requests for this key (default: ${KEY_VARIABLE}, else none)", metavar="KEY"
    )
    max_tokens: int = option(1024, "of one answer at most", flag="max-tokens-limit", metavar="TOKENS", least=1)
    slots: int = option(16, "answers that are written at a time", flag="batch-size", metavar="N", least=1)
    queue: int = option(64, "answers that may wait; more are refused with 429", metavar="ANSWERS", least=1)
    body_bytes: int = option(4_000_000, "of one request", flag="body-limit", metavar="BYTES", least=1)
    shutdown_seconds: int = option(30, "for running requests once asked to stop", metavar="SECONDS", least=1)
