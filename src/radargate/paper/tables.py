"""The tables of an experiment's report, in the paper's layouts, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from radargate.comparison.grid import CHRF, METRICS, OWN_EXPERT, System
from radargate.comparison.ranking import HIGHER_IS_BETTER, leader, standings
from radargate.comparison.tables import WORDS, capital, curve_rows, smoothed
from radargate.paper.design import AXES
from radargate.paper.findings import Findings, Test
from radargate.report.table import Column, Row, Table, interval, number, probability, text


def task_table(found: Findings, metric: str, values: Sequence[Any] | None = None) -> Table:
    """Systems by tasks, with the mean and its interval; a block for each value of the axis (Tables 2 and 3)."""
    rows: list[dict[str, Any]] = []
    best = []
    for value, grid in found.grids.items():
        if values is not None and value not in values:
            continue
        best_first = standings(grid, metric)
        ranked, top = {s.label: s for s in best_first}, leader(grid, best_first).label
        block = [label for label in found.systems() if label in ranked]
        for label in block:
            s, system = ranked[label], grid.systems[label]
            if label == top:
                best.append(len(rows))
            rows.append(
                {
                    "at": found.short(value),
                    "system": label,
                    "seeds": s.seeds,
                    "trained": _trained(system),
                    **{task: system.task_mean(metric, task) for task in grid.tasks_of(metric)},
                    "mean": s.value,
                    "mean_low": s.low,
                    "mean_high": s.high,
                }
            )
    tasks = list(dict.fromkeys(task for grid in found.grids.values() for task in grid.tasks_of(metric)))
    rows = [
        {key: row.get(key) for key in ("at", "system", "seeds", "trained", *tasks, "mean", "mean_low", "mean_high")}
        for row in rows
    ]
    columns = [Column("system", text("system"))]
    if found.axis is not None:
        columns.insert(0, Column(AXES[found.axis], text("at")))
    columns += [
        *(Column(task, number(task)) for task in tasks),
        Column("mean", number("mean")),
        Column("95 % interval", interval("mean")),
        Column("seeds", text("seeds")),
        Column("parameters trained", number("trained", 0)),
    ]
    return Table(f"tasks_{metric}", f"{_named(metric)} of every system on every task", rows, columns, best=best)


def last_table(found: Findings, metric: str) -> Table:
    """The tasks behind a mean, at the last value of the axis."""
    value = list(found.grids)[-1]
    table = task_table(found, metric, [value])
    return replace(table, caption=f"{table.caption}, {found.said(value)}")


def axis_table(found: Findings, metric: str) -> Table:
    """Systems by values of the axis: mean over tasks and its interval."""
    ranked = {v: {s.label: s for s in standings(grid, metric)} for v, grid in found.grids.items()}
    rows: list[dict[str, Any]] = []
    last = list(found.grids)[-1]
    for label in found.systems():
        row: dict[str, Any] = {"system": label}
        for value in found.grids:
            s, key = ranked[value].get(label), found.short(value)
            row |= {key: s and s.value, f"{key}_low": s and s.low, f"{key}_high": s and s.high}
        row["trained"] = _trained(found.grids[last].systems[label]) if label in found.grids[last].systems else None
        rows.append(row)
    columns = [Column("system", text("system"))]
    columns += [Column(found.said(value), _with_interval(found.short(value))) for value in found.grids]
    columns.append(Column(f"parameters trained, {found.said(last)}", number("trained", 0)))
    return Table(f"axis_{metric}", f"{_named(metric)}, mean over tasks (95 % interval)", rows, columns)


def source_table(found: Findings, metric: str) -> Table:
    """Test sources and tasks by systems; a source's mean with its interval stands before its tasks (Tables 1, 4 to 7)."""
    grid = found.grids[next(iter(found.grids))]
    labels, rows = found.systems(), []
    measured = grid.tasks_of(metric)
    for source in dict.fromkeys(task.split("/")[0] for task in measured):
        tasks = [task for task in measured if task.split("/")[0] == source]
        ranked = {s.label: s for s in standings(grid, metric, tasks)}
        row: dict[str, Any] = {"test": f"{source}: mean of {len(tasks)}"}
        for label in labels:
            s = ranked[label]
            row |= {label: s.value, f"{label}_low": s.low, f"{label}_high": s.high}
        rows.append(row)
        for task in tasks:
            values = {label: grid.systems[label].task_mean(metric, task) for label in labels}
            rows.append(
                {
                    "test": task,
                    **{k: v for n in labels for k, v in ((n, values[n]), (f"{n}_low", None), (f"{n}_high", None))},
                }
            )
    columns = [Column("test", text("test")), *(Column(label, _with_interval(label)) for label in labels)]
    return Table(f"sources_{metric}", f"{_named(metric)} on benchmarks that nothing was trained on", rows, columns)


def curve_table(found: Findings) -> Table:
    """Training loss on the way, smoothed over a tenth of the steps; the CSV has every step."""
    rows, marks = [], []
    for value, grid in found.grids.items():
        for system in grid.systems.values():
            if curve := curve_rows(system):
                rows += [
                    {"at": found.short(value), "system": system.label, "step": s, "loss": loss} for s, loss in curve
                ]
                smooth = smoothed(curve)
                at = [smooth[round(share * (len(smooth) - 1))][1] for share in (0, 0.25, 0.5, 0.75, 1)]
                marks.append(
                    {"at": found.short(value), "system": system.label, **{f"part{i}": v for i, v in enumerate(at)}}
                )
    titles = ("start", "a quarter", "half", "three quarters", "end")
    columns = [
        Column(AXES[found.axis] if found.axis else "at", text("at")),
        Column("system", text("system")),
        *(Column(title, number(f"part{i}")) for i, title in enumerate(titles)),
    ]
    return Table("curves", "Training loss on the way (smoothed; the CSV has every step)", rows, columns, shown=marks)


def test_table(found: Findings, which: str) -> Table:
    """Paired tests over the same rows, p corrected over all of a metric: a key of ``_CAPTIONS``."""
    tests: dict[str, list[Test]] = getattr(found, which)
    rows: list[Row] = [
        {
            "at": found.said(test.value) if which in _ALONG else "",
            "first": test.result.first,
            "second": test.result.second,
            "metric": WORDS[metric],
            "difference": test.result.difference,
            "difference_low": test.result.low,
            "difference_high": test.result.high,
            "p": test.result.p,
            "holm_p": test.result.holm,
            "better": test.result.better,
            "seeds": _of_seeds(found, test) if which == "rotation" else "",
        }
        for metric in METRICS
        for test in tests[metric]
    ]
    columns = [
        Column("at", text("at")),
        Column("difference", lambda row: f"{row['first']} − {row['second']}"),
        Column("metric", text("metric")),
        Column("mean", number("difference", 3, sign=True)),
        Column("95 % interval", interval("difference", 3, sign=True)),
        *([Column("single seeds", text("seeds"))] if which == "rotation" else []),
        Column("p", probability("p")),
        Column("Holm p", probability("holm_p")),
        Column("better", lambda row: row["better"] or "cannot tell"),
    ]
    return Table(which, _CAPTIONS[which], rows, columns if which in _ALONG and found.axis else columns[1:])


_ALONG = ("rotation", "where_it_counts")  # made at every value of the axis
_CAPTIONS = {
    "rotation": "Radar against the other gates and the controls, paired over rows",
    "where_it_counts": "The same over the tasks that count: those whose own expert beats the base",
    "change": "The last value of the axis against the first, paired over rows",
    "resists": "That change of radar less the same change of another system, paired over rows",
}


def _of_seeds(found: Findings, test: Test) -> str | None:
    """The difference in each seed that both systems have."""
    grid, r = found.grids[test.value], test.result
    first, second = grid.systems[r.first], grid.systems[r.second]
    if first.seeds != second.seeds or len(first.seeds) < 2:
        return None
    tasks = grid.tasks_of(r.metric)
    return ", ".join(f"{d:+.3f}" for d in first.seed_means(r.metric, tasks) - second.seed_means(r.metric, tasks))


def _trained(system: System) -> float | None:
    return None if system.label == OWN_EXPERT else system.measured("trained_parameters")


def _with_interval(key: str) -> Any:
    value, spread = number(key), interval(key)
    return lambda row: value(row) if row[key] is None or row[f"{key}_low"] is None else f"{value(row)} ({spread(row)})"


def _named(metric: str) -> str:
    return (
        "ChrF"
        if metric == CHRF
        else f"{capital(WORDS[metric])}{'' if HIGHER_IS_BETTER[metric] else ' (lower is better)'}"
    )
