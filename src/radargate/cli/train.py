"""``radargate train``: train the gates of a composition."""

from __future__ import annotations

import argparse
import json

from radargate.architectures import ARCHITECTURES
from radargate.cli import flags
from radargate.errors import OptionError
from radargate.gates.rules import RULES
from radargate.registry import read_options

HELP = "compose adapters and train their gates into a bundle"
EXAMPLE = "radargate train smollm2-135m math=experts/math law=experts/law --data my_tasks/ --gate radar --out bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("base", metavar="BASE", help="Hub name, folder, .gguf file, or smollm2-135m")
    flags.adapters_argument(parser, required=True)
    flags.data_flag(parser)
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument(
        "--gate",
        default="radar",
        metavar="NAME",
        help=f"gates: {flags.gate_names()}; rules: {', '.join(RULES.names())} (default %(default)s)",
    )
    parser.add_argument(
        "--architecture",
        default="mole",
        metavar="NAME",
        help=f"one of {', '.join(ARCHITECTURES.names())} (default %(default)s)",
    )
    parser.add_argument(
        "--preset",
        choices=["paper"],
        help="the gate as the paper prints it: unscaled relation, no dense start, one rate of 1e-4",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the gate, such as rotation_rank=4 (may be repeated)",
    )
    parser.add_argument(
        "--architecture-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the architecture, such as convert=true (may be repeated)",
    )
    flags.training_flags(parser, steps=120, lr=None, lr_help="rate of the weights' parameters (default 5e-3)")
    flags.gate_flags(parser)
    parser.add_argument(
        "--save-every", type=flags.positive_int, default=20, help="steps between checkpoints (default 20)"
    )
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
    from radargate.training.gates import GateTraining, train_gates

    options = GateTraining(
        architecture=args.architecture,
        architecture_options=read_options(args.architecture_option, "--architecture-option", "convert=true"),
        gate=args.gate,
        top_k=args.top_k,
        preset=args.preset,
        gate_options=read_options(args.option),
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        rotation_lr=args.rotation_lr,
        dense_start=args.dense_start,
        seed=args.seed,
        max_length=args.max_length,
        save_every=args.save_every,
    )
    if args.shard and process_count() == 1:
        raise OptionError(
            "--shard shares the base out among several processes, and there is one. Start it with torchrun."
        )
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
