"""``radargate compare``: every way of combining adapters, side by side."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from pathlib import Path

from radargate.architectures import ARCHITECTURES
from radargate.cli import flags
from radargate.comparison.options import Comparison
from radargate.errors import OptionError
from radargate.evaluation.options import Scoring
from radargate.training.options import DEFAULTS, GateTraining, Training

HELP = "compare every way of combining the same adapters on the same rows, with intervals and tests"
EXAMPLE = "radargate compare smollm2-135m experts/*/ --data my_tasks/ --gates stretch,radar --rules uniform,arrow --seeds 3 --out compared"
# of a gate's training; the rest is each cell's own
COMMON = {"top_k", *DEFAULTS[None], *(f.name for f in dataclasses.fields(Training))} - {"seed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    flags.base_argument(parser)
    flags.adapters_argument(parser, required=True)
    flags.data_flag(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for records.jsonl and report.html")
    flags.add_options(parser, Comparison, gates=("stretch", "radar"), rules=("uniform", "select"))
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
    flags.add_options(parser, Scoring, "limit", "max_new_tokens")
    flags.add_options(parser, GateTraining, *COMMON)
    flags.resume_flag(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the cells and predicted hours, and stop")
    parser.add_argument("--json", action="store_true", help="print the path of the records and of the report as JSON")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, write the report, print the table."""
    from radargate.comparison.page import compare_page, compare_table, write_csv
    from radargate.comparison.run import compare
    from radargate.io.disk import alone
    from radargate.io.records import read_records, write_atomic

    converting = {"convert": True} if args.convert else {}
    options = flags.build(
        args,
        Comparison,
        training=flags.build(args, GateTraining, architecture_options=converting),
        scoring=flags.build(args, Scoring),
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
