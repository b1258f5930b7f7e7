"""``radargate verify``: is every byte of a bundle, its experts and its base as it was?"""

from __future__ import annotations

import argparse
import json

from radargate.cli import flags

HELP = "find every changed byte in a bundle's config, experts, gates and base"
EXAMPLE = "radargate verify bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder or Hub id")
    parser.add_argument("--base", help="where the base is, if not where the bundle says")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where an expert of a bundle with gates only is (may be repeated)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def run(args: argparse.Namespace) -> int:
    """Compare, print, and exit 1 on any change."""
    from radargate.composition.verify import table, verify
    from radargate.errors import printable

    findings = verify(args.bundle, base=args.base, adapters=flags.named_adapters(args.adapter))
    if args.json:
        print(json.dumps({"findings": [f.as_dict() for f in findings]}, indent=2))
    else:
        print(flags.in_flags(printable(table(findings)), args.flags))
    return 0 if all(f.ok for f in findings) else 1
