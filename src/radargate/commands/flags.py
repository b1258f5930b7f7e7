"""Flags that mean the same in every command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable


def data_flag(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """``--data`` and ``--task``."""
    parser.add_argument("--data", required=required, metavar="SOURCE",
                        help="a .jsonl or .jsonl.gz file, a folder of TASK.SPLIT.jsonl.gz files, "
                             "hub:NAME[:CONFIG][:SPLIT] or builtin:NAME")  # fmt: skip
    parser.add_argument("--task", action="append", metavar="TASK", help="use only this task (may be repeated)")


def training_flags(parser: argparse.ArgumentParser, *, steps: int, lr: float | None, lr_help: str) -> None:
    """``--steps --batch-size --lr --seed --max-length --resume``."""
    parser.add_argument("--steps", type=positive_int, default=steps, help="optimizer steps (default %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="rows a step (default %(default)s)")
    parser.add_argument("--lr", type=positive_float, default=lr, help=lr_help)
    parser.add_argument("--seed", type=int, default=0, help="seed of initial values and row order (default 0)")
    parser.add_argument("--max-length", type=positive_int, default=512, metavar="TOKENS",
                        help="rows longer than this are dropped whole and counted (default %(default)s)")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in the same --out")


def machine_flags(parser: argparse.ArgumentParser) -> None:
    """``--device --dtype``."""
    parser.add_argument("--device", help="where to run, such as cpu or cuda (default: what there is)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"],
                        help="dtype of the base model (default: the checkpoint's own)")  # fmt: skip


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


def say_to(stream: object = None) -> Callable[[str], None]:
    """A function that prints progress lines at once, to standard error by default."""

    def say(line: str) -> None:
        print(line, file=stream or sys.stderr, flush=True)  # type: ignore[call-overload]

    return say
