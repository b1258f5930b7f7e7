"""Who may ask: holders of the key, or, where there is none, requests that no foreign web page can have sent."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from radargate.server.bodies import ApiError
from radargate.server.limits import Limits

LOCAL = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")


class Guard:
    """Checks a request before anything of it is read.

    A page that a user of this machine looks at can send requests here, as the browser runs where the server listens.
    It cannot take away its origin from them, nor give them the type of JSON unasked; and where it has its own name point
    here (DNS rebinding), that name is the host that was asked.

    Args:
        limits: the key, and what is let in without one.
        host: the address that is listened on.
    """

    def __init__(self, limits: Limits, host: str) -> None:
        self.key, self.origins, self.names = limits.api_key, limits.allow_origin, limits.allowed_host
        self.anywhere = host in EVERYWHERE
        local = host in LOCAL or self.anywhere or host.startswith("127.")
        own = (socket.gethostname(), socket.getfqdn()) if self.anywhere else ()
        self.hosts = {name.lower() for name in (host, *own, *(LOCAL if local else ()))}

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why a request is refused; None for one that may pass."""
        headers = Headers(scope=scope)
        if self.key is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not scope["path"].startswith("/v1/") or secrets.compare_digest(given.encode(), self.key.encode()):
                return None
            return ApiError(
                401, "the API key is missing or wrong. Send 'Authorization: Bearer KEY'.", code="invalid_api_key"
            )
        return self._foreign(headers) or (_type(headers) if scope["method"] == "POST" else None)

    def _foreign(self, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._own(_name(host)):
            remedy = "Use the server's own address, or start it with `allowed_host` or an `api_key`."
            return ApiError(403, f"the host {host!r} is not one that is listened on. {remedy}", code="host_not_allowed")
        if origin is None or "*" in self.origins or origin in self.origins or urlsplit(origin).netloc == host:
            return None
        remedy = "Start the server with `allow_origin` to let it in, or with an `api_key`."
        return ApiError(403, f"the request comes from a page of {origin!r}. {remedy}", code="origin_not_allowed")

    def _own(self, name: str) -> bool:
        return name in self.hosts or _listed(name, self.names) or (self.anywhere and _is_address(name))


def _type(headers: Headers) -> ApiError | None:
    """Forms and plain text are what a browser sends without asking the server first."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return None
    words = f"the body has the type {kind!r}, expected application/json. Send it with that Content-Type."
    return ApiError(415, words, code="unsupported_media_type")


def _listed(name: str, patterns: Sequence[str]) -> bool:
    """Whether a host is one of those named, or within one given as ``*.NAME``."""
    return any(
        pattern == "*" or name == _name(pattern) or (pattern.startswith("*.") and name.endswith(pattern[1:].lower()))
        for pattern in patterns
    )


def _name(host: str) -> str:
    """A host without its port, in small letters; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.lower() if host.count(":") > 1 else host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
