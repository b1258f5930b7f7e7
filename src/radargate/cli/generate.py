"""``radargate generate``: answers from a bundle or base model."""

from __future__ import annotations

import argparse
import json

from radargate.cli import flags
from radargate.registry import read_options

HELP = "answer prompts with a bundle (or a base model)"
EXAMPLE = 'radargate generate bundle --prompt "Is a whale a fish?" --expert law=0'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("target", metavar="BUNDLE", help="a bundle's folder (a base model works too)")
    parser.add_argument("--prompt", action="append", required=True, help="what to answer (may be repeated)")
    parser.add_argument("--max-new-tokens", type=flags.positive_int, default=128, help="default %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) answers greedily")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="NAME=FACTOR",
        help="scale an expert's weight, 0 switches it off (may be repeated)",
    )
    parser.add_argument("--base", help="the base to put under a bundle, if not the one it names")
    parser.add_argument("--json", action="store_true", help="print prompts and answers as JSON lines")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Answer each prompt."""
    import contextlib

    import torch

    from radargate.composition.layer import using
    from radargate.evaluation.run import is_bundle, open_system
    from radargate.evaluation.scoring import generate

    factors = read_options(args.expert, "--expert", "law=0")
    model, tokenizer = open_system(args.target, dtype=args.dtype, device=flags.pick_device(args.device), base=args.base)
    options = {"do_sample": True, "temperature": args.temperature} if args.temperature > 0 else {}
    torch.manual_seed(args.seed)
    context = using(model, factors) if factors or is_bundle(args.target) else contextlib.nullcontext()
    with context:
        answers = generate(model, tokenizer, args.prompt, max_new_tokens=args.max_new_tokens, **options)
    for prompt, answer in zip(args.prompt, answers, strict=True):
        print(json.dumps({"prompt": prompt, "answer": answer}) if args.json else answer)
    return 0
