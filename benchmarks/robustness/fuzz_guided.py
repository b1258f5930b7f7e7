"""The inputs of `fuzz_targets`, steered by coverage: those that reach new code are varied further (needs ``pip install atheris``).

``python benchmarks/robustness/fuzz_guided.py --inputs 20000 --record FILE`` takes each target in a process of its own, in which
RadarGate's modules count what they reach. Escapes and slow inputs mean what they mean in `fuzz`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["radargate"]):
    from fuzz import Result, attempt
    from fuzz_targets import TARGETS
    from radargate.io.records import append_records, make_record

from hypothesis import HealthCheck, given, settings


def steer(name: str, inputs: int, number: int, out: Path) -> None:
    """Try so many inputs on one target, write what became of them, and end this process, as libFuzzer never returns."""
    result = Result()
    folder = Path(tempfile.mkdtemp(dir=out.parent))
    with atheris.instrument_imports(include=["radargate"]):
        read = TARGETS[name].prepare(folder)

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(TARGETS[name].inputs)
    def tried(value: object) -> None:
        attempt(read, value, result)

    def one(data: bytes) -> None:
        tried.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]
        if result.inputs >= inputs:
            out.write_text(json.dumps(result.as_dict()))
            os._exit(0)

    atheris.Setup([sys.argv[0], f"-seed={number + 1}", "-max_len=4096", "-len_control=0", "-verbosity=0"], one)
    atheris.Fuzz()


def main() -> int:
    """Every target in turn; exit 1 where anything escaped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=7_000, help="of all targets together (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="JSON-lines file to append the counts to")
    parser.add_argument("--one", nargs=2, metavar=("TARGET", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if args.one:
        steer(args.one[0], args.inputs, args.seed, Path(args.one[1]))
    results = {}
    for name in TARGETS:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as work:
            out = Path(work) / "result.json"
            share = -(-args.inputs // len(TARGETS))
            subprocess.run(
                [sys.executable, __file__, "--inputs", str(share), "--seed", str(args.seed), "--one", name, str(out)],
                check=True,
                env={"HF_HUB_OFFLINE": "1", **os.environ},
            )
            results[name] = json.loads(out.read_text())
        found = results[name]
        print(
            f"{name:<10} {found['inputs']:>8,} inputs  {found['taken']:>8,} taken  {sum(found['refused'].values()):>8,} refused  "
            f"{sum(e['times'] for e in found['escapes'].values()):>4} escapes  {found['slow']} slow",
            flush=True,
        )
        for place, facts in found["escapes"].items():
            print(f"    {place} ({facts['times']} times): {facts['words']}\n      {facts['input']}")
    escapes = sum(e["times"] for r in results.values() for e in r["escapes"].values())
    metrics = {
        "inputs": sum(r["inputs"] for r in results.values()),
        "escapes": escapes,
        "slow": sum(r["slow"] for r in results.values()),
    }
    if args.record:
        append_records(args.record, [make_record("trust", "fuzz-guided", metrics, seed=args.seed, targets=results)])
    print(f"{metrics['inputs']:,} inputs, {escapes} escapes, {metrics['slow']} over a second.")
    return 1 if escapes else 0


if __name__ == "__main__":
    sys.exit(main())
