"""``radargate compare``: every way of combining adapters, side by side."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path

from radargate.architectures import ARCHITECTURES
from radargate.cli import flags
from radargate.errors import OptionError
from radargate.gates.rules import RULES

HELP = "compare every way of combining the same adapters on the same rows, with intervals and tests"
EXAMPLE = "radargate compare smollm2-135m experts/*/ --data my_tasks/ --gates stretch,radar --rules uniform,arrow --seeds 3 --out compared"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("base", metavar="BASE", help="Hub name, folder, .gguf file, or smollm2-135m; loaded once")
    flags.adapters_argument(parser, required=True)
    flags.data_flag(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for records.jsonl and report.html")
    parser.add_argument(
        "--gates",
        default="stretch,radar",
        metavar="NAMES",
        help=f"comma-separated, or all, paper (the paper's) or control: {flags.gate_names()} (default %(default)s)",
    )
    parser.add_argument(
        "--rules",
        default="uniform",
        metavar="NAMES",
        help=f"comma-separated, or all: {', '.join(RULES.names())} (default %(default)s). "
        "NAME:option=value sets an option, for gates also lr, rotation_lr and dense_start; separate several systems by spaces then",
    )
    parser.add_argument(
        "--architectures",
        default="mole",
        metavar="NAMES",
        help=f"comma-separated, or all: {', '.join(ARCHITECTURES.names())} (default mole)",
    )
    parser.add_argument(
        "--experts",
        action="append",
        default=[],
        metavar="ARCHITECTURE=DIR",
        help="a folder of adapters of its own for an architecture, such as hydra=experts_hydra",
    )
    parser.add_argument(
        "--convert", action="store_true", help="let hydra convert adapters that do not share A; lossy, and labelled so"
    )
    parser.add_argument("--seeds", type=flags.positive_int, default=1, help="seeds of everything trained (default 1)")
    parser.add_argument("--limit", type=flags.positive_int, help="scoring rows a task (default all)")
    parser.add_argument("--max-new-tokens", type=flags.positive_int, default=32, help="of free answers (default 32)")
    flags.training_flags(
        parser, steps=120, lr=None, lr_help="rate of the weights' parameters (default 5e-3)", seed=False
    )
    flags.gate_flags(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the cells and predicted hours, and stop")
    parser.add_argument("--json", action="store_true", help="print the path of the records and of the report as JSON")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, write the report, print the table."""
    from radargate.comparison.page import compare_page, compare_table, write_csv
    from radargate.comparison.run import Comparison, compare
    from radargate.evaluation.run import Scoring
    from radargate.io.disk import alone
    from radargate.io.records import read_records, write_atomic
    from radargate.training.gates import GateTraining

    training = GateTraining(
        architecture_options={"convert": True} if args.convert else {},
        top_k=args.top_k,
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        rotation_lr=args.rotation_lr,
        dense_start=args.dense_start,
        max_length=args.max_length,
    )
    options = Comparison(
        gates=names(args.gates),
        rules=names(args.rules),
        architectures=names(args.architectures),
        seeds=args.seeds,
        training=training,
        scoring=Scoring(limit=args.limit, max_new_tokens=args.max_new_tokens),
    )
    with contextlib.nullcontext() if args.dry_run else alone(args.out):
        file = compare(
            args.base,
            flags.named_adapters(args.adapters),
            args.data,
            args.out,
            options,
            experts=_experts(args.experts),
            tasks=args.task,
            resume=args.resume,
            dry_run=args.dry_run,
            dtype=args.dtype,
            device=flags.pick_device(args.device),
        )
    if args.dry_run:
        return 0
    records = read_records(file)
    report = Path(args.out) / "report.html"
    write_atomic(report, compare_page(records))
    write_csv(records, Path(args.out) / "csv")
    if args.json:
        print(json.dumps({"records": str(file), "report": str(report)}))
    else:
        print(compare_table(records))
        print(f"\nReport: {report} (open it in a browser).")
    return 0


def names(text: str) -> tuple[str, ...]:
    """``a,b`` or, where options with commas are in it, ``a:x=1,y=2 b``."""
    parts = text.split() if ":" in text else text.split(",")
    return tuple(part.strip() for part in parts if part.strip())


def _experts(pairs: list[str]) -> dict[str, dict[str, str]]:
    found = {}
    for pair in pairs:
        architecture, equals, folder = pair.partition("=")
        if not equals:
            raise OptionError(f"--experts {pair}: expected ARCHITECTURE=DIR, such as hydra=experts_hydra.")
        ARCHITECTURES.check(architecture)
        adapters = sorted(p for p in Path(folder).glob("*") if (p / "adapter_config.json").is_file())
        if not adapters:
            raise OptionError(f"--experts {pair}: {folder} holds no folder with an adapter_config.json.")
        found[architecture] = {os.path.basename(p): str(p) for p in adapters}
    return found
