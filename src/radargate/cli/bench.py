"""``radargate bench``: speed and memory on this machine. The benchmarks are part of the repository, not of the package."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from radargate.errors import RadarGateError

HELP = "measure speed and memory here, peers beside us"
EXAMPLE = "radargate bench ops --quick --json"
FOLDER = Path(__file__).parents[3] / "benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command, where the benchmarks are there."""
    command = _command()
    if command is None:
        parser.add_argument("what", nargs=argparse.REMAINDER, help="needs a clone of the repository")
    else:
        command.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, store.

    Raises:
        RadarGateError: this is an installed package without the benchmarks.
    """
    command = _command()
    if command is None:
        raise RadarGateError(
            "the benchmarks, with the other systems that they compare, are not part of the installed package: clone RadarGate's "
            "repository, run make install, and use .venv/bin/radargate bench there."
        )
    return int(command.run(args))


def _command() -> Any:
    if not (FOLDER / "speed" / "command.py").is_file():
        return None
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module("speed.command")
