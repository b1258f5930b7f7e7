"""``radargate export``: a bundle in a form that needs nothing of radargate."""

from __future__ import annotations

import argparse

from radargate.commands import flags

HELP = "save a bundle as one ordinary LoRA, where that is exact (static rules)"
EXAMPLE = "radargate export bundle --to lora --out one_lora"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument("--to", default="lora", choices=["lora"], help="what to save (default %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the adapter")
    parser.add_argument("--base", help="the base to put under the bundle, if not the one it names")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Load, and save."""
    from radargate.composition import load
    from radargate.export import save_as_lora

    model = load(args.base, args.bundle, dtype=args.dtype, device=flags.pick_device(args.device))
    save_as_lora(model, args.out)
    print(f'Adapter in {args.out}. Load it with PeftModel.from_pretrained(base, "{args.out}").')
    return 0
