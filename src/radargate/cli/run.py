"""``radargate run``: another package's command, in a process in which PEFT knows bundles."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from radargate.errors import OptionError

HELP = "run another tool's command or a script of your own so that it loads bundles as PEFT adapters"
EXAMPLE = "radargate run lm_eval --model hf --model_args pretrained=BASE,peft=bundle --tasks piqa"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "tool", metavar="TOOL", help="an installed command (lm_eval), a module (my.package) or a script (my_script.py)"
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="…", help="its own words and flags, handed on as they are"
    )


def run(args: argparse.Namespace) -> int:
    """Register with PEFT, then become the tool."""
    import radargate  # noqa: F401  (PEFT knows bundles from here on)

    start = _start(args.tool)
    sys.argv = [args.tool, *args.words]
    code = start()
    return code if isinstance(code, int) else 0


def _start(tool: str) -> Callable[[], Any]:
    """What starts a tool: a script by its path, an installed command, or a module as ``python -m`` starts it.

    Raises:
        OptionError: it is none of these.
    """
    if tool.endswith(".py"):
        if not Path(tool).is_file():
            raise OptionError(f"{tool}: no such script.")
        sys.path.insert(0, str(Path(tool).resolve().parent))
        return lambda: runpy.run_path(tool, run_name="__main__")
    for command in importlib.metadata.entry_points(group="console_scripts", name=tool):
        return command.load()
    try:
        known = importlib.util.find_spec(tool) is not None
    except (ImportError, ValueError):
        known = False
    if not known:
        raise OptionError(
            f"{tool} is no installed command, module or script. Install it into this environment, or give the path of a .py file."
        )
    return lambda: runpy.run_module(tool, run_name="__main__", alter_sys=True)
