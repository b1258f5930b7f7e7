"""``radargate bench``: speed and memory on this machine. What it runs lies in the repository, in ``benchmarks/speed``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from radargate.errors import RadarGateError

HELP = "measure speed and memory here, peers beside us"
EXAMPLE = "radargate bench ops --quick --json"
FOLDER = Path(__file__).parents[3] / "benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command, where the benchmarks are there."""
    if not (FOLDER / "speed" / "command.py").is_file():
        parser.add_argument("what", nargs=argparse.REMAINDER, help="needs a clone of RadarGate's repository")
        return
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    importlib.import_module("speed.command").add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, store.

    Raises:
        RadarGateError: this is an installed package, which comes without the benchmarks.
    """
    if (command := sys.modules.get("speed.command")) is None:
        raise RadarGateError(
            "the benchmarks are not part of the installed package: clone RadarGate's repository and run pip install -e . there."
        )
    return int(command.run(args))
