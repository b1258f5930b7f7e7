"""Score the same multiple-choice rows with radargate and with lm-eval, and record how many decisions agree."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import radargate
from lm_eval_decisions import decisions
from radargate.base_models.loading import load_tokenizer
from radargate.data.sources import load_rows
from radargate.evaluation.scoring import Scorer
from radargate.io.records import append_records, make_record


def main(bundle: str, data: str, out: str, limit: int = 6) -> None:
    """Compare on the first ``limit`` multiple-choice test rows of each task, in float32."""
    model = radargate.load(None, bundle, dtype=torch.float32)
    tokenizer = load_tokenizer("smollm2-135m")
    rows = [row for rows in load_rows(data, "test", limit=limit).values() for row in rows if row.choices]
    ours = [(s.correct, s.correct_norm) for s in Scorer(model, tokenizer).score(rows)]
    theirs = decisions(model, tokenizer, rows)
    metrics = {
        "n": len(rows),
        "same_acc": sum(a[0] == b[0] for a, b in zip(ours, theirs, strict=True)),
        "same_acc_norm": sum(a[1] == b[1] for a, b in zip(ours, theirs, strict=True)),
        "acc": sum(a for a, _ in ours) / len(rows),
    }
    append_records(
        out,
        [
            make_record(
                "lm-eval-parity", f"{Path(bundle).name} on {len(rows)} rows of {Path(data).name}", metrics, limit=limit
            )
        ],
    )
    print(metrics)


if __name__ == "__main__":
    main(*sys.argv[1:4])
