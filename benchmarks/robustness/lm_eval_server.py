"""Score the same rows with ``radargate eval``'s scorer and with lm-eval's ``local-completions`` through ``radargate serve``.

    python benchmarks/robustness/lm_eval_server.py DATA OUT

The bundle is made of the shipped experts, with gates as they are before any training.
lm-eval runs as its own command, ``lm_eval --model local-completions``, on a task made of the rows, and reads the server's log-probabilities
of the prompt's tokens (``echo`` with ``logprobs``); it needs ``pip install 'lm-eval[api]'``. Recorded is how many decisions are the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import yaml

import radargate
from lm_eval_decisions import rows_task
from radargate.base_models.loading import load_tokenizer, resolve_base
from radargate.data.rows import Row, rows_hash
from radargate.data.sources import load_rows
from radargate.evaluation.scoring import Scorer
from radargate.experts.shipped import BASE, shipped_experts
from radargate.io.records import append_records, make_record

ROWS = 50


def main(data: str, out: str) -> None:
    """Compare on 50 multiple-choice test rows, as many of each task as of the others, in float32."""
    rows, tokenizer = choose(data), load_tokenizer(BASE)
    experts = shipped_experts()
    with tempfile.TemporaryDirectory() as work:
        bundle = f"{work}/bundle"
        model = radargate.compose(BASE, experts, gate="radar", top_k=2, seed=0, dtype=torch.float32)
        model.save_pretrained(bundle)
        ours = [(score.correct, score.correct_norm) for score in Scorer(model, tokenizer).score(rows)]
        with serving(bundle) as url:
            arguments = f"model=bundle,base_url={url}/v1/completions,tokenizer={resolve_base(BASE)},tokenizer_backend=huggingface,num_concurrent=2"
            theirs = lm_eval(rows, tokenizer, "local-completions", arguments, Path(work))
    metrics = {
        "n": len(rows),
        "same_acc": sum(a[0] == b[0] for a, b in zip(ours, theirs, strict=True)),
        "same_acc_norm": sum(a[1] == b[1] for a, b in zip(ours, theirs, strict=True)),
        "acc": sum(a for a, _ in ours) / len(rows),
        "acc_lm_eval": sum(a for a, _ in theirs) / len(rows),
    }
    tasks = sorted({row.task for row in rows})
    name = f"local-completions on {len(rows)} rows of {Path(data).name}"
    append_records(
        out,
        [
            make_record(
                "lm-eval-server",
                name,
                metrics,
                experts=list(experts),
                gate="radar",
                base=BASE,
                tasks=tasks,
                data_hash=rows_hash(rows),
            )
        ],
    )
    print(metrics)


def choose(data: str) -> list[Row]:
    """The first rows with choices of every task, in turns."""
    tasks = [[row for row in rows if row.choices] for rows in load_rows(data, "test", limit=ROWS).values()]
    turns = [task[i] for i in range(ROWS) for task in tasks if i < len(task)]
    return turns[:ROWS]


@contextlib.contextmanager
def serving(bundle: str) -> Iterator[str]:
    """The address of a server of its own process."""
    words = [sys.executable, "-m", "radargate.cli", "serve", f"bundle={bundle}", "--port", "0", "--dtype", "float32"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield next(found[1] for line in process.stderr if (found := re.search(r" at (http://\S+)/v1", line)))
    finally:
        process.terminate()
        process.wait(60)


def lm_eval(rows: list[Row], tokenizer: Any, model: str, arguments: str, work: Path) -> list[tuple[bool, bool]]:
    """Per row, whether lm-eval's own command, with that model and its arguments, finds it right by ``acc`` and by ``acc_norm``."""
    config = rows_task(rows, work, tokenizer).dump_config()
    kept = ("task", "dataset_path", "dataset_kwargs", "test_split", "output_type", "doc_to_text", "doc_to_target")
    task = {name: config[name] for name in (*kept, "doc_to_choice", "target_delimiter")}
    task["metric_list"] = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
    ]
    (work / "rows.yaml").write_text(yaml.safe_dump(task))
    words = [str(Path(sys.executable).parent / "lm_eval"), "--model", model, "--model_args", arguments]
    words += ["--tasks", task["task"], "--include_path", str(work), "--apply_chat_template", "--log_samples"]
    subprocess.run([*words, "--output_path", str(work / "out")], check=True)
    (samples,) = (work / "out").rglob("samples_*.jsonl")
    found = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return [(bool(sample["acc"]), bool(sample["acc_norm"])) for sample in found]


if __name__ == "__main__":
    main(*sys.argv[1:4])
