"""The answers of an experiment in short: who leads at each value of its axis, and where experts help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from radargate.comparison.analysis import SUBJECT
from radargate.comparison.ranking import RULE, leader, named, standings
from radargate.comparison.results import METRICS, ORACLE
from radargate.paper.design import AXES
from radargate.paper.findings import Findings
from radargate.report.table import NOTHING, Column, Table, facts_table, number, text, with_interval

_PROMPTS = {
    "cut": "without the text that all prompts of a task's training rows begin or end with",
    "paraphrased": "each task put in ten ways, five for training rows and five for test rows",
}
# by layout, what intervals resample; elsewhere rows within tasks
RESAMPLED = {"angles": "pairs of experts as if no two shared one", "hull": "tasks"}


def heading(found: Findings) -> list[str]:
    """The question, and how much of the answer there is, at which size."""
    request = found.request
    question = f"{request['question']} ({request['paper']} of the paper)" if request["paper"] else request["question"]
    size = f"preset {request['preset']}{', shrunk to a smoke run, which says nothing of quality' * request['smoke']}"
    return [
        question,
        f"{found.finished} of {found.planned} cells finished ({size}; seeds: {request['design']['seeds']}).",
    ]


def leaders_table(found: Findings) -> Table:
    """The best system at every value of the axis, and how many are significantly worse."""
    rows = []
    for metric in METRICS:
        for value, results in found.by_value.items():
            best = leader(results, standings(results, metric))
            tests = [test for test in found.lead[metric] if test.at == value]
            row: dict[str, Any] = {"at": found.short(value), "metric": named(metric), "best": best.label}
            row |= {"mean": best.value, "mean_low": best.low, "mean_high": best.high}
            row["worse"] = f"{sum(test.better == best.label for test in tests)} of {len(tests)}"
            row["close"] = ", ".join(test.second for test in tests if test.better is None) or NOTHING
            rows.append(row)
    columns = [
        Column("metric", text("metric")),
        *_place(found),
        Column("best system", text("best")),
        Column("mean (95 % interval)", with_interval("mean")),
        Column("significantly worse", text("worse")),
        Column("not significantly worse", text("close")),
    ]
    return Table("leaders", f"The best systems, paired; significant: {RULE}", rows, columns)


def experts_table(found: Findings) -> Table:
    """Where a task's own expert beats the base: how much of what it reaches does radar reach?"""
    rows = []
    for metric in METRICS:
        for value, results in found.by_value.items():
            if (tasks := found.counting(value, metric)) is None:
                continue
            row: dict[str, Any] = {"at": found.short(value), "metric": named(metric), "oracle": None, "radar": None}
            row["count"] = f"{len(tasks)} of {len(results.tasks_of(metric))}"
            row["tasks"] = ", ".join(tasks) or NOTHING
            for key, label in (("oracle", ORACLE), ("radar", found.radar(results))) if tasks else ():
                row[key] = float(results.systems[label].seed_means(metric, tasks).mean()) if label else None
            row["share"] = row["radar"] / row["oracle"] if metric == "acc" and row["radar"] and row["oracle"] else None
            rows.append(row)
    columns = [
        Column("metric", text("metric")),
        *_place(found),
        Column("tasks whose own expert beats the base", text("count")),
        Column("oracle there", number("oracle")),
        Column(f"{SUBJECT} there", number("radar")),
        Column(f"{SUBJECT} / oracle", number("share", 2)),
        Column("these tasks", text("tasks")),
    ]
    return Table("experts_help", "Where experts help, and what radar keeps of it", rows, columns)


def rivals_table(found: Findings) -> Table:
    """Radar against each other gate, counted over the values of the axis; empty where it has one value."""
    rows = []
    for metric in METRICS if len(found.by_value) > 1 else ():
        for name in dict.fromkeys(test.second.partition(" (")[0] for test in found.rotation[metric]):
            tests = [test for test in found.rotation[metric] if test.second.partition(" (")[0] == name]
            row: dict[str, Any] = {"metric": named(metric), "other": name, "places": len(tests)}
            row["better"] = sum(test.better == test.first for test in tests)
            row["worse"] = sum(test.better == test.second for test in tests)
            rows.append({**row, "difference": float(np.mean([test.difference for test in tests]))})
    columns = [
        Column("metric", text("metric")),
        Column(f"{SUBJECT} −", text("other")),
        Column("comparisons", text("places")),
        Column("significantly better", text("better")),
        Column("significantly worse", text("worse")),
        Column("mean difference", number("difference", sign=True)),
    ]
    return Table("rivals", "Radar against each other gate, over all values of the axis", rows, columns)


def settings_table(found: Findings, more: Mapping[str, str] | None = None) -> Table:
    """What the numbers rest on; ``more`` facts stand at the end."""
    request, design = found.request, found.request["design"]
    facts = {
        "prompts": _PROMPTS.get(design.get("prompts"), ""),
        "scored rows of each task": f"{design.get('split', 'test')}, {design['limit'] or 'all'}",
        "training of a gate": f"{design['steps']} steps of {design['batch_size']} rows",
        "learning rate, where a name says no other": found.learning_rates,
        "own learning rates": "; ".join(design.get("rates", ())),
        "training of an expert": "given" if found.experts_given else f"{design['expert_steps']} steps",
        "training of the union LoRA": "; ".join(dict.fromkeys(_unions(found))),
        "seeds": ", ".join(map(str, range(design["seeds"]))),
        "intervals resample": f"{RESAMPLED.get(request['layout'], 'rows within tasks')}, seeds averaged",
        "p-values": "paired differences: over rows by sign flips, with Holm's correction within a table and metric; over seeds by t; over tasks by "
        "all flips of signs",
        "versions of the code": str(found.commits),
        "left out": "; ".join(request["left_out"]),
        **(more or {}),
    }
    return facts_table("settings", "Settings", {what: value for what, value in facts.items() if value})


def _unions(found: Findings) -> Iterator[str]:
    """What each of them read; records of before do not say it."""
    for cell in found.cells.values():
        if cell["metrics"].get("rows_read"):
            yield f"{cell['cell']['label']}: {cell['note']}"


def _place(found: Findings) -> list[Column]:
    return [Column(AXES[found.axis], text("at"))] if found.axis else []
