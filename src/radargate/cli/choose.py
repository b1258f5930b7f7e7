"""``radargate choose``: the best model from the adapters that there are."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from radargate.cli import flags
from radargate.comparison.choosing.options import Choosing

HELP = "find the best model that adapters give, within minutes, and save it as a bundle"
EXAMPLE = "radargate choose smollm2-135m math=experts/math law=experts/law --data my_rows.jsonl --out bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    flags.base_argument(parser)
    flags.adapters_argument(parser, required=True)
    flags.data_flag(parser, required=False)
    flags.examples_flags(parser)
    parser.add_argument(
        "--out", required=True, metavar="BUNDLE", help="folder of the bundle, records.jsonl and report.html"
    )
    flags.add_options(parser, Choosing)
    flags.resume_flag(parser)
    parser.add_argument("--json", action="store_true", help="print the choice's record as JSON")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Choose, and say what was taken."""
    from radargate.comparison.choosing.page import choice_table
    from radargate.comparison.choosing.run import PAGE, choose

    record = choose(
        args.base,
        flags.named_adapters(args.adapters),
        args.data,
        out=args.out,
        examples=flags.read_examples(args),
        tasks=args.task,
        resume=args.resume,
        dtype=args.dtype,
        device=flags.pick_device(args.device),
        **flags.values(args, Choosing),
    )
    out, measured = Path(args.out), record["metrics"]["measured"]
    if args.json:
        print(json.dumps(record))
        return 0
    if measured:
        print(choice_table(out, record["metrics"]["taken"]))
        print(f"\nReport: {out / PAGE} (open it in a browser).")
    else:
        print(
            "Nothing was measured: each text goes to the adapter whose example prompts it is most like. With rows in --data (a "
            "prompt and an answer each; 50 in all are enough to begin, 500 tell more) radargate choose compares it with everything else."
        )
    if record["metrics"]["taken"] != "base":
        print(f'Bundle in {out}. Try it:\n  {flags.program()} generate {out} --prompt "…"')
    return 0
