"""``radargate train``: train the gates of a composition."""

from __future__ import annotations

import argparse
import dataclasses
import json

from radargate.cli import flags
from radargate.errors import OptionError
from radargate.training.options import GateTraining

HELP = "compose adapters and train their gates into a bundle"
EXAMPLE = "radargate train smollm2-135m math=experts/math law=experts/law --data my_tasks/ --gate radar --out bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    flags.base_argument(parser)
    flags.adapters_argument(parser, required=True)
    flags.data_flag(parser)
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="folder of the bundle")
    flags.add_options(parser, GateTraining)
    flags.examples_flags(parser)
    flags.resume_flag(parser)
    parser.add_argument("--allow-inactive", action="store_true", help="accept an adapter that changes nothing")
    parser.add_argument(
        "--gate-only", action="store_true", help="save gates without experts; the bundle names their places"
    )
    parser.add_argument(
        "--shard", action="store_true", help="under torchrun: share base and experts out among the processes (FSDP2)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also log to TensorBoard, in BUNDLE/checkpoints")
    parser.add_argument("--json", action="store_true", help="print the run's record as JSON")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and print the record."""
    from radargate.io.processes import is_main_process, process_count
    from radargate.training.gates import train_gates

    if args.shard and process_count() == 1:
        raise OptionError(
            "--shard shares the base out among several processes, and there is one. Start it with torchrun."
        )
    options, examples = flags.build(args, GateTraining), flags.read_examples(args)
    if examples is not None:
        options = dataclasses.replace(options, gate_options={**options.gate_options, "examples": examples})
    record = train_gates(
        args.base,
        flags.named_adapters(args.adapters),
        args.data,
        args.out,
        options,
        tasks=args.task,
        resume=args.resume,
        allow_inactive=args.allow_inactive,
        gate_only=args.gate_only,
        dtype=args.dtype,
        device=flags.pick_device(args.device),
        tensorboard=args.tensorboard,
        shard=args.shard,
    )
    if not is_main_process():
        return 0
    if args.json:
        print(json.dumps(record))
    else:
        print(f'Bundle in {args.out}. Try it:\n  {flags.program()} generate {args.out} --prompt "…"')
    return 0
