"""Tokens a second of vLLM with a bundle, without one, and with vLLM's own LoRA: offline, all engines in one run, taking turns.

    python benchmarks/speed/vllm_offline.py --requests 16 --rounds 5

Runs in an environment with vLLM (make test-vllm makes one). All engines are in one process, and only
one computes at a time. Beside seconds, the processor time of the process is taken, which others on the machine change less.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_LOGGING_LEVEL="ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).parents[1])]

import psutil
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from radargate.base_models.loading import load_tokenizer, resolve_base
from radargate.experts.shipped import BASE, shipped_experts
from radargate.io.records import append_records, make_record
from speed.vllm_bundles import KINDS, prompts, save_bundle

RESULTS = Path(__file__).parents[1] / "results" / "vllm" / "offline.jsonl"
LORA = "reasoning"


def engine(**options: Any) -> LLM:
    """vLLM on the base, eager, in float32."""
    usual = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "disable_log_stats": True}
    return LLM(model=resolve_base(BASE), **{**usual, "max_num_seqs": 16, "enable_prefix_caching": False, **options})


def tokens_per_second(
    running: LLM, asked: list[list[int]], answered: int, lora: LoRARequest | None
) -> tuple[float, float]:
    """Greedy answers of that many tokens each to all prompts at once: tokens a second, and a second of the processor."""
    how = SamplingParams(temperature=0, max_tokens=answered, ignore_eos=True)
    begun, computed = time.perf_counter(), time.process_time()
    found = running.generate([{"prompt_token_ids": ids} for ids in asked], how, use_tqdm=False, lora_request=lora)
    took, worked = time.perf_counter() - begun, time.process_time() - computed
    tokens = sum(len(request.outputs[0].token_ids) for request in found)
    return tokens / took, tokens / worked


def main() -> int:
    """Measure, print and append one record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--answered", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS)[:3])
    parser.add_argument("--out", default=str(RESULTS))
    args = parser.parse_args()
    draw = prompts(load_tokenizer(BASE))
    asked = [draw[i % 5] for i in range(args.requests)]
    with tempfile.TemporaryDirectory() as work:
        engines: dict[str, tuple[LLM, LoRARequest | None]] = {"base": (engine(), None)}
        lora = LoRARequest(LORA, 1, str(shipped_experts()[LORA]))
        engines["vLLM's own LoRA"] = engine(enable_lora=True, max_loras=2, max_lora_rank=8), lora
        for kind in args.kinds:
            bundle = save_bundle(kind, Path(work) / kind)
            loaded = engine(load_format="radargate", model_loader_extra_config={"bundle": str(bundle)})
            engines[kind] = loaded, None
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        for running, own in engines.values():
            tokens_per_second(running, asked, 4, own)  # what is built once
        busy = []
        for turn in range(args.rounds):
            for name in list(engines)[:: 1 if turn % 2 else -1]:
                running, own = engines[name]
                rates[name].append(tokens_per_second(running, asked, args.answered, own))
                busy.append(psutil.getloadavg()[0])
    metrics: dict[str, Any] = {
        name: {
            "tokens": {engine: round(median(pair[kind] for pair in found), 2) for engine, found in rates.items()},
            # the median over rounds of the ratio within a round
            "ratios": {
                f"{one} ÷ {other}": round(
                    median(a[kind] / b[kind] for a, b in zip(rates[one], rates[other], strict=True)), 3
                )
                for one in args.kinds
                for other in ("base", "vLLM's own LoRA")
            },
        }
        for kind, name in enumerate(("a second", "a second of the processor"))
    }
    metrics["rounds"] = {name: [[round(rate, 2) for rate in pair] for pair in found] for name, found in rates.items()}
    metrics["load_average"] = {"lowest": round(min(busy), 2), "highest": round(max(busy), 2)}
    facts = {"base": BASE, "experts": list(shipped_experts()), "answered": args.answered, "mode": "eager, float32"}
    record = make_record("vllm", f"offline, {args.requests} requests", metrics, requests=args.requests, **facts)
    record["versions"]["vllm"] = __import__("vllm").__version__
    append_records(args.out, [record])
    print(json.dumps(metrics, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
