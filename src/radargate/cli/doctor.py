"""``radargate doctor``: check a base and this machine, and adapters against the base."""

from __future__ import annotations

import argparse
import json

from radargate.cli import flags

HELP = "check adapters against a base model, and prove that each one acts; without adapters, what runs here"
EXAMPLE = "radargate doctor smollm2-135m math=experts/math law=experts/law"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("base", metavar="BASE", help="Hub name, folder, .gguf file, or smollm2-135m")
    flags.adapters_argument(parser, required=False)
    parser.add_argument(
        "--no-probe", action="store_true", help="check files and shapes only, without the base's weights"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Examine, print, and exit 1 on any fault."""
    from radargate import ops
    from radargate.errors import printable
    from radargate.experts.doctor import examine, table

    device = flags.pick_device(args.device)
    results = examine(
        args.base,
        flags.named_adapters(args.adapters),
        dtype=args.dtype,
        device=device,
        probe=not args.no_probe,
    )
    backend, reason = ops.choose_backend(device=device)
    if args.json:
        print(json.dumps({"adapters": [r.as_dict() for r in results], "backend": backend, "reason": reason}, indent=2))
    else:
        if results:
            print(printable(table(results)))
        print(f"backend: {backend} ({reason}).")
    return 0 if all(r.ok for r in results) else 1
