"""``radargate serve``: an OpenAI-compatible server for bundles."""

from __future__ import annotations

import argparse
import os

from radargate.cli import flags
from radargate.errors import OptionError

HELP = "serve bundles of one base over an OpenAI-compatible HTTP interface"
EXAMPLE = "radargate serve bundle --port 8000 --api-key secret"
KEY_VARIABLE = "RADARGATE_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "bundles", metavar="BUNDLE", nargs="+", help="folder or Hub id of a bundle, optionally NAME=PATH"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="0 takes a free one (default %(default)s)")
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"ask requests for this key (default: ${KEY_VARIABLE}, else none)"
    )
    parser.add_argument(
        "--max-tokens-limit",
        type=flags.positive_int,
        default=1024,
        metavar="TOKENS",
        help="of one answer at most (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=flags.positive_int,
        default=16,
        help="answers that are written at a time (default %(default)s)",
    )
    parser.add_argument(
        "--queue",
        type=flags.positive_int,
        default=64,
        metavar="ANSWERS",
        help="answers that may wait; more are refused with 429 (default %(default)s)",
    )
    parser.add_argument(
        "--body-limit",
        type=flags.positive_int,
        default=4_000_000,
        metavar="BYTES",
        help="of one request (default %(default)s)",
    )
    parser.add_argument(
        "--shutdown-seconds",
        type=flags.positive_int,
        default=30,
        metavar="SECONDS",
        help="for running requests once told to stop (default %(default)s)",
    )
    parser.add_argument("--base", help="the base to put under the bundles, if not the one they name")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Load the bundles, then serve until a signal."""
    flags.check_serve_extra("serve")
    from radargate.server.app import Limits
    from radargate.server.residents import Residents
    from radargate.server.run import serve

    key = args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE) or None
    if key == "":
        raise OptionError("--api-key is empty. Give a key, or leave the flag out to ask for none.")
    residents = Residents(
        flags.named_adapters(args.bundles, "bundles"),
        base=args.base,
        dtype=args.dtype,
        device=flags.pick_device(args.device),
    )
    limits = Limits(args.max_tokens_limit, args.batch_size, args.queue, args.body_limit, args.shutdown_seconds, key)
    return serve(residents, limits, args.host, args.port)


def port(text: str) -> int:
    """A port's number, 0 to 65535."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 to 65535")
    return value
