"""What more experts and more processes cost here: python benchmarks/speed/scale.py --adapters DIR --data DIR.

Appends to benchmarks/results/scale/records.jsonl: one site with up to 1,000 experts, and the same training by one
process, by two (DDP), and by two that share the base out (FSDP2). `make pages` makes docs/scale.md of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from radargate.io.records import append_records, make_record
from speed import ops

sys.path.insert(0, str(Path(__file__).parents[1]))

RECORDS = Path(__file__).parents[1] / "results" / "scale" / "records.jsonl"
EXPERTS, WIDTH, TOKENS = (8, 100, 1000), 2048, 512
RUNS: dict[str, tuple[int, list[str]]] = {"one process": (1, []), "two, DDP": (2, []), "two, FSDP2": (2, ["--shard"])}
THREADS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", required=True, help="folder of adapter folders for smollm2-135m")
    parser.add_argument("--data", required=True, help="rows to train on")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args(arguments)
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    for route in ("direct", "merged"):
        metrics = ops.whole_site(
            EXPERTS, width=WIDTH, tokens=TOKENS, device="cpu", dtype=torch.float32, rounds=5, route=route
        )
        append_records(RECORDS, [make_record("scale-experts", route, metrics, width=WIDTH, tokens=TOKENS)])
        print(route, metrics["seconds"])
    for name, (count, more) in RUNS.items():
        metrics = train(options, count, more)
        append_records(
            RECORDS, [make_record("scale-processes", name, metrics, processes=count, threads=THREADS // count)]
        )
        print(name, {key: metrics[key] for key in ("seconds", "final_loss")})


def train(options: argparse.Namespace, count: int, more: list[str]) -> dict[str, object]:
    """The metrics of one training by so many processes."""
    adapters = [
        str(folder) for folder in sorted(Path(options.adapters).iterdir()) if (folder / "adapter_config.json").exists()
    ]
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"] if count > 1 else ["-m"]
    )
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            *launcher,
            "radargate.cli",
            "train",
            "smollm2-135m",
            *adapters,
            "--data",
            options.data,
            "--steps",
            str(options.steps),
            "--max-length",
            "256",
            "--dtype",
            "float32",
            "--out",
            f"{out}/bundle",
            *more,
        ]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(THREADS // count)})
        return json.loads(Path(out, "bundle", "record.json").read_text())["metrics"]


if __name__ == "__main__":
    main()
