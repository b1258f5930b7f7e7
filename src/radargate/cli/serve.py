"""``radargate serve``: an OpenAI-compatible server for bundles."""

from __future__ import annotations

import argparse
import os

from radargate.cli import flags
from radargate.errors import OptionError
from radargate.server.limits import KEY_VARIABLE, Limits

HELP = "serve bundles of one base over an OpenAI-compatible HTTP interface"
EXAMPLE = (
    "radargate serve bundle --port 8000 --api-key secret\n\n"
    "It is made for a few clients and one machine. Change to radargate vllm where a GPU should serve many at once, or answers share\n"
    "long prompts: it serves one bundle a server, without factors a request and without the page that shows the routing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "bundles", metavar="BUNDLE", nargs="+", help="folder or Hub id of a bundle, optionally NAME=PATH"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="0 takes a free one (default %(default)s)")
    flags.add_options(parser, Limits)
    parser.add_argument("--base", help="the base to put under the bundles, if not the one they name")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Load the bundles, then serve until a signal."""
    flags.check_serve_extra("serve")
    from radargate.server.loaded import LoadedBundles
    from radargate.server.run import serve

    key = args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE) or None
    if key == "":
        raise OptionError("`api_key` is empty. Give a key, or leave it out to ask for none.")
    limits, device = flags.build(args, Limits, api_key=key), flags.pick_device(args.device)
    named = flags.named_adapters(args.bundles, "bundles")
    bundles = LoadedBundles(named, base=args.base, dtype=args.dtype, device=device)
    return serve(bundles, limits, args.host, args.port)


def port(text: str) -> int:
    """A port's number, 0 to 65535."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 to 65535")
    return value
