"""What a server counts, in Prometheus' text form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from radargate.server.engine import Engine

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one server."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("radargate_requests", "Requests.", ["endpoint", "status"], registry=self._registry)
        self._seconds = Histogram(
            "radargate_request_seconds",
            "Seconds until an answer is sent, or a stream has ended.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._counters = {
            name: Counter(f"radargate_{name}", text, registry=self._registry)
            for name, text in (
                ("prompt_tokens", "Tokens read."),
                ("generated_tokens", "Tokens written."),
                ("cancelled", "Answers whose client left before their end."),
            )
        }

    def watch(self, engine: Engine) -> None:
        """Show an engine's queue."""
        for name, text, value in (
            ("queue_length", "Answers that wait.", lambda: engine.waiting),
            ("running", "Answers that are being written.", lambda: engine.running),
        ):
            Gauge(f"radargate_{name}", text, registry=self._registry).set_function(value)

    def count(self, name: str, number: int) -> None:
        """Add to ``prompt_tokens``, ``generated_tokens`` or ``cancelled``."""
        self._counters[name].inc(number)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Note a request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)
