"""``radargate vllm``: a bundle in vLLM's server."""

from __future__ import annotations

import argparse
from typing import Any

from radargate.cli import flags

HELP = "serve a bundle with vLLM: many clients, paged attention, prefix cache, GPUs"
EXAMPLE = "radargate vllm bundle --port 8000 --max-model-len 4096"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command; its own stand before the bundle, vLLM's behind."""
    parser.add_argument("--base", help="the base to put under the bundle, if not the one it names")
    parser.add_argument(
        "--allow-other-base",
        action="store_true",
        help="take a base whose files are not those that the gates were made for, such as a quantised one",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where an expert of a bundle with gates only is (may be repeated)",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder or Hub id of a bundle")
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="…", help="flags of vllm serve, handed on as they are"
    )


def run(args: argparse.Namespace) -> int:
    """Check bundle, base and flags, then become vLLM's server."""
    from radargate.vllm.refusals import check_installed

    check_installed()
    from radargate.vllm.arguments import serve_words
    from radargate.vllm.bundles import open_bundle
    from radargate.vllm.server import serve

    options: dict[str, Any] = {"bundle": args.bundle}
    if args.allow_other_base:
        options["allow_other_base"] = True
    if args.adapter:
        options["adapters"] = flags.named_adapters(args.adapter)
    bundle = open_bundle(options, args.base)
    words = serve_words(bundle, options, args.words, flags.pick_device(None))
    return serve(words, bundle.config)
