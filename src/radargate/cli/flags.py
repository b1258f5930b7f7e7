"""Flags: those made from the fields of options classes, and those that mean the same in every command."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from radargate.data.sources import with_columns
from radargate.errors import OptionError, RadarGateError, first_line
from radargate.registry import read_options

_NAMED = re.compile(r"`(\w+)`")


def add_options(parser: argparse.ArgumentParser, kind: type, *names: str, **defaults: Any) -> None:
    """A flag for each field of an options class that is made by `radargate.registry.option`.

    Args:
        parser: a command's parser.
        kind: the class.
        names: these fields only.
        defaults: other defaults than the class has.
    """
    hints, taken = get_type_hints(kind), []
    for field in sorted(dataclasses.fields(kind), key=lambda f: f.name not in kind.__annotations__):  # its own first
        if "help" in field.metadata and (not names or field.name in names):
            taken.append(field.name)
            _add_flag(parser, field, hints[field.name], defaults.get(field.name, field.default))
    parser.set_defaults(taken={**(parser.get_default("taken") or {}), kind: taken})


def values(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """Field → value of the fields that `add_options` made flags for."""
    fields, hints = {field.name: field for field in dataclasses.fields(kind)}, get_type_hints(kind)
    found = {}
    for name in args.taken[kind]:
        value, typed = getattr(args, name), fields[name].metadata
        if get_origin(hints[name]) is dict:
            value = read_options(value, "--" + typed["flag"], typed.get("example", "rotation_rank=4"))
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and get_origin(_kinds(hints[name])[0]) is tuple:
            value = split_names(value)
        found[name] = value
    return found


def build(args: argparse.Namespace, kind: Callable[..., Any], **more: Any) -> Any:
    """An options object from parsed flags, and ``more`` fields."""
    return kind(**{**values(args, kind), **more})  # type: ignore[arg-type]


def _kinds(hint: Any) -> list[Any]:
    """The types that a field may have, None aside."""
    return [hint] if get_origin(hint) in (tuple, dict) else [k for k in get_args(hint) if k is not type(None)] or [hint]


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any, default: Any) -> None:
    typed, kind = field.metadata, _kinds(hint)[0]
    flag = "--" + typed.get("flag", field.name.replace("_", "-"))
    help = typed["help"]() if callable(typed["help"]) else typed["help"]
    how: dict[str, Any] = {"dest": field.name, "default": None if default is dataclasses.MISSING else default}
    if kind is bool:
        how["action"] = "store_true"
    elif get_origin(kind) is dict:
        how |= {"action": "append", "default": [], "metavar": "NAME=VALUE"}
    else:
        if get_origin(kind) is tuple:
            how["default"] = ",".join(default) if default else None
            kind = get_args(kind)[0]
        if typed.get("repeat"):
            how["action"] = "append"
        if kind is not str:
            how["type"] = _number(kind, typed.get("least"), typed.get("above"))
        how |= {key: typed[key] for key in ("metavar", "choices") if key in typed}
        if how["default"] is not None and "default" not in help:
            help += " (default %(default)s)"
    parser.add_argument(flag, help=in_flags(help), **how)


def _number(kind: type, least: float | None, above: float | None) -> Callable[[str], Any]:
    """Reads a number, and checks it."""

    def number(text: str) -> Any:
        value = kind(text)
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
        if above is not None and not value > above:
            raise argparse.ArgumentTypeError(f"{text} is not above {above}")
        return value

    number.__name__ = kind.__name__
    return number


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Option → flag of a command."""
    return {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}


def in_flags(text: str, known: Mapping[str, str] | None = None) -> str:
    """A message of the library, in which `name` stands for an option, as the command line says it: --name.

    Args:
        text: the message.
        known: option → flag of the command; an option without one loses its quotes. None takes every name for a flag.
    """

    def flag(found: re.Match[str]) -> str:
        return "--" + found[1].replace("_", "-") if known is None else known.get(found[1], found[1])

    return _NAMED.sub(flag, text)


def split_names(text: str) -> tuple[str, ...]:
    """``a,b`` or, where options with commas are in it, ``a:x=1,y=2 b``."""
    parts = text.split() if ":" in text else text.split(",")
    return tuple(part.strip() for part in parts if part.strip())


def base_argument(parser: argparse.ArgumentParser) -> None:
    """``BASE``."""
    parser.add_argument("base", metavar="BASE", help="Hub name, folder, .gguf file, or smollm2-135m")


def resume_flag(parser: argparse.ArgumentParser) -> None:
    """``--resume``."""
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in the same --out")


def data_flag(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """``--data`` and ``--task``."""
    parser.add_argument(
        "--data",
        required=required,
        metavar="SOURCE",
        help="a .json, .jsonl, .csv or .parquet file (or .gz, .zst of one), a folder of TASK.SPLIT.jsonl.gz files, "
        "hub:NAME[:CONFIG][:SPLIT] or builtin:NAME; the form of rows is found from their fields",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        help="a column of --data with another name, such as prompt=problem (may be repeated)",
    )
    parser.add_argument("--task", action="append", metavar="TASK", help="use only this task (may be repeated)")


def examples_flags(parser: argparse.ArgumentParser) -> None:
    """``--examples`` and ``--example``."""
    parser.add_argument(
        "--examples",
        metavar="FILE",
        help="a YAML or JSON table, adapter: [prompts that it is for], by which rule select and the router know what fits",
    )
    parser.add_argument(
        "--example",
        action="append",
        default=[],
        metavar="NAME='PROMPT'",
        help="one such prompt of an adapter (may be repeated)",
    )


def read_examples(args: argparse.Namespace) -> dict[str, list[str]] | None:
    """Adapter → example prompts, from both flags; None where neither was given.

    Raises:
        OptionError: the file cannot be read or holds no such table, or a word is no pair.
    """
    if args.examples is None and not args.example:
        return None
    found: dict[str, list[str]] = {}
    if args.examples is not None:
        import yaml

        try:
            with open(args.examples, encoding="utf-8") as file:
                table = yaml.safe_load(file)
        except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
            raise OptionError(f"--examples {args.examples}: cannot be read ({first_line(error)}).") from error
        if not isinstance(table, dict) or not all(isinstance(texts, str | list) for texts in table.values()):
            raise OptionError(
                f"--examples {args.examples}: expected a table such as math: [What is 7 + 5?], adapter: list of prompts."
            )
        for name, texts in table.items():
            found[str(name)] = [str(text) for text in ([texts] if isinstance(texts, str) else texts)]
    for pair in args.example:
        name, equals, text = pair.partition("=")
        if not (name and equals and text.strip()):
            raise OptionError(f"--example {pair}: expected NAME='PROMPT', such as math='What is 7 + 5?'.")
        found.setdefault(name, []).append(text)
    return found


def name_columns(args: argparse.Namespace) -> None:
    """Put what ``--column`` names into ``--data``, so that columns are part of the source's name everywhere.

    Raises:
        OptionError: a column without a field, or without data.
    """
    pairs = [pair.partition("=") for pair in getattr(args, "column", [])]
    if pairs and not args.data:
        raise OptionError("--column names columns of --data. Give both.")
    for field, equals, column in pairs:
        if not (field and column):
            raise OptionError(f"--column {field}{equals}: expected FIELD=COLUMN, such as prompt=problem.")
    if pairs:
        args.data = with_columns(args.data, {field: column for field, _, column in pairs})


def machine_flags(parser: argparse.ArgumentParser) -> None:
    """``--device --dtype``."""
    parser.add_argument("--device", help="where to run, such as cpu or cuda (default: what there is)")
    parser.add_argument(
        "--dtype",
        metavar="NAME",
        help="dtype of the base model: float32, bfloat16 or float16, or 8bit or 4bit through bitsandbytes (default: "
        "the checkpoint's own, on a CPU only where it is no slower than float32)",
    )


def check_serve_extra(command: str) -> None:
    """Raise `RadarGateError` where what the server needs is not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise RadarGateError(
            f"radargate {command} needs {error.name}, which is not installed. Install it with pip install 'radargate[serve]'."
        ) from error


def pick_device(asked: str | None) -> str:
    """The device asked for, else CUDA where there is one, else the CPU."""
    import torch

    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


positive_int, positive_float = _number(int, 1, None), _number(float, None, 0)


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
