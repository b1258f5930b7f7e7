"""Synthetic records of a comparison, shaped as ``radargate compare`` writes them; no model is involved."""

from __future__ import annotations

import random
from typing import Any

from radargate.io.records import make_record

TASKS = ("aqua", "creak", "esnli", "gsm8k")
GATES = ("radar", "stretch", "signed", "mlp")
ARCHITECTURES = ("mole", "hydra", "omoe")
MISSING = ("mlp (omoe)", 2)  # the one cell that is not in


def compare_records(
    gates=GATES,
    tasks=TASKS,
    architectures=ARCHITECTURES,
    rules=("uniform", "ties"),
    seeds=3,
    rows=40,
    missing=MISSING,
    steps=30,
) -> list[dict[str, Any]]:
    """Records of a whole grid: base, union LoRA, an expert for each task, rules, and gates × architectures × seeds.

    Skill grows along ``gates`` from the last to the first, so the first leads by NLL; "ties" answers as "uniform" does.
    """
    cells = [("base", "base", "base", None, None, 0.0), ("union LoRA on all rows", "union LoRA", "rule", None, 0, 0.5)]
    cells += [(f"expert: {task}", f"expert: {task}", "expert", None, None, 0.2) for task in tasks]
    cells += [(rule, rule, "rule", None, None, 0.3) for rule in rules]
    for architecture in architectures:
        for place, gate in enumerate(gates):
            skill = 0.75 - 0.35 * place / max(len(gates) - 1, 1)
            cells += [(f"{gate} ({architecture})", gate, "gate", architecture, seed, skill) for seed in range(seeds)]
    records = []
    for label, system, kind, architecture, seed, skill in cells:
        if (label, seed) != missing:
            records += _cell(label, system, kind, architecture, seed, skill, tasks, rows, steps)
    request = {
        "base": "smollm2-135m",
        "experts": list(tasks),
        "tasks": list(tasks),
        "gates": list(gates),
        "rules": list(rules),
        "architectures": list(architectures),
        "seeds": seeds,
        "steps": steps,
        "limit": rows,
    }
    metrics = {"cells": len(cells), "predicted_seconds": 5000.0, "seconds": 6100.0}
    return [*records, make_record("compare", "compare", metrics, request=request)]


def _cell(label, system, kind, architecture, seed, skill, tasks, rows, steps) -> list[dict[str, Any]]:
    draw = random.Random(f"{'uniform' if label == 'ties' else label} {seed}")
    cell = {
        "id": f"{label}-{seed}",
        "system": system,
        "kind": kind,
        "architecture": architecture,
        "seed": seed,
        "label": label,
    }
    records, mean = [], {"acc": 0.0, "nll": 0.0}
    for task in tasks:
        own = 0.95 if label == f"expert: {task}" else skill
        noise = random.Random(f"rows of {task}")  # a row is hard or easy for every system alike
        hard = [noise.random() for _ in range(rows)]
        correct = [int(draw.random() < 0.2 + 0.5 * own + 0.2 * (0.5 - h)) for h in hard]
        tokens = [noise.randint(1, 6) for _ in range(rows)]
        nll = [
            round(t * (2.6 - 1.6 * own + 0.8 * h + 0.2 * draw.random()), 6) for t, h in zip(tokens, hard, strict=True)
        ]
        columns = {"id": [f"{task}-{i}" for i in range(rows)], "correct": correct, "nll_sum": nll, "tokens": tokens}
        metrics = {"n": rows, "acc": {"value": sum(correct) / rows}, "nll": {"value": 0.0}}
        records.append(
            make_record(
                "eval",
                f"{label}/{task}",
                metrics,
                cell=cell,
                system=label,
                task=task,
                split="test",
                limit=rows,
                data_hash=f"hash-of-{task}",
                rows=columns,
            )
        )
        mean["acc"] += metrics["acc"]["value"] / len(tasks)
    records.append(
        make_record(
            "eval",
            f"{label}/mean",
            {"n": rows * len(tasks), "acc": {"value": mean["acc"]}},
            cell=cell,
            system=label,
            task="mean",
            split="test",
            limit=rows,
        )
    )
    gate = kind == "gate"
    parameters = {"radar": 2, "rotation": 2, "mlp": 3}.get(system, 1) * 300_000 + len(system) * 10_000
    weights = [1 + draw.random() for _ in tasks]
    usage = {task: {e: w / sum(weights) for e, w in zip(tasks, weights, strict=True)} for task in tasks}
    metrics = {
        "trained_parameters": parameters if gate else 460_800 if kind == "expert" else 0,
        "train_seconds": 300 * (1 + draw.random()) if gate else 0.0,
        "score_seconds": 40 + 10 * draw.random(),
        "peak_memory_mb": 900 + 400 * draw.random() if gate else None,
        "final_loss": 1.4 - 0.6 * skill if gate else None,
        "mean_angle": 0.3 + draw.random() if system in ("radar", "rotation") else None,
        "curve": [[s, (1.4 - 0.6 * skill) * (1 + 2 / s) + 0.15 * draw.random()] for s in range(1, steps + 1)]
        if gate
        else [],
        "usage": usage if gate else None,
        "entropy": 0.5 + draw.random() / 5 if gate else None,
        "experts_in_use": 3.1 + draw.random() / 2 if gate else None,
        "top_k": 2 if gate else None,
    }
    options = {"steps": steps, "batch_size": 8, "lr": 0.02 if system == "radar" else 0.005} if gate else {}
    note = "converted, residual 0.31" if architecture == "omoe" else None
    records.append(make_record("cell", cell["id"], metrics, cell=cell, options=options, note=note))
    return records
