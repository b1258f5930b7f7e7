"""What a server accepts. Imports no torch and no fastapi, so that the command line's help is quick."""

from __future__ import annotations

import re
from dataclasses import dataclass

from radargate.errors import OptionError
from radargate.registry import option

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")
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
    allow_origin: tuple[str, ...] = option(
        (),
        "let pages of this origin in, such as http://localhost:3000, or * (may be repeated)",
        metavar="URL",
        repeat=True,
    )
    allowed_host: tuple[str, ...] = option(
        (),
        "without a key: also answer requests to this host name, *.NAME or * (may be repeated)",
        metavar="NAME",
        repeat=True,
    )
    shutdown_seconds: int = option(30, "for running requests once asked to stop", metavar="SECONDS", least=1)

    def __post_init__(self) -> None:
        for name in ("allow_origin", "allowed_host"):  # a flag that was not given is None
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        for origin in self.allow_origin:
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
                raise OptionError(
                    f"`allow_origin` {origin}: expected a scheme and a host, such as http://localhost:3000, or *."
                )
