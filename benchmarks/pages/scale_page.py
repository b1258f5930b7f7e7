"""docs/scale.md: how to run large things, what that cost here, and the arithmetic for larger ones."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from radargate.io.records import read_records
from radargate.report.table import markdown

RESULTS = Path(__file__).parents[1] / "results"
# layers, width, width of keys and values, width of the feed-forward part, vocabulary
SHAPES = {"Llama-3.1-8B": (32, 4096, 1024, 14336, 128256), "Llama-3.1-70B": (80, 8192, 1024, 28672, 128256)}
STEPS, TOKENS = 100, 2048  # of a training of gates
RATE = 400e12  # operations a second of one device, assumed
RANK = 8
COMMANDS = """\
```bash
radargate experiment modules --data sources/ --out modules --slots 4        # four cells at once, on this machine
radargate experiment modules --data sources/ --out modules --ray auto       # on a Ray cluster; every node sees sources/ and modules/
torchrun --nproc-per-node 8 -m radargate.cli train BASE experts/*/ --data rows/ --out bundle            # one gate, DDP
accelerate launch --multi_gpu --num_processes 8 -m radargate.cli train BASE experts/*/ --data rows/ --out bundle   # the same
torchrun --nproc-per-node 8 -m radargate.cli train BASE experts/*/ --data rows/ --out bundle --shard    # base and experts shared out (FSDP2)
```"""


def page() -> str:
    """The whole page; empty before anything is recorded."""
    path = RESULTS / "scale" / "records.jsonl"
    if not path.exists():
        return ""
    newest = {(r["suite"], r["case"]): r for r in read_records(path)}
    one = next(iter(newest.values()))
    parts = [
        "# Scale",
        "Made by `make pages` from the records in `benchmarks/results/scale/`; `benchmarks/speed/scale.py` makes new ones.",
        COMMANDS,
        "Cells are the unit of a grid: each has an id that hashes what it depends on, and its records are written whole or not at all. "
        "So slots, a Ray cluster and a plain run share one records file, a worker that dies loses its own cell only, and `--resume` "
        "computes what is missing (tests kill workers on the way).",
        "`--batch-size` is rows a step of all processes together, so the loss curve does not depend on their number (tested with two). "
        "Gates are whole in every process and their gradients are averaged. With `--shard` every frozen weight, of base and experts, "
        "lives in one process only and is put together layer by layer while it is used. Each process still reads the whole base before it "
        "keeps its share. A checkpoint or bundle is the same whatever wrote it (tested: two processes stopped, one goes on, and the other way round). Gates with noise (`tutel` with `noise`) draw in "
        "every process for itself, and a resumed run of several processes gives all of them the main one's random state.",
        f"## Measured here ({one['machine']['cpu']}, {one['machine']['cores']} cores, float32)",
        _experts(newest),
        _processes(newest),
        "## Arithmetic: 1,000 adapters",
        "Rank 8 on all seven linear layers, radar with shared P and Q of rank 8, bfloat16 weights, float32 gates, nothing measured:",
        _sizes(),
        "At 1,000 experts the logits x θ of every site are what grows: they have n columns. The experts themselves do not have to be "
        "expanded: under top-2 and the `merged` route two of them are.",
        "## Arithmetic: 1,000 cells",
        _cells(),
    ]
    return "\n\n".join(parts) + "\n"


def _experts(newest: Mapping[tuple[str, str], Any]) -> str:
    rows = []
    for route in ("direct", "merged"):
        seconds = newest["scale-experts", route]["metrics"]["seconds"]
        rows.append([f"`{route}`", *(f"{seconds[n] * 1e3:.0f} ms" for n in ("base", "8", "100", "1000"))])
    record = newest["scale-experts", "merged"]
    text = f"One site with its base product, width {record['width']}, {record['tokens']} tokens, top-2, forward and backward:"
    return f"{text}\n\n{markdown(['route', 'base alone', '8 experts', '100 experts', '1,000 experts'], rows)}"


def _processes(newest: Mapping[tuple[str, str], Any]) -> str:
    rows = [
        [case, str(r["threads"]), f"{r['metrics']['seconds']:.0f} s", f"{r['metrics']['final_loss']:.4f}"]
        for (suite, case), r in newest.items()
        if suite == "scale-processes"
    ]
    text = "The same training of a radar gate on SmolLM2-135M; processes here share two cores, which one process keeps busy already:"
    return f"{text}\n\n{markdown(['processes', 'threads each', 'time', 'last loss'], rows)}"


def _sizes() -> str:
    rows, more = [], []
    for name, (layers, width, keys, inner, words) in SHAPES.items():
        linears = [
            (width, width),
            (width, keys),
            (width, keys),
            (width, width),
            (width, inner),
            (width, inner),
            (inner, width),
        ]
        base = layers * sum(a * b for a, b in linears) + 2 * words * width
        adapter = layers * RANK * sum(a + b for a, b in linears)
        gates = layers * sum(1000 * a + RANK * b + RANK * (b // 2) for a, b in linears)
        rows.append(
            [
                name,
                f"{2 * base / 1e9:.0f} GB",
                f"{2 * adapter / 1e6:.0f} MB",
                f"{2000 * adapter / 1e9:.0f} GB",
                f"{gates / 1e6:,.0f} M ({16 * gates / 1e9:.0f} GB with gradients and AdamW)",
            ]
        )
        activations = 2 * layers * width * TOKENS
        flops = 4 * base * TOKENS * STEPS
        more.append(
            [
                name,
                f"{0.56 * base / 1e9:.0f} GB",
                f"{activations / 1e9:.1f} GB",
                f"{flops / 1e15:.0f} PFLOP",
                f"{flops / RATE:.0f} s",
            ]
        )
    weights = markdown(["base", "base", "one adapter", "1,000 adapters", "gate parameters at n = 1,000"], rows)
    steps = f"{STEPS} steps of {TOKENS:,} tokens"
    work = markdown(
        [
            "base",
            "base in 4 bits",
            f"activations of {TOKENS:,} tokens, recomputed by layer",
            f"work of {steps}",
            f"at {RATE / 1e12:.0f} TFLOP/s",
        ],
        more,
    )
    return (
        f"{weights}\n\nGates are whole in every process: what `--shard` shares out is the base and the experts, so the last column has to fit on each "
        "device. On a 70B base 1,000 adapters on all seven layers do not leave an 80 GB device that room; fewer adapters or fewer layers do.\n\n"
        f"{work}\n\nA step is counted as four operations a weight and token: forward, and backward through frozen weights, without the experts' own part. "
        "4 bits count 0.56 bytes a weight with its scales. 400 TFLOP/s is an assumption, not a measurement."
    )


def _cells() -> str:
    means, count = {}, 0
    for file in sorted((RESULTS / "experiments").glob("*/records.jsonl")):
        cells = [r["metrics"] for r in read_records(file) if r["suite"] == "cell"]
        means[file.parent.name] = statistics.mean(c["train_seconds"] + c["score_seconds"] for c in cells)
        count += len(cells)
    quick, slow = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    hours = {workers: [1000 * means[name] / workers / 3600 for name in (quick, slow)] for workers in (1, 8, 64)}
    said = [f"{low:.1f} to {high:.1f} hours on {workers}" for workers, (low, high) in hours.items()]
    return (
        f"A cell of the CPU presets in [results.md](results.md) took {means[quick]:.0f} s (`{quick}`) to {means[slow]:.0f} s (`{slow}`) in one of two slots on two cores "
        f"(means of each experiment; {count} cells). A thousand such cells take {', '.join(said)} such workers, as cells share nothing but the records file; "
        "each worker loads the base once. Cells on a larger base take longer in proportion; `--dry-run` predicts a grid's hours "
        "before it starts: `radargate compare` from a few measured steps, `radargate experiment` from stored speeds."
    )
