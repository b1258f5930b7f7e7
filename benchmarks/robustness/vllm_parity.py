"""Greedy answers of vLLM with a bundle beside those of transformers: tokens that are equal, and how far log-probabilities lie apart.

    python benchmarks/robustness/vllm_parity.py --out FILE

SmolLM2-135M in float32 with the shipped experts and gates drawn at random, nine prompts of 80 tokens, three of which share 300 tokens. Runs in
an environment with vLLM (make test-vllm makes one). Exit code 1 where a token differs, or a log-probability by more than 1e-4.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # before torch is imported

from radargate.base_models.loading import load_tokenizer, resolve_base
from radargate.experts.shipped import BASE, shipped_experts
from radargate.io.records import append_records, make_record
from speed.vllm_bundles import KINDS, prompts, save_bundle
from vllm_answers import TOKENS, Answers, close, engine, largest_difference, with_transformers, with_vllm

RESULTS = here.parent / "results" / "vllm" / "parity.jsonl"
ALLOWED = 1e-4
WHOLE_PROMPTS = {"enable_prefix_caching": False, "logits_processors": ["radargate.vllm.prompts:ReadsPrompts"]}
# mode → options of vLLM; the second round of answers finds what the first left in the cache
MODES: dict[str, dict[str, Any]] = {
    "no prefix cache": {"enable_prefix_caching": False},
    "prefix cache, prompts of one beginning in one step": {},
    "chunks of 16": {"max_num_batched_tokens": 16, "max_num_seqs": 9},
    "preemption": {"block_size": 32, "num_gpu_blocks_override": 34, "disable_log_stats": False},
    "compiled": {"enforce_eager": False},
}


def compare(kind: str, mode: str, options: dict[str, Any], bundle: Path, asked: Any, expected: Answers) -> Any:
    """Both rounds of one mode: the record."""
    usual = {"max_model_len": 1024, **(WHOLE_PROMPTS if kind == "radar with router of prompts" else {})}
    running = engine(resolve_base(BASE), bundle, **{**usual, **options})
    rounds = [with_vllm(running, asked), with_vllm(running, asked)]
    counts = (
        [m.value for m in running.get_metrics() if m.name == "vllm:num_preemptions"] if mode == "preemption" else []
    )
    close(running)
    equal = [sum(a[0] == b[0] for a, b in zip(found, expected, strict=True)) for found in rounds]
    metrics = {
        "prompts": len(expected),
        "equal": equal,
        "largest_log_probability_difference": [largest_difference(found, expected) for found in rounds],
        **({"preemptions": counts[0]} if counts else {}),
    }
    print(f"{kind}, {mode}: {metrics}", flush=True)
    record = make_record("vllm", f"{kind}, {mode}", metrics, base=BASE, experts=list(shipped_experts()), tokens=TOKENS)
    record["versions"]["vllm"] = __import__("vllm").__version__
    return record


def main() -> int:
    """Every kind in one mode, and the router in all; records, and the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(RESULTS))
    out, records = parser.parse_args().out, []
    with tempfile.TemporaryDirectory() as work:
        asked = prompts(load_tokenizer(BASE))
        for kind in KINDS:
            bundle = save_bundle(kind, Path(work) / kind)
            expected = with_transformers(BASE, bundle, asked)
            modes = MODES if kind == "radar with router" else dict(list(MODES.items())[1:2])
            for mode, options in modes.items():
                records.append(compare(kind, mode, options, bundle, asked, expected))
    append_records(out, records)
    return int(
        any(
            min(r["metrics"]["equal"]) < r["metrics"]["prompts"]
            or max(r["metrics"]["largest_log_probability_difference"]) > ALLOWED
            for r in records
        )
    )


if __name__ == "__main__":
    sys.exit(main())
