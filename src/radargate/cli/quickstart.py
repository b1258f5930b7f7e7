"""``radargate quickstart``: everything once, on an embedded default."""

from __future__ import annotations

import argparse
from pathlib import Path

from radargate.cli import flags
from radargate.io.records import read_records
from radargate.quickstart.options import Quickstart

HELP = "train and score five shipped experts on an embedded default, with a report (minutes on 2 cores)"
EXAMPLE = "radargate quickstart --out quickstart"
SAID = {
    "base": "base model alone",
    "uniform": "all experts mixed evenly",
    "radar": "trained radar gate",
    "select": "the one expert that fits the question (select)",
    "router": "trained gate with a router",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "--out", default="quickstart", metavar="DIR", help="folder for everything (default %(default)s)"
    )
    flags.add_options(parser, Quickstart)
    parser.add_argument("--device", help="where to run, such as cpu or cuda (default: what there is)")


def run(args: argparse.Namespace) -> int:
    """Run, and say what came out."""
    from radargate.quickstart.run import quickstart

    quickstart(args.out, flags.build(args, Quickstart), device=flags.pick_device(args.device))
    print(summary(args.out, flags.program()))
    return 0


def summary(out: str | Path, program: str = "radargate") -> str:
    """The last lines of the command: the result in plain words, and what to do next, typed as ``program``."""
    means = {r["system"]: r["metrics"] for r in read_records(Path(out) / "records.jsonl") if r.get("task") == "mean"}
    said = [f"  {means[name]['acc']['value']:.2f}  {words}" for name, words in SAID.items()]
    return "\n".join(
        (
            "Accuracy, mean over ten tasks:",
            *said,
            f"Report: {Path(out) / 'report.html'} (open it in a browser).",
            "",
            "Ask a composed model something:",
            f'  {program} generate {Path(out) / "router"} --prompt "Translate into German: March 3"',
            "With adapters of your own:",
            f"  {program} doctor BASE my_adapter_1 my_adapter_2",
            f"  {program} choose BASE my_adapter_1 my_adapter_2 --data my_rows.jsonl --out my_bundle",
        )
    )
