"""``radargate plan``: memory and time of training gates, before anything is loaded."""

from __future__ import annotations

import argparse
import json

from radargate.cli import flags
from radargate.registry import read_options

HELP = "predict memory and time of training gates from shapes, before anything is loaded"
EXAMPLE = "radargate plan smollm2-135m experts/*/ --gate radar --batch-size 8 --max-length 512"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("base", metavar="BASE", help="Hub name, folder, .gguf file, or smollm2-135m")
    flags.adapters_argument(parser, required=True)
    parser.add_argument("--gate", default="radar", metavar="NAME", help="gate or rule (default %(default)s)")
    parser.add_argument("--architecture", default="mole", metavar="NAME", help="architecture (default %(default)s)")
    parser.add_argument("--top-k", type=flags.positive_int, default=2, help="experts kept per token (default 2)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the gate, such as rotation_rank=4 (may be repeated)",
    )
    parser.add_argument("--steps", type=flags.positive_int, default=120, help="optimizer steps (default %(default)s)")
    parser.add_argument(
        "--runs",
        type=flags.positive_int,
        default=1,
        help="trainings one after the other, as in a grid of "
        "gates and seeds: the time is for all, memory is that of one (default 1)",
    )
    parser.add_argument("--batch-size", type=flags.positive_int, default=8, help="rows a step (default %(default)s)")
    parser.add_argument(
        "--max-length",
        type=flags.positive_int,
        default=512,
        metavar="TOKENS",
        help="tokens of the longest rows (default %(default)s)",
    )
    parser.add_argument(
        "--answer-tokens",
        type=flags.positive_int,
        default=64,
        metavar="TOKENS",
        help="tokens of the longest answer (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Plan, and print."""
    import dataclasses

    from radargate.training.gates import GateTraining
    from radargate.training.plan import plan_training, words

    options = GateTraining(
        architecture=args.architecture,
        gate=args.gate,
        top_k=args.top_k,
        gate_options=read_options(args.option),
        steps=args.steps,
        batch_size=args.batch_size,
        max_length=args.max_length,
    )
    plan = plan_training(
        args.base,
        flags.named_adapters(args.adapters),
        options,
        answer_tokens=args.answer_tokens,
        dtype=args.dtype,
        device=flags.pick_device(args.device),
    )
    plan = dataclasses.replace(plan, seconds=plan.seconds * args.runs)
    print(json.dumps(plan.as_dict(), indent=2) if args.json else words(plan, options, args.runs))
    return 0
