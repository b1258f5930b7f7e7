"""``radargate eval``: score a bundle, a base, or adapters alone."""

from __future__ import annotations

import argparse
import json

from radargate.cli import flags
from radargate.errors import OptionError
from radargate.evaluation.options import Scoring

HELP = "score a bundle, a base model, or each of several adapters alone"
EXAMPLE = "radargate eval bundle --data my_tasks/ --limit 200 --out scores.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("target", metavar="BUNDLE|BASE", help="a bundle's folder, or a base model")
    flags.adapters_argument(parser, required=False)
    flags.data_flag(parser, required=False)
    parser.add_argument("--tasks", metavar="NAMES", help="comma-separated lm-eval tasks, instead of or beside --data")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="a set of benchmarks: paper (GLUE, MMLU, WMT14, GSM8K, MATH, "
        "GPQA) through lm-eval, or with --data DIR from the folders glue, mmlu, translation, math, reasoning",
    )
    parser.add_argument(
        "--num-fewshot",
        type=int,
        metavar="N",
        help="worked examples in lm-eval's prompts (default: each task's own; --preset paper: 0)",
    )
    flags.add_options(parser, Scoring, max_new_tokens=None)
    parser.add_argument("--base", help="the base to put under a bundle, if not the one it names")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON-lines file that records are appended to")
    parser.add_argument("--json", action="store_true", help="print the records as JSON lines")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Score, and print one line a system."""
    if not (args.data or args.tasks or args.preset):
        raise OptionError("nothing to score: give --data SOURCE, --tasks with lm-eval task names, or --preset paper.")
    if args.preset and (args.tasks or args.task):
        flag = "--tasks" if args.tasks else "--task"
        raise OptionError(f"--preset {args.preset} names its own tasks; leave out {flag}, or --preset.")
    if args.task and not args.data:
        raise OptionError("--task picks tasks of --data; lm-eval tasks are named by --tasks.")
    if args.num_fewshot is not None and (args.num_fewshot < 0 or not (args.tasks or (args.preset and not args.data))):
        raise OptionError(
            f"--num-fewshot {args.num_fewshot}: expected 0 or more, with lm-eval tasks; rows of --data have "
            "their prompts written out."
        )
    from radargate.evaluation.presets import find_preset
    from radargate.evaluation.run import evaluate, is_bundle, line

    if args.adapters and is_bundle(args.target):
        raise OptionError(f"{args.target} is a bundle and holds its experts; give adapters with a base model only.")
    tokens = args.max_new_tokens or (find_preset(args.preset).max_new_tokens if args.preset else None)
    scoring = flags.build(args, Scoring, **({} if args.max_new_tokens else {"max_new_tokens": tokens or 32}))
    names = [name.strip() for name in args.tasks.split(",") if name.strip()] if args.tasks else None
    records = evaluate(
        args.target,
        flags.named_adapters(args.adapters),
        args.out,
        data=args.data,
        tasks=args.task,
        lm_eval_tasks=names,
        preset=args.preset,
        num_fewshot=args.num_fewshot,
        lm_eval_new_tokens=tokens,
        scoring=scoring,
        dtype=args.dtype,
        device=flags.pick_device(args.device),
        base=args.base,
    )
    for record in records:
        if args.json:
            print(json.dumps(record))
        elif record["suite"] == "lm-eval":
            print(f"{record['case']}\t{json.dumps(record['metrics'])}")
        elif record["task"] == "mean":
            print(f"{record['case'].removesuffix('/mean')}\t{line(record['metrics'])}")
    return 0
