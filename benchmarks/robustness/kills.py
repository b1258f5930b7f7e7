"""Kill training, experts, comparisons and experiments at random moments, resume them, and look whether anything was lost.

``python benchmarks/robustness/kills.py --kills 200 --record FILE``. Runs are processes forked from one that has imported everything,
on a tiny model; half of the kills wait for a file that is being written. After every kill: what was finished is still there and
whole. At the end: the resumed result equals an undisturbed one bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kill_scenarios import World, scenarios

# seconds after which a process counts as hung: a fork can inherit a lock of a thread that it has not (seen once in 400)
HUNG = 120


@dataclass
class Tally:
    """What was done and what went wrong.

    Attributes:
        kills: of each scenario, by signal and by whether a file was being written.
        finished: runs that were resumed to their end, of each scenario.
        problems: everything that was lost, half-written or different.
    """

    kills: Counter[str] = field(default_factory=Counter)
    how: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def start(argv: list[str], log: Path) -> int:
    """Run a command in a process of its own that need not import anything; its number."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    try:  # the child
        signal.alarm(HUNG)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        from radargate.cli import main

        code = main(argv)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(number: int) -> int | None:
    """The exit code of a process, None while it runs; negative where a signal ended it."""
    done, status = os.waitpid(number, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def finish(argv: list[str], log: Path) -> int:
    """Run a command to its end; its exit code."""
    code = -signal.SIGALRM
    for _ in range(3):
        if code == -signal.SIGALRM:
            code = os.waitstatus_to_exitcode(os.waitpid(start(argv, log), 0)[1])
    return code


def being_written(out: Path) -> bool:
    """Whether an unfinished file or folder is in ``out``."""
    for _, names, files in os.walk(out):
        if any(name.startswith(".") and name != ".in-use" and "work" not in name for name in (*names, *files)):
            return True
        names[:] = [name for name in names if name != "tensorboard"]
    return False


def strike(argv: list[str], out: Path, log: Path, whole: float, draw: random.Random, tally: Tally, name: str) -> bool:
    """Start a run and kill it at a random moment; False where it ended before that."""
    number = start(argv, log)
    aimed = draw.random() < 0.5
    moment = time.monotonic() + draw.uniform(0.0, whole)
    last = moment + whole
    while True:
        code = ended(number)
        if code is not None:
            if code not in (0, -signal.SIGALRM):
                tally.problems.append(f"{name}: exit code {code}: {log.read_text()[-600:]}")
            return False
        now = time.monotonic()
        if now >= moment and (not aimed or now >= last or being_written(out)):
            break
        time.sleep(0.001)
    word = draw.choice(["SIGKILL", "SIGTERM"])
    os.kill(number, getattr(signal, word))
    os.waitpid(number, 0)
    tally.kills[name] += 1
    tally.how[f"{word}, {'a file being written' if aimed and now < last else 'any moment'}"] += 1
    return True


def run(world: World, kills: int, seconds: float, seed: int) -> Tally:
    """Kill until there have been enough kills or seconds; every run is resumed to its end and compared."""
    draw, tally = random.Random(seed), Tally()
    known = scenarios(world)
    undisturbed: dict[str, tuple[float, Any]] = {}
    begun = time.monotonic()
    while sum(tally.kills.values()) < kills and time.monotonic() - begun < seconds:
        scenario = draw.choices(known, [s.weight for s in known])[0]
        if scenario.name not in undisturbed:
            out, log = world.folder / f"whole-{scenario.name}", world.folder / "log"
            started = time.monotonic()
            if finish(scenario.command(out), log) != 0:
                raise SystemExit(f"{scenario.name} does not run: {log.read_text()[-2000:]}")
            undisturbed[scenario.name] = (time.monotonic() - started, scenario.result(out))
        whole, expected = undisturbed[scenario.name]
        out, log = world.folder / f"killed-{scenario.name}", world.folder / "log"
        shutil.rmtree(out, ignore_errors=True)
        log.unlink(missing_ok=True)
        kept: Any = None
        command = [*scenario.command(out), "--resume"]
        for _ in range(min(draw.randint(2, 5), kills - sum(tally.kills.values()))):
            if not strike(command, out, log, whole, draw, tally, scenario.name):
                break
            try:
                now = scenario.finished(out)
            except Exception as error:
                tally.problems.append(f"{scenario.name}: after a kill: {type(error).__name__}: {error}")
                break
            if kept is not None and (lost := scenario.lost(kept, now)):
                tally.problems.append(f"{scenario.name}: lost {lost}")
            kept = now
        if (code := finish(command, log)) != 0:
            tally.problems.append(f"{scenario.name}: resuming ended with {code}: {log.read_text()[-600:]}")
        elif (found := scenario.result(out)) != expected:
            tally.problems.append(f"{scenario.name}: the resumed result differs: {_difference(expected, found)}")
        else:
            tally.finished[scenario.name] += 1
    return tally


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    return "; ".join(f"{key}: {found.get(key)!r:.200} instead of {expected.get(key)!r:.200}" for key in keys)


def main() -> int:
    """Kill, print and record the counts, exit 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further run after as long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="only this scenario (may be repeated)")
    parser.add_argument("--record", type=Path, help="JSON-lines file to append the counts to")
    args = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as work:
        tally = run(World.made(Path(work), args.only), args.kills, args.seconds, args.seed)
    kills = sum(tally.kills.values())
    for name in tally.kills:
        print(f"{name:<11} {tally.kills[name]:>4} kills, {tally.finished[name]:>3} runs resumed to an equal end")
    for problem in tally.problems:
        print(f"PROBLEM  {problem}")
    print(
        f"{kills} kills ({', '.join(f'{n} {how}' for how, n in tally.how.items())}), {len(tally.problems)} problems, "
        f"{time.monotonic() - begun:.0f} s."
    )
    if args.record:
        from radargate.io.records import append_records, make_record

        metrics = {"kills": kills, "problems": len(tally.problems), "runs": sum(tally.finished.values())}
        append_records(
            args.record,
            [
                make_record(
                    "trust",
                    "kills",
                    metrics,
                    seed=args.seed,
                    kills=tally.kills,
                    how=tally.how,
                    finished=tally.finished,
                    problems=tally.problems,
                )
            ],
        )
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
