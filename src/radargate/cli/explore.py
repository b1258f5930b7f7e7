"""``radargate explore``: what the gates of a bundle do with a text, as one page to look around in."""

from __future__ import annotations

import argparse

from radargate.cli import flags

HELP = "see what the gates do with a text: one page with every token's experts, weights and angles"
EXAMPLE = 'radargate explore bundle --prompt "Is a whale a fish?" --answer "No." --out whale.html'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("target", metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument("--prompt", required=True, help="what the model reads")
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--answer", help="what follows the prompt")
    answer.add_argument(
        "--max-new-tokens",
        type=flags.positive_int,
        default=0,
        metavar="N",
        help="let the model write the answer, of N tokens at most",
    )
    parser.add_argument("--compare", metavar="OTHER_BUNDLE", help="show another bundle beside it, on the same text")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the page; it opens from disk, offline")
    parser.add_argument("--base", help="the base to put under a bundle, if not the one it names")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Trace the text through one bundle or two, and write the page."""
    from pathlib import Path

    from radargate.errors import OptionError
    from radargate.evaluation.run import open_system
    from radargate.explorer.page import explorer
    from radargate.explorer.trace import trace
    from radargate.io.disk import writing
    from radargate.io.records import write_atomic

    out = Path(args.out)
    if out.is_dir():
        raise OptionError(f"--out {out} is a folder, expected a file such as {out / 'explore.html'}.")
    with writing("the page", out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    traces, names = [], []
    for target in [args.target, *([args.compare] if args.compare else [])]:
        model, tokenizer = open_system(target, dtype=args.dtype, device=flags.pick_device(args.device), base=args.base)
        traces.append(
            trace(model, args.prompt, answer=args.answer, tokenizer=tokenizer, max_new_tokens=args.max_new_tokens)
        )
        names.append(Path(target).resolve().name)
        del model
    if len(set(names)) < len(names):
        names = [f"{name} ({letter})" for name, letter in zip(names, "AB", strict=True)]
    page = explorer(traces, names)
    with writing("the page", out.parent):
        write_atomic(out, page)
    print(out)
    return 0
