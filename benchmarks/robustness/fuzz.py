"""Random files and bodies for everything that reads a stranger's bytes: each is taken, or refused by a `RadarGateError`.

``python benchmarks/robustness/fuzz.py --inputs 100000 --record FILE`` spreads the inputs over the readers of `fuzz_targets`, in this
process and without a model. An *escape* is any other exception, and a *slow* input one that takes over a second.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz_targets import TARGETS, Target

SLOW = 1.0  # seconds


@dataclass
class Result:
    """What became of one target's inputs.

    Attributes:
        inputs: how many were tried.
        taken: how many were sound.
        refused: how many were refused, by the class of the error.
        escapes: where another exception came from → its words, and how often.
        slow: longest seconds of those over a second.
        seconds: of all together.
    """

    inputs: int = 0
    taken: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    escapes: dict[str, dict[str, Any]] = field(default_factory=dict)
    slow: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For a record."""
        return {
            "inputs": self.inputs,
            "taken": self.taken,
            "refused": dict(self.refused),
            "escapes": self.escapes,
            "slow": len(self.slow),
            "slowest_seconds": round(max(self.slow, default=0.0), 2),
            "seconds": round(self.seconds, 1),
        }


def fuzz(target: Target, folder: Path, inputs: int, number: int = 0, seconds: float = float("inf")) -> Result:
    """Try random inputs on one target.

    Args:
        target: what reads them.
        folder: an empty folder to write files into; a memory file system is fastest.
        inputs: how many.
        number: seed; the same seed tries the same inputs.
        seconds: stop early after as long.
    """
    result, read = Result(), target.prepare(folder)
    begun = time.perf_counter()

    @seed(number)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def tried(value: Any) -> None:
        if result.inputs >= inputs or time.perf_counter() - begun > seconds:
            return
        attempt(read, value, result)

    offset = 0
    while result.inputs < inputs and time.perf_counter() - begun < seconds:
        before = result.inputs
        seed(number + offset)(tried)()  # hypothesis stops by itself where it believes to have seen everything
        offset += 1_000_003
        if result.inputs == before:
            break
    result.seconds = time.perf_counter() - begun
    return result


def attempt(read: Callable[[Any], object], value: Any, result: Result) -> None:
    """Let one input be read, and count what becomes of it."""
    from radargate.errors import RadarGateError

    result.inputs += 1
    start = time.perf_counter()
    try:
        read(value)
        result.taken += 1
    except RadarGateError as error:
        result.refused[type(error).__name__] += 1
        if not str(error).isprintable():  # more than one line, or one that a terminal would obey
            _escaped(result, error, value)
    except Exception as error:
        _escaped(result, error, value)
    if (taken := time.perf_counter() - start) > SLOW:
        result.slow.append(taken)


def _escaped(result: Result, error: BaseException, value: Any) -> None:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
    known = result.escapes.setdefault(place, {"words": str(error)[:200], "input": repr(value)[:500], "times": 0})
    known["times"] += 1


def main() -> int:
    """Fuzz every target, print and record the counts, exit 1 where anything escaped."""
    from radargate.io.records import append_records, make_record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="of all targets together (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after as long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this one (may be repeated)")
    parser.add_argument("--record", type=Path, help="JSON-lines file to append the counts to")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen = args.target or list(TARGETS)
    results: dict[str, Result] = {}
    for name in chosen:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as work:
            share = -(-args.inputs // len(chosen))
            results[name] = fuzz(TARGETS[name], Path(work), share, args.seed, args.seconds / len(chosen))
        found = results[name]
        print(
            f"{name:<10} {found.inputs:>8,} inputs  {found.taken:>8,} taken  {sum(found.refused.values()):>8,} refused  "
            f"{sum(e['times'] for e in found.escapes.values()):>4} escapes  {len(found.slow)} slow  {found.seconds:.0f} s"
        )
        for place, facts in found.escapes.items():
            print(f"    {place} ({facts['times']} times): {facts['words']}\n      {facts['input']}")
    escapes = sum(e["times"] for r in results.values() for e in r.escapes.values())
    metrics = {
        "inputs": sum(r.inputs for r in results.values()),
        "escapes": escapes,
        "slow": sum(len(r.slow) for r in results.values()),
        "seconds": round(sum(r.seconds for r in results.values())),
    }
    if args.record:
        by_target = {name: result.as_dict() for name, result in results.items()}
        append_records(args.record, [make_record("trust", "fuzz", metrics, seed=args.seed, targets=by_target)])
    print(f"{metrics['inputs']:,} inputs, {escapes} escapes, {metrics['slow']} over {SLOW:g} s.")
    return 1 if escapes else 0


if __name__ == "__main__":
    sys.exit(main())
