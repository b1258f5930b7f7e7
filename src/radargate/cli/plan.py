"""``radargate plan``: memory and time of training gates, before anything is loaded."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from radargate.cli import flags
from radargate.data.options import Batching
from radargate.training.options import GateTraining

if TYPE_CHECKING:
    from radargate.training.plan import Plan

HELP = "predict memory and time of training gates from shapes, before anything is loaded"
EXAMPLE = "radargate plan smollm2-135m experts/*/ --gate radar --batch-size 8 --max-length 512"
PLANNED = ("gate", "architecture", "top_k", "gate_options", "steps", *(f.name for f in dataclasses.fields(Batching)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    flags.base_argument(parser)
    flags.adapters_argument(parser, required=True)
    flags.add_options(parser, GateTraining, *PLANNED)
    parser.add_argument(
        "--runs",
        type=flags.positive_int,
        default=1,
        help="trainings one after the other, as in a grid of "
        "gates and seeds: the time is for all, memory is that of one (default 1)",
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
    from radargate.training.plan import plan_training

    options = flags.build(args, GateTraining)
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


def words(plan: Plan, options: GateTraining, runs: int = 1) -> str:
    """The plan for people; its seconds are those of ``runs`` trainings."""
    rows = [
        ("base", plan.base_bytes),
        ("experts", plan.expert_bytes),
        ("gates", plan.gate_bytes),
        ("optimizer", plan.optimizer_bytes),
        ("a step of {} rows of {} tokens".format(*options.shape), plan.step_bytes),
        ("freed, not given back", plan.kept_bytes),
        ("together", plan.peak_bytes),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value / 1e6:>10,.1f} MB" for name, value in rows]
    return "\n".join(
        [
            f"dtype: {plan.dtype} ({plan.dtype_reason}).",
            *lines,
            f"{plan.trained_parameters:,} parameters to train; roughly {plan.seconds / 60:,.1f} minutes for "
            f"{f'{runs} × ' if runs > 1 else ''}{plan.steps} steps.",
            "Python and torch take some 500 MB more. For less: a smaller --batch-size or --max-length, --dtype bfloat16.",
        ]
    )
