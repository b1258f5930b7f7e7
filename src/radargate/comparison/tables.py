"""The tables of a comparison's report, as exact rows; the page, the CSV files and Markdown all show these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from radargate.comparison.analysis import Analysis
from radargate.comparison.ranking import HIGHER_IS_BETTER, TIE, WORDS
from radargate.comparison.results import METRICS, Results, System
from radargate.report.table import NOTHING, Column, Row, Table, interval, number, probability, text


def ranking_table(analysis: Analysis) -> Table:
    """Every system, the best accuracy first, with intervals over rows and the spread over seeds."""
    results = analysis.results
    found = {metric: {s.label: s for s in ranked} for metric, ranked in analysis.standings.items()}
    counting = {metric: analysis.counting(metric) for metric in METRICS}
    rows: list[dict[str, Any]] = []
    ranked = [s.value for s in analysis.standings["acc"] if not results.systems[s.label].told]
    for standing in analysis.standings["acc"]:
        system = results.systems[standing.label]
        rank = 1 + sum(value > standing.value + TIE for value in ranked)  # equals share a rank
        row: dict[str, Any] = {
            "system": system.label,
            "kind": system.kind,
            "architecture": system.architecture,
            "rank": None if system.told else rank,
            "seeds": standing.seeds,
        }
        for metric in METRICS:
            s, tasks = found[metric][system.label], counting[metric]
            row |= {metric: s.value, f"{metric}_low": s.low, f"{metric}_high": s.high}
            row |= {f"{metric}_seed_low": s.seed_low, f"{metric}_seed_high": s.seed_high}
            row[f"{metric}_counting_tasks"] = float(np.mean(system.seed_means(metric, tasks))) if tasks else None
        rows.append(row)
    columns = [Column("system", text("system")), Column("rank", text("rank")), Column("seeds", text("seeds"))]
    for metric in METRICS:
        words = WORDS[metric]
        columns += [
            Column(words, number(metric)),
            Column("95 % interval", interval(metric)),
            Column("seeds from to", _seed_spread(metric)),
        ]
        if counting[metric] and len(counting[metric]) < len(results.tasks_of(metric)):
            columns.append(Column(f"{words}, where an expert helps", number(f"{metric}_counting_tasks")))
    best = [i for i, row in enumerate(rows) if row["system"] in analysis.leaders.values()]
    return Table(
        "ranking",
        "All systems: means over tasks, seeds averaged; what has to be told the task, as the oracle (each task's own expert), has no rank",
        rows,
        columns,
        best=best,
    )


def task_table(analysis: Analysis, metric: str) -> Table:
    """Systems × tasks; the colour runs over the task's range among gates and rules, dark is good."""
    results = analysis.results
    systems = [results.systems[s.label] for s in analysis.standings[metric]]
    rows: list[dict[str, Any]] = [
        {"system": s.label, **{task: s.task_mean(metric, task) for task in results.tasks_of(metric)}} for s in systems
    ]
    composed = [row for row, s in zip(rows, systems, strict=True) if s.kind in ("gate", "rule")] or rows
    columns = [Column("system", text("system"))]
    for task in results.tasks_of(metric):
        values = [float(row[task]) for row in composed]
        columns.append(Column(task, number(task, 2), _shade(task, min(values), max(values), HIGHER_IS_BETTER[metric])))
    return Table(
        f"tasks_{metric}", f"{'Accuracy' if metric == 'acc' else 'NLL'} of every system on every task", rows, columns
    )


def worth_table(analysis: Analysis) -> Table:
    """Task by task, base against oracle."""
    rows = []
    for task in analysis.results.tasks if analysis.worth["acc"] else ():
        row: dict[str, Any] = {"task": task}
        for metric in METRICS:
            worth = next(
                (w for w in analysis.worth[metric] if w.task == task), None
            )  # none for a translation's accuracy
            row |= {
                f"{metric}_base": worth and worth.base,
                f"{metric}_expert": worth and worth.expert,
                f"{metric}_p": worth and worth.p,
                f"{metric}_counts": worth and ("yes" if worth.counts else "no"),
            }
        rows.append(row)
    columns = [Column("task", text("task"))]
    for metric in METRICS:
        words = WORDS[metric]
        columns += [
            Column(f"{words}: base", number(f"{metric}_base")),
            Column("oracle", number(f"{metric}_expert")),
            Column("p", probability(f"{metric}_p")),
            Column("expert helps", text(f"{metric}_counts")),
        ]
    return Table("tasks_that_count", "Does a task's own expert beat the base on it?", rows, columns)


def cost_table(analysis: Analysis) -> Table:
    """What every system cost: trained parameters, seconds, memory."""
    value = {metric: {s.label: s.value for s in analysis.standings[metric]} for metric in METRICS}
    names = ("trained_parameters", "train_seconds", "score_seconds", "peak_memory_mb", "final_loss")
    rows = [
        {"system": s.label, **{name: s.measured(name) for name in names}, **{m: value[m][s.label] for m in METRICS}}
        for s in _measured(analysis)
    ]
    columns = [
        Column("system", text("system")),
        Column("trained parameters", number("trained_parameters", 0)),
        Column("training, s", number("train_seconds", 0)),
        Column("scoring, s", number("score_seconds", 0)),
        Column("peak memory, MB", number("peak_memory_mb", 0)),
        Column("last loss", number("final_loss")),
        Column("accuracy", number("acc")),
        Column("NLL", number("nll")),
    ]
    return Table("costs", "What each system cost; seconds and memory are means over seeds", rows, columns)


def gates_table(analysis: Analysis) -> Table:
    """How every gate and rule weighs the experts."""
    rows = []
    for system in _measured(analysis):
        if system.kind in ("gate", "rule", "told"):
            top_k = next((c["metrics"]["top_k"] for c in system.cells if c["metrics"].get("top_k") is not None), None)
            notes = "; ".join(dict.fromkeys(c["note"] for c in system.cells if c.get("note")))
            rows.append(
                {
                    "system": system.label,
                    "top_k": top_k,
                    **{name: system.measured(name) for name in ("entropy", "experts_in_use", "mean_angle")},
                    "note": notes or None,
                }
            )
    columns = [
        Column("system", text("system")),
        Column("experts a token", text("top_k")),
        Column("entropy, nats", number("entropy")),
        Column("experts in use", number("experts_in_use", 2)),
        Column("mean angle, rad", number("mean_angle")),
        Column("note", text("note")),
    ]
    return Table(
        "gates",
        "What each gate does: entropy of a token's weights, experts in use over all tokens, mean angle of rotation",
        rows,
        columns,
    )


def usage(system: System) -> dict[str, dict[str, float]]:
    """task → expert → mean weight, averaged over the seeds that have it; empty where none has."""
    found = [cell["metrics"]["usage"] for cell in system.cells if cell["metrics"].get("usage")]
    tasks = found[0] if found else {}
    return {task: {e: float(np.mean([u[task][e] for u in found])) for e in weights} for task, weights in tasks.items()}


def usage_table(systems: Sequence[System]) -> Table:
    """Tasks × experts of one system, or of several below each other: mean weights."""
    found = [(s.label, task, weights) for s in systems for task, weights in usage(s).items()]
    experts = list(dict.fromkeys(e for _, _, weights in found for e in weights))
    rows: list[dict[str, Any]] = [
        {"system": label, "task": task, **{e: weights.get(e) for e in experts}} for label, task, weights in found
    ]
    top = max((weight for _, _, weights in found for weight in weights.values()), default=0.0)
    columns = [Column("task", text("task")), *(Column(e, number(e, 2), _shade(e, 0.0, top, True)) for e in experts)]
    name = "usage" if len(systems) != 1 else f"usage of {systems[0].label}"
    return Table(name, f"{', '.join(s.label for s in systems)}: mean weight of each expert on each task", rows, columns)


def _measured(analysis: Analysis) -> list[System]:
    results: Results = analysis.results
    return [results.systems[s.label] for s in analysis.standings["acc"] if results.systems[s.label].cells]


def _seed_spread(metric: str) -> Callable[[Row], str]:
    spread = interval(f"{metric}_seed")
    return lambda row: spread(row) if row["seeds"] > 1 else NOTHING


def _shade(key: str, low: float, high: float, higher_is_better: bool) -> Callable[[Row], float | None]:
    def shade(row: Row) -> float | None:
        if row[key] is None:
            return None
        share = min(1.0, max(0.0, (row[key] - low) / (high - low))) if high > low else 0.5
        return share if higher_is_better else 1.0 - share

    return shade


def capital(words: str) -> str:
    """The words with a capital letter first."""
    return words[0].upper() + words[1:]
