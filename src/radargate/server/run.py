"""Running the server until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator

import uvicorn

from radargate.server.app import make_app
from radargate.server.limits import Limits
from radargate.server.loaded import LoadedBundles

logger = logging.getLogger(__name__)


def make_server(bundles: LoadedBundles, limits: Limits, host: str, port: int) -> uvicorn.Server:
    """A server that is not running yet; its ``should_exit`` stops it after the requests that run."""
    config = uvicorn.Config(
        make_app(bundles, limits, host),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=limits.shutdown_seconds,
        lifespan="on",
    )
    return uvicorn.Server(config)


def serve(bundles: LoadedBundles, limits: Limits, host: str, port: int) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code, 0 where it served at all.

    Args:
        bundles: the bundles.
        limits: what is accepted.
        host: address to listen on.
        port: 0 takes a free one.
    """
    server = make_server(bundles, limits, host, port)
    open_to_all = host not in ("127.0.0.1", "localhost", "::1") and limits.api_key is None
    listening = server.config.bind_socket()  # fails on a port in use before an address is logged
    port = listening.getsockname()[1]
    url = address(host, port)
    logger.info(f"{', '.join(bundles.names)} at {url}/v1 (Ctrl-C stops after the requests that run)")
    logger.info(f"ask and see the routing: {url}/")
    logger.info("for a GPU under many clients, radargate vllm serves a bundle with vLLM.")
    if open_to_all:
        logger.info(f"note: everybody who reaches {host} may use it; give an `api_key` to ask for a key.")
    with _signals_stop(server):
        server.run([listening])
    if server.started:
        logger.info("stopped.")
    return 0 if server.started else 1


def address(host: str, port: int) -> str:
    """The URL of a server; an IPv6 address goes into brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _signals_stop(server: uvicorn.Server) -> Iterator[None]:
    """A signal stops the server and is then done with: uvicorn would raise it once more, and the exit code would tell of a crash."""

    def stop(number: int, frame: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
