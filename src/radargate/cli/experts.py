"""``radargate experts``: train LoRA experts, one for each task."""

from __future__ import annotations

import argparse
from typing import Any

from radargate.architectures import ARCHITECTURES
from radargate.cli import flags
from radargate.errors import OptionError
from radargate.training.options import ExpertOptions

HELP = "train LoRA experts, one for each task of the data"
EXAMPLE = "radargate experts smollm2-135m --data my_tasks/ --steps 100 --out experts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    flags.base_argument(parser)
    flags.data_flag(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the adapters, one sub-folder a task")
    flags.add_options(parser, ExpertOptions)
    flags.resume_flag(parser)
    parser.add_argument(
        "--architecture",
        default="mole",
        metavar="NAME",
        help="mole or omoe: independent adapters; hydra: adapters that share A (default mole)",
    )
    parser.add_argument(
        "--joint",
        action="store_true",
        help="with hydra: train A, heads and router together on all tasks, as HydraLoRA does",
    )
    parser.add_argument("--heads", type=flags.positive_int, default=4, help="heads of --joint (default %(default)s)")
    parser.add_argument(
        "--union",
        nargs="?",
        const="union",
        metavar="NAME",
        help="train one adapter on the rows of all tasks together (named union, or NAME)",
    )
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and print where the adapters are."""
    from radargate.training.experts import train_experts
    from radargate.training.hydra import train_hydra_experts, train_hydra_jointly

    options: ExpertOptions = flags.build(args, ExpertOptions)
    ARCHITECTURES.check(args.architecture)
    if args.architecture != "hydra" and args.joint:
        raise OptionError(
            f"--joint trains HydraLoRA's shared A; it needs --architecture hydra, not {args.architecture}."
        )
    ignored = ("--resume", args.resume), ("--dropout", args.dropout), ("--save-dtype", args.save_dtype != "float32")
    for flag, given in ignored if args.joint else ():
        if given:
            raise OptionError(f"{flag} has no effect on --joint, which trains everything at once; leave it out.")
    if args.architecture == "hydra" and args.union:
        raise OptionError("--union is one plain LoRA; leave out --architecture hydra.")
    common: dict[str, Any] = {
        "tasks": args.task,
        "dtype": args.dtype,
        "device": flags.pick_device(args.device),
    }
    if args.joint:
        folders = train_hydra_jointly(args.base, args.data, args.out, options, heads=args.heads, **common)
    elif args.architecture == "hydra":
        folders = train_hydra_experts(args.base, args.data, args.out, options, resume=args.resume, **common)
    else:
        folders = train_experts(args.base, args.data, args.out, options, union=args.union, resume=args.resume, **common)
    for task, folder in folders.items():
        print(f"{task}\t{folder}")
    return 0
