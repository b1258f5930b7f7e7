"""Flags that mean the same in every command."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from radargate.errors import OptionError
from radargate.gates import GATES


def data_flag(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """``--data`` and ``--task``."""
    parser.add_argument(
        "--data",
        required=required,
        metavar="SOURCE",
        help="a .jsonl or .jsonl.gz file, a folder of TASK.SPLIT.jsonl.gz files, "
        "hub:NAME[:CONFIG][:SPLIT] or builtin:NAME",
    )
    parser.add_argument("--task", action="append", metavar="TASK", help="use only this task (may be repeated)")


def training_flags(
    parser: argparse.ArgumentParser, *, steps: int, lr: float | None, lr_help: str, seed: bool = True
) -> None:
    """``--steps --batch-size --lr --seed --max-length --resume``, where ``seed`` without ``--seed``."""
    parser.add_argument("--steps", type=positive_int, default=steps, help="optimizer steps (default %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="rows a step (default %(default)s)")
    parser.add_argument("--lr", type=positive_float, default=lr, help=lr_help)
    if seed:
        parser.add_argument("--seed", type=int, default=0, help="seed of initial values and row order (default 0)")
    parser.add_argument(
        "--max-length",
        type=positive_int,
        default=512,
        metavar="TOKENS",
        help="rows longer than this are dropped whole and counted (default %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in the same --out")


def gate_flags(parser: argparse.ArgumentParser) -> None:
    """``--top-k --rotation-lr --dense-start``."""
    parser.add_argument("--top-k", type=positive_int, default=2, help="experts kept per token (default 2)")
    parser.add_argument(
        "--rotation-lr",
        type=positive_float,
        help="rate of what turns or else is beside the weights (default 5e-3; the printed form needs far more)",
    )
    parser.add_argument(
        "--dense-start",
        type=float,
        metavar="SHARE",
        help="share of the steps with all experts before the cut to top-k (default 0.5)",
    )


def gate_names() -> str:
    """Names of all gates for ``--help``: those to choose from, and apart what they are measured against."""
    controls = GATES.within("radargate.gates.controls")
    return (
        f"{', '.join(name for name in GATES if name not in controls)}; controls, to compare with: {', '.join(controls)}"
    )


def machine_flags(parser: argparse.ArgumentParser) -> None:
    """``--device --dtype``."""
    parser.add_argument("--device", help="where to run, such as cpu or cuda (default: what there is)")
    parser.add_argument(
        "--dtype",
        metavar="NAME",
        help="dtype of the base model: float32, bfloat16 or float16, or 8bit or 4bit through bitsandbytes (default: "
        "the checkpoint's own, on a CPU only where it is no slower than float32)",
    )


def pick_device(asked: str | None) -> str:
    """The device asked for, else CUDA where there is one, else the CPU."""
    import torch

    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def positive_float(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def program() -> str:
    """What to type to run this again: ``radargate``, or its path where the shell would not find it."""
    typed = sys.argv[0]
    return typed if os.path.basename(typed) == "radargate" and shutil.which("radargate") is None else "radargate"


def adapters_argument(parser: argparse.ArgumentParser, required: bool) -> None:
    """``ADAPTER…``: paths or Hub ids, optionally ``NAME=PATH``."""
    parser.add_argument(
        "adapters",
        metavar="ADAPTER",
        nargs="+" if required else "*",
        help="folder or Hub id of a PEFT LoRA adapter, optionally NAME=PATH",
    )


def named_adapters(arguments: list[str], what: str = "adapters") -> dict[str, str]:
    """``NAME=PATH`` or ``PATH`` (named by its last part) → path, in order; ``what`` says of what, in messages.

    Raises:
        OptionError: two have one name.
    """
    named: dict[str, str] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or os.path.exists(argument):
            name, path = os.path.basename(argument.rstrip("/")), argument
        if name in named:
            raise OptionError(f"two {what} are called {name!r}; name them, as NAME=PATH.")
        named[name] = path
    return named
