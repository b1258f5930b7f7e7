"""``radargate quickstart``: everything once, on an embedded default."""

from __future__ import annotations

import argparse

from radargate.cli import flags

HELP = "train and score five shipped experts on an embedded default, with a report (minutes on 2 cores)"
EXAMPLE = "radargate quickstart --out quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "--out", default="quickstart", metavar="DIR", help="folder for everything (default %(default)s)"
    )
    parser.add_argument("--steps", type=flags.positive_int, default=60, help="training steps of each gate (default 60)")
    parser.add_argument(
        "--limit", type=flags.positive_int, default=15, metavar="ROWS", help="scoring rows a task (default 15)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of initial values and row order (default 0)")
    parser.add_argument("--device", help="where to run, such as cpu or cuda (default: what there is)")


def run(args: argparse.Namespace) -> int:
    """Run, and say what came out."""
    from radargate.quickstart.run import Quickstart, quickstart, summary

    options = Quickstart(steps=args.steps, limit=args.limit, seed=args.seed)
    quickstart(args.out, options, device=flags.pick_device(args.device))
    print(summary(args.out, flags.program()))
    return 0
