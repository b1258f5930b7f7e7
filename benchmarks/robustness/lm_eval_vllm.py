"""Score the same rows with ``radargate eval``'s scorer and with ``lm_eval --model vllm``, which loads the bundle into vLLM itself.

    python benchmarks/robustness/lm_eval_vllm.py DATA OUT

Runs in an environment with vLLM (make test-vllm makes one). The bundle has a router of texts, its gates are drawn at random.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import vllm

import radargate
from lm_eval_server import choose, lm_eval
from radargate.base_models.loading import load_tokenizer, resolve_base
from radargate.data.rows import rows_hash
from radargate.evaluation.scoring import Scorer
from radargate.experts.shipped import BASE, shipped_experts
from radargate.io.records import append_records, make_record
from speed.vllm_bundles import save_bundle

KIND = "radar with router"


def main(data: str, out: str) -> None:
    """Compare on 50 multiple-choice test rows, as many of each task as of the others, in float32."""
    rows, tokenizer = choose(data), load_tokenizer(BASE)
    with tempfile.TemporaryDirectory() as work:
        bundle = save_bundle(KIND, Path(work) / "bundle")
        model = radargate.load(BASE, bundle, dtype="float32").eval()
        ours = [(score.correct, score.correct_norm) for score in Scorer(model, tokenizer).score(rows)]
        del model
        arguments = {
            "pretrained": resolve_base(BASE),
            "load_format": "radargate",
            "model_loader_extra_config": {"bundle": str(bundle)},
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 1024,
        }
        theirs = lm_eval(rows, tokenizer, "vllm", json.dumps(arguments), Path(work))
    metrics = {
        "n": len(rows),
        "same_acc": sum(a[0] == b[0] for a, b in zip(ours, theirs, strict=True)),
        "same_acc_norm": sum(a[1] == b[1] for a, b in zip(ours, theirs, strict=True)),
        "acc": sum(a for a, _ in ours) / len(rows),
        "acc_lm_eval": sum(a for a, _ in theirs) / len(rows),
    }
    facts = {
        "experts": list(shipped_experts()),
        "gate": KIND,
        "base": BASE,
        "tasks": sorted({row.task for row in rows}),
    }
    name = f"lm_eval --model vllm on {len(rows)} rows of {Path(data).name}"
    record = make_record("vllm", name, metrics, data_hash=rows_hash(rows), **facts)
    record["versions"]["vllm"] = vllm.__version__
    append_records(out, [record])
    print(metrics)


if __name__ == "__main__":
    main(*sys.argv[1:3])
