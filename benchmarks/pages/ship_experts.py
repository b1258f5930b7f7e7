"""Copy trained experts into the package with cards and a manifest: benchmarks/pages/ship_experts.py FOLDER SCORES.jsonl."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from radargate.data.builtin import CATEGORIES
from radargate.evaluation.metrics import paired_difference, row_values
from radargate.experts.shipped import BASE, FOLDER
from radargate.io.records import file_hash, read_records


def main(trained: str, scores: str) -> None:
    """Copy, describe, hash."""
    by_case = {(r["system"], r["task"]): r for r in read_records(scores) if r["suite"] == "eval"}
    manifest: dict = {"base": BASE, "command": "benchmarks/pages/shipped_experts.sh", "experts": {}}
    for category, tasks in CATEGORIES.items():
        source, target = Path(trained) / category, FOLDER / category
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(source / name, target / name)
        lines = []
        for task in tasks:
            mine, base = by_case[category, task], by_case[BASE, task]
            p = paired_difference({task: row_values(mine, "nll")}, {task: row_values(base, "nll")})["p"]
            m, b = mine["metrics"], base["metrics"]
            lines.append(
                f"| {task} | {m['n']} | {b['acc']['value']:.3f} | {m['acc']['value']:.3f} | {b['nll']['value']:.3f} | "
                f"{m['nll']['value']:.3f} | {p:.4f} |"
            )
        (target / "README.md").write_text(
            f"""---
base_model: {BASE}
library_name: peft
license: apache-2.0
tags: [lora, radargate]
---

# {category}: a LoRA expert for RadarGate's quickstart

Rank 8, alpha 32, on q_proj and v_proj of SmolLM2-135M-Instruct (Apache-2.0), in bfloat16. Trained on the training rows of
`builtin:{category}` ({", ".join(tasks)}) by `benchmarks/pages/shipped_experts.sh`; scored on test rows:

| task | rows | accuracy, base | expert | NLL, base | expert | p (NLL, paired) |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
        )
        manifest["experts"][category] = {
            "sha256": file_hash(target / "adapter_model.safetensors"),
            "tasks": list(tasks),
        }
    (FOLDER / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
