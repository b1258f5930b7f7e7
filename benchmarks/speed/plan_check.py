"""What ``radargate plan`` predicts beside what training then takes, on three models: python benchmarks/speed/plan_check.py.

Bases of real shapes with random weights (a size does not depend on values), four random experts, rows as long as
``--max-length`` allows. Each training is a process of its own; its peak is what the system counts (VmHWM), beside that
of a process that only imports the same packages. Appends to benchmarks/results/trust/plan.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, Qwen2Config, T5Config

from radargate.base_models.loading import load_tokenizer
from radargate.io.records import append_records, make_record
from radargate.training.options import GateTraining
from radargate.training.plan import plan_training

RECORDS = Path(__file__).parents[1] / "results" / "trust" / "plan.jsonl"
EXPERTS, RANK, ROWS = 4, 8, 8
IMPORTS = "import radargate.training.gates, accelerate, transformers.trainer"
MODELS: dict[str, Any] = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "qwen2.5-0.5b": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "flan-t5-base": T5Config(  # type: ignore[call-arg]
        vocab_size=49408,
        d_model=768,
        d_kv=64,
        d_ff=2048,
        num_layers=12,
        num_decoder_layers=12,
        num_heads=12,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    ),
}
TARGETS = {"flan-t5-base": ["q", "v"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, measure, compare, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--gates", nargs="+", default=["radar", "stretch"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=384)
    options = parser.parse_args(arguments)
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    empty = peak([sys.executable, "-c", f"{IMPORTS}; import time; time.sleep(1)"])
    for name in options.models:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            adapters = write_model(name, folder)
            write_rows(folder / "rows.jsonl", folder / "base", options.max_length, MODELS[name].is_encoder_decoder)
            for gate in options.gates:
                chosen = GateTraining(gate=gate, steps=3, batch_size=options.batch_size, max_length=options.max_length)
                plan = plan_training(str(folder / "base"), adapters, chosen, answer_tokens=64)
                command = [
                    sys.executable,
                    "-m",
                    "radargate.cli",
                    "train",
                    str(folder / "base"),
                    *[f"{key}={path}" for key, path in adapters.items()],
                    "--data",
                    str(folder / "rows.jsonl"),
                    "--gate",
                    gate,
                    "--steps",
                    "3",
                    "--batch-size",
                    str(options.batch_size),
                    "--max-length",
                    str(options.max_length),
                    "--out",
                    str(folder / gate),
                    "--device",
                    "cpu",
                ]
                measured = peak(command)
                metrics = {
                    **plan.as_dict(),
                    "imports_bytes": empty,
                    "measured_bytes": measured,
                    "planned_over_measured": (plan.peak_bytes + empty) / measured,
                    "planned_over_measured_without_imports": plan.peak_bytes / (measured - empty),
                }
                facts = {
                    "model": name,
                    "gate": gate,
                    "experts": EXPERTS,
                    "batch_size": options.batch_size,
                    "max_length": options.max_length,
                }
                append_records(RECORDS, [make_record("plan", f"{name} {gate}", metrics, **facts)])
                print(
                    f"{name} {gate}: planned {(plan.peak_bytes + empty) / 1e6:,.0f} MB, measured {measured / 1e6:,.0f} MB, "
                    f"ratio {metrics['planned_over_measured']:.3f}, without imports "
                    f"{metrics['planned_over_measured_without_imports']:.3f}",
                    flush=True,
                )


def write_model(name: str, folder: Path) -> dict[str, str]:
    """A base of that shape with smollm2-135m's tokenizer, and experts; returns name → path."""
    torch.manual_seed(0)
    config = MODELS[name]
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config)
    model.save_pretrained(folder / "base")
    load_tokenizer("smollm2-135m").save_pretrained(folder / "base")
    paths = {}
    for i in range(EXPERTS):
        lora = LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            target_modules=TARGETS.get(name, ["q_proj", "v_proj"]),
            init_lora_weights=False,
            task_type="SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM",
        )
        wrapped = get_peft_model(model, lora)
        paths[f"e{i}"] = str(folder / f"e{i}")
        wrapped.save_pretrained(paths[f"e{i}"], save_embedding_layers=False)
        model = wrapped.unload()
    return paths


def write_rows(file: Path, base: Path, length: int, encoder_decoder: bool) -> None:
    """Rows of as many tokens as are allowed, 64 of them the answer's."""
    tokenizer, rng = load_tokenizer(str(base)), random.Random(0)
    words = [
        w for w in (tokenizer.decode([i]) for i in range(2000, 6000)) if len(w) > 3 and w[0] == " " and w.isascii()
    ]
    prompt = length - 64 - (10 if encoder_decoder else 40)  # the rest is the chat template's

    def text(tokens: int) -> str:
        return "".join(rng.choice(words) for _ in range(tokens)).strip()

    rows = [{"id": str(i), "task": "words", "prompt": text(prompt), "target": text(60)} for i in range(ROWS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def peak(command: list[str]) -> int:
    """Most bytes of memory that a process held, as Linux counts them."""
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "2"}, stdout=subprocess.DEVNULL)
    most, status = 0, Path("/proc") / str(process.pid) / "status"
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:
            break
        most = max([most, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))])
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command[:6])} ... ended with {process.returncode}.")
    return most


if __name__ == "__main__":
    main()
