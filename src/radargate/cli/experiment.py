"""``radargate experiment``: the paper's experiments as grids that can stop anywhere and go on."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

from radargate.cli import flags
from radargate.errors import OptionError
from radargate.evaluation.options import Scoring
from radargate.paper.catalog import EXPERIMENTS
from radargate.paper.design import PRESETS, Design
from radargate.paper.skills.design import NAMES as SKILLS
from radargate.paper.skills.design import SkillsDesign
from radargate.training.options import GateTraining

HELP = "run one of the paper's experiments: cells and hours first, then records, table, figure and words"
EXAMPLE = "radargate experiment ablation --preset cpu --data my_sources/ --out ablation --smoke"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join([*EXPERIMENTS.names(), *SKILLS])}")
    parser.add_argument(
        "--preset",
        default="cpu",
        metavar="NAME",
        help=f"how large: one of {', '.join(PRESETS)} (default cpu: two to ten hours on two cores; --dry-run says how many)",
    )
    parser.add_argument(
        "--data",
        default="builtin:all",
        metavar="SOURCE",
        help="a folder of sources, each a folder of TASK.SPLIT.jsonl.gz files (flan_cot, natural_instructions, "
        "glue …), or one source for all (default builtin:all, ten tasks made from a seed)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder for records.jsonl, report.md and experts (default runs/NAME)"
    )
    parser.add_argument("--smoke", action="store_true", help="two tasks, few steps and rows, one seed: minutes")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out; finished cells stay")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and predicted hours, and stop")
    parser.add_argument(
        "--experts",
        metavar="DIR",
        help="folder of adapter folders named like the tasks (default: train them, into --out)",
    )
    parser.add_argument(
        "--reuse",
        metavar="DIR",
        action="append",
        help="--out of another experiment: cells that are also this one's are not run again (may be repeated)",
    )
    flags.add_options(parser, Design, bases=None, seeds=None, top_k=None, gates=None, union_equal_time=None)
    flags.add_options(parser, Scoring, "limit")
    flags.add_options(parser, GateTraining, "steps", steps=None)
    flags.add_options(parser, SkillsDesign, pairs=None, rows=None, expert_seeds=None)
    parser.add_argument(
        "--slots",
        type=flags.positive_int,
        metavar="N",
        help="run N cells side by side, in processes of their own (with --ray: on N workers)",
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="run cells on a Ray cluster; local starts one here")
    parser.add_argument("--json", action="store_true", help="print the paths of records and report as JSON")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run, write the report, print its summary."""
    from radargate.io.disk import alone
    from radargate.io.records import read_records
    from radargate.paper.page import write_report
    from radargate.paper.run_experiment import run_experiment

    if args.name in SKILLS:
        return _run_skills(args)
    out = args.out or f"runs/{args.name}"
    changes = {
        key: value for kind in (Design, Scoring, GateTraining) for key, value in flags.values(args, kind).items()
    }
    with contextlib.nullcontext() if args.dry_run else alone(out):
        file = run_experiment(
            args.name,
            args.preset,
            args.data,
            out,
            smoke=args.smoke,
            resume=args.resume,
            dry_run=args.dry_run,
            experts=args.experts,
            reuse=args.reuse or (),
            changes=changes,
            slots=args.slots,
            ray=args.ray,
            dtype=args.dtype,
            device=flags.pick_device(args.device),
        )
    if args.dry_run:
        return 0
    return _told(args, file, *write_report(read_records(file), out))


def _run_skills(args: argparse.Namespace) -> int:
    """The same on composed skills, whose rows are made here."""
    from radargate.io.disk import alone
    from radargate.io.records import read_records
    from radargate.paper.skills.page import write_report
    from radargate.paper.skills.run import run_skills

    if args.reuse:
        raise OptionError(f"`reuse` does not go with {args.name}: its cells are no other experiment's.")
    out = args.out or f"runs/{args.name}"
    kinds = (Design, Scoring, GateTraining, SkillsDesign)
    changes = {key: value for kind in kinds for key, value in flags.values(args, kind).items() if value}
    with contextlib.nullcontext() if args.dry_run else alone(out):
        file = run_skills(
            args.name,
            args.preset,
            out,
            smoke=args.smoke,
            resume=args.resume,
            dry_run=args.dry_run,
            experts=args.experts,
            changes=changes,
            slots=args.slots,
            ray=args.ray,
            dtype=args.dtype,
            device=flags.pick_device(args.device),
        )
    if args.dry_run:
        return 0
    return _told(args, file, *write_report(read_records(file), out))


def _told(args: argparse.Namespace, file: Path, report: Path, summary: str) -> int:
    if args.json:
        print(json.dumps({"records": str(file), "report": str(report)}))
    else:
        print(summary)
        print(f"\nReport: {report}")
    return 0
