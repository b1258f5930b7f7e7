"""The tables of a comparison's report, as exact rows; the page, the CSV files and Markdown all show these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from radargate.comparison.analysis import Analysis, contestants
from radargate.comparison.ranking import HIGHER_IS_BETTER, TIE, PairedTest
from radargate.comparison.results import METRICS, Results, System
from radargate.report.table import NOTHING, Column, Row, Table, interval, number, probability, text

WORDS = {"acc": "accuracy", "nll": "NLL", "chrf": "chrF"}

_COUNTED = ("wins", "ties", "losses")


def ranking_table(analysis: Analysis) -> Table:
    """Every system, the best accuracy first, with intervals over rows and the spread over seeds."""
    results = analysis.results
    found = {metric: {s.label: s for s in ranked} for metric, ranked in analysis.standings.items()}
    counting = {metric: analysis.counting(metric) for metric in METRICS}
    rows: list[dict[str, Any]] = []
    ranked = [s.value for s in analysis.standings["acc"] if results.systems[s.label].kind != "oracle"]
    for standing in analysis.standings["acc"]:
        system = results.systems[standing.label]
        rank = 1 + sum(value > standing.value + TIE for value in ranked)  # equals share a rank
        row: dict[str, Any] = {
            "system": system.label,
            "kind": system.kind,
            "architecture": system.architecture,
            "rank": None if system.kind == "oracle" else rank,
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
            columns.append(Column(f"{words}, tasks that count", number(f"{metric}_counting_tasks")))
    best = [i for i, row in enumerate(rows) if row["system"] in analysis.leaders.values()]
    return Table(
        "ranking",
        "All systems: means over tasks, seeds averaged; the oracle (each task's own expert) has to be told the task and has no rank",
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
    """Task by task, base against own expert."""
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
            Column("counts", text(f"{metric}_counts")),
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
        if system.kind in ("gate", "rule"):
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


def curve_rows(system: System) -> list[tuple[float, float]]:
    """Training loss over steps, averaged over the seeds that have the step."""
    by_step: dict[float, list[float]] = {}
    for cell in system.cells:
        for step, loss in cell["metrics"].get("curve") or ():
            by_step.setdefault(step, []).append(loss)
    return [(step, float(np.mean(losses))) for step, losses in sorted(by_step.items())]


def curves_of(systems: Iterable[System]) -> dict[str, list[tuple[float, float]]]:
    """Label → training loss over steps, of the systems that have one."""
    return {system.label: curve for system in systems if (curve := curve_rows(system))}


def curves_table(name: str, caption: str, curves: Sequence[tuple[Row, Sequence[tuple[float, float]]]]) -> Table:
    """Loss at the start, after a quarter, half, three quarters, and at the end; the CSV has every step.

    Args:
        name: of the CSV file.
        caption: of the table.
        curves: what names each, its system last, and the losses.
    """
    rows, marks = [], []
    for names, curve in curves:
        rows += [{**names, "step": step, "loss": loss} for step, loss in curve]
        smooth = smoothed(curve)
        at = [smooth[round(share * (len(smooth) - 1))][1] for share in (0, 0.25, 0.5, 0.75, 1)]
        marks.append({**names, **{f"part{i}": loss for i, loss in enumerate(at)}})
    titles = ("start", "a quarter", "half", "three quarters", "end")
    columns = [
        *(Column(key, text(key)) for key in (curves[0][0] if curves else ("system",))),
        *(Column(title, number(f"part{i}")) for i, title in enumerate(titles)),
    ]
    return Table(name, f"{caption} (smoothed as in the chart; the CSV has every step)", rows, columns, shown=marks)


def smoothed(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A moving mean over a tenth of the steps, centred, narrower at the ends."""
    half = len(curve) // 20
    losses = np.array([loss for _, loss in curve])
    return [(step, float(losses[max(0, i - half) : i + half + 1].mean())) for i, (step, _) in enumerate(curve)]


def tests_table(
    name: str,
    caption: str,
    tests: Mapping[str, list[PairedTest]],
    more: Mapping[str, Callable[[PairedTest], str | None]] | None = None,
) -> Table:
    """Paired tests of one family, metric by metric, with p and Holm's p.

    Args:
        name: of the CSV file.
        caption: of the table.
        tests: metric → its tests.
        more: further columns, title → what a test has there.
    """
    more = more or {}
    rows: list[Row] = [
        {
            "first": t.first,
            "second": t.second,
            "metric": WORDS[metric],
            "difference": t.difference,
            "difference_low": t.low,
            "difference_high": t.high,
            "p": t.p,
            "holm_p": t.holm,
            "better": t.better,
            **{title: say(t) for title, say in more.items()},
        }
        for metric in METRICS
        for t in tests[metric]
    ]
    columns = [
        Column("difference", lambda row: f"{row['first']} − {row['second']}"),
        *(Column(title, text(title)) for title in more),
        Column("metric", text("metric")),
        Column("mean", number("difference", 3, sign=True)),
        Column("95 % interval", interval("difference", 3, sign=True)),
        Column("p", probability("p")),
        Column("Holm p", probability("holm_p")),
        Column("better", lambda row: row["better"] or "not significant"),
    ]
    return Table(name, caption, rows, columns)


def win_rates_table(analysis: Analysis) -> Table:
    """Every system against all others, a task and seed at a time."""
    rows = []
    for label in contestants(analysis.results):
        row: dict[str, Any] = {"system": label}
        for metric in METRICS:
            ours = [
                w if w.first == label else w.swapped() for w in analysis.wins[metric] if label in (w.first, w.second)
            ]
            row |= _counts([sum(counts) for counts in zip((0, 0, 0), *(w.counts for w in ours), strict=True)], metric)
        rows.append(row)
    rows.sort(key=lambda row: -(row["acc_rate"] or 0))
    columns = [Column("system", text("system"))]
    for metric in METRICS:
        columns += _count_columns(f"{WORDS[metric]}: win rate", metric)
    caption = "Each system against all others: wins, ties and losses over tasks and seeds"
    return Table("win_rates", caption, rows, columns)


def wins_table(analysis: Analysis, pairs: Sequence[tuple[str, str]] | None = None) -> Table:
    """Pair by pair; all pairs where none are given."""
    rows = []
    for metric in METRICS:
        found = {(w.first, w.second): w for w in analysis.wins[metric]}
        for first, second in pairs or found:
            count = found.get((first, second)) or found[second, first].swapped()
            names = {"first": first, "second": second, "metric": WORDS[metric]}
            rows.append({**names, **_counts(count.counts)})
    columns = [
        Column("pair", lambda row: f"{row['first']} against {row['second']}"),
        Column("metric", text("metric")),
        *_count_columns("win rate"),
    ]
    name = "wins_rotation" if pairs else "wins_all_pairs"
    return Table(name, "Wins, ties and losses of the first of a pair over tasks and seeds", rows, columns)


def _measured(analysis: Analysis) -> list[System]:
    results: Results = analysis.results
    return [results.systems[s.label] for s in analysis.standings["acc"] if results.systems[s.label].cells]


def _counts(counts: Sequence[int], metric: str = "") -> dict[str, float | None]:
    """Wins, ties, losses and the rate of wins; ``metric`` begins their names where a row has several."""
    total, prefix = sum(counts), f"{metric}_" if metric else ""
    rate = counts[0] / total if total else None
    return {f"{prefix}{key}": value for key, value in zip((*_COUNTED, "rate"), (*counts, rate), strict=True)}


def _count_columns(title: str, metric: str = "") -> list[Column]:
    prefix = f"{metric}_" if metric else ""
    return [Column(title, number(f"{prefix}rate")), *(Column(key, text(f"{prefix}{key}")) for key in _COUNTED)]


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


def named(metric: str) -> str:
    """A metric for a heading, with its direction where lower is better."""
    return f"{WORDS[metric]}{'' if HIGHER_IS_BETTER[metric] else ' (lower is better)'}"


def capital(words: str) -> str:
    """The words with a capital letter first."""
    return words[0].upper() + words[1:]
