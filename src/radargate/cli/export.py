"""``radargate export``: a bundle in a form that needs nothing of radargate."""

from __future__ import annotations

import argparse
import json
from typing import Any, cast

from radargate.cli import flags
from radargate.errors import OptionError
from radargate.exporting.options import Fitting

HELP = "save a bundle as one ordinary LoRA: exact for static rules, fitted to data for all others"
EXAMPLE = "radargate export bundle --to lora --rank 16 --data my_tasks/ --out one_lora"
GGUF = "adapter.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument(
        "--to",
        default="lora",
        choices=["lora", "gguf"],
        help="a PEFT adapter (the default), or beside it the same as adapter.gguf for llama.cpp",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the adapter")
    flags.add_options(parser, Fitting)
    flags.data_flag(parser, required=False)
    parser.add_argument(
        "--fit-rows",
        type=flags.positive_int,
        default=200,
        metavar="ROWS",
        help="rows of each task to fit to, the first ones (default %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=flags.positive_int,
        default=50,
        metavar="ROWS",
        help="held-out rows of each task to measure on (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the record of a fit as JSON")
    parser.add_argument("--base", help="the base to put under the bundle, if not the one it names")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Load, and save."""
    if args.rank is None and (args.data or args.json):
        flag = "--data" if args.data else "--json"
        raise OptionError(f"{flag} is for a LoRA that is fitted to data; give --rank N too, or leave {flag} out.")
    if args.rank is not None and not args.data:
        raise OptionError(
            f"--rank {args.rank} fits a LoRA to data; give --data SOURCE. A static rule is exported exactly without --rank."
        )
    from pathlib import Path

    from radargate.composition.composing import load, radar_layers
    from radargate.exporting.exact import save_as_lora
    from radargate.exporting.fit import RECORD, fit_lora
    from radargate.exporting.gguf import gguf_names, write_gguf
    from radargate.exporting.reading import fit_and_held_out
    from radargate.io.disk import check_writable

    out, record = Path(args.out), None
    rows = args.data and fit_and_held_out(
        args.data, args.task, args.fit_rows, args.limit
    )  # wrong rows show before a model is loaded
    if rows:
        check_writable(out / RECORD, "the adapter")  # and a full disk before the work
    model = load(args.base, args.bundle, dtype=args.dtype, device=flags.pick_device(args.device))
    config = cast(Any, model.get_base_model()).config
    if args.to == "gguf":
        gguf_names(config, [layer.site for layer in radar_layers(model)])
    if rows:
        names: dict[str, Any] = {"bundle": Path(args.bundle).resolve().name, "data": Path(args.data).name}
        record = fit_lora(model, out, *rows, flags.build(args, Fitting), **names)
    else:
        save_as_lora(model, out)
    if args.to == "gguf":
        write_gguf(out, out / GGUF, config)
    if args.json:
        print(json.dumps(record))
        return 0
    if record is not None:
        print(summary(record["metrics"]))
    print(f'Adapter in {out}. Load it with PeftModel.from_pretrained(base, "{out}").')
    if args.to == "gguf":
        print(f"For llama.cpp: --lora {out / GGUF}")
    return 0


def summary(metrics: dict[str, Any]) -> str:
    """What a fit lost, in two lines."""
    shown = [
        f"{name} {metrics['nll'][key]['value']:.3f} [{metrics['nll'][key]['low']:.3f}, {metrics['nll'][key]['high']:.3f}]"
        for name, key in (("composition", "composition"), ("this LoRA", "lora"), ("base", "base"))
    ]
    residual = metrics["residual"]
    return (
        f"NLL of the right answer on held-out rows: {', '.join(shown)}\n"
        f"Share of the updates' length that is missed: {residual['median']:.2f} at the median site, {residual['highest']:.2f} "
        "at the worst"
    )
