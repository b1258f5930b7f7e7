"""The tables of an experiment's report, in the paper's layouts, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from radargate.comparison.curves import curves_of, curves_table
from radargate.comparison.pairs import tests_table
from radargate.comparison.ranking import PairedTest, leader, named, standings
from radargate.comparison.results import ORACLE, System
from radargate.comparison.tables import capital
from radargate.paper.design import AXES
from radargate.paper.findings import Findings
from radargate.report.table import Column, Table, interval, number, text, with_interval


def task_table(found: Findings, metric: str, values: Sequence[Any] | None = None) -> Table:
    """Systems by tasks, with the mean and its interval; a block for each value of the axis (Tables 2 and 3)."""
    rows: list[dict[str, Any]] = []
    best = []
    for value, results in found.by_value.items():
        if values is not None and value not in values:
            continue
        best_first = standings(results, metric)
        ranked, top = {s.label: s for s in best_first}, leader(results, best_first).label
        block = [label for label in found.systems() if label in ranked]
        for label in block:
            s, system = ranked[label], results.systems[label]
            if label == top:
                best.append(len(rows))
            rows.append(
                {
                    "at": found.short(value),
                    "system": label,
                    "seeds": s.seeds,
                    "trained": _trained(system),
                    **{task: system.task_mean(metric, task) for task in results.tasks_of(metric)},
                    "mean": s.value,
                    "mean_low": s.low,
                    "mean_high": s.high,
                }
            )
    tasks = list(dict.fromkeys(task for results in found.by_value.values() for task in results.tasks_of(metric)))
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
    return Table(f"tasks_{metric}", f"{capital(named(metric))} of every system on every task", rows, columns, best=best)


def last_table(found: Findings, metric: str) -> Table:
    """The tasks behind a mean, at the last value of the axis."""
    value = list(found.by_value)[-1]
    table = task_table(found, metric, [value])
    return replace(table, caption=f"{table.caption}, {found.said(value)}")


def axis_table(found: Findings, metric: str) -> Table:
    """Systems by values of the axis: mean over tasks and its interval."""
    ranked = {v: {s.label: s for s in standings(results, metric)} for v, results in found.by_value.items()}
    rows: list[dict[str, Any]] = []
    last = list(found.by_value)[-1]
    for label in found.systems():
        row: dict[str, Any] = {"system": label}
        for value in found.by_value:
            s, key = ranked[value].get(label), found.short(value)
            row |= {key: s and s.value, f"{key}_low": s and s.low, f"{key}_high": s and s.high}
        row["trained"] = (
            _trained(found.by_value[last].systems[label]) if label in found.by_value[last].systems else None
        )
        rows.append(row)
    columns = [Column("system", text("system"))]
    columns += [Column(found.said(value), with_interval(found.short(value))) for value in found.by_value]
    columns.append(Column(f"parameters trained, {found.said(last)}", number("trained", 0)))
    return Table(f"axis_{metric}", f"{capital(named(metric))}, mean over tasks (95 % interval)", rows, columns)


def source_table(found: Findings, metric: str) -> Table:
    """Test sources and tasks by systems; a source's mean with its interval stands before its tasks (Tables 1, 4 to 7)."""
    results = found.by_value[next(iter(found.by_value))]
    labels, rows = found.systems(), []
    measured = results.tasks_of(metric)
    for source in dict.fromkeys(task.split("/")[0] for task in measured):
        tasks = [task for task in measured if task.split("/")[0] == source]
        ranked = {s.label: s for s in standings(results, metric, tasks)}
        row: dict[str, Any] = {"test": f"{source}: mean of {len(tasks)}"}
        for label in labels:
            s = ranked[label]
            row |= {label: s.value, f"{label}_low": s.low, f"{label}_high": s.high}
        rows.append(row)
        for task in tasks:
            values = {label: results.systems[label].task_mean(metric, task) for label in labels}
            rows.append(
                {
                    "test": task,
                    **{k: v for n in labels for k, v in ((n, values[n]), (f"{n}_low", None), (f"{n}_high", None))},
                }
            )
    columns = [Column("test", text("test")), *(Column(label, with_interval(label)) for label in labels)]
    return Table(
        f"sources_{metric}", f"{capital(named(metric))} on benchmarks that nothing was trained on", rows, columns
    )


def loss_table(found: Findings) -> Table:
    """Training loss on the way, at every value of the axis."""
    curves = [
        ({AXES[found.axis] if found.axis else "at": found.short(value), "system": label}, curve)
        for value, results in found.by_value.items()
        for label, curve in curves_of(results.systems.values()).items()
    ]
    return curves_table("curves", "Training loss on the way", curves)


def family_table(found: Findings, which: str) -> Table:
    """Paired tests over the same rows, p corrected over all of a metric: a key of ``_CAPTIONS``."""
    more: dict[str, Callable[[PairedTest], str | None]] = {}
    if found.axis and which in ("rotation", "where_it_counts"):  # made at every value of the axis
        more["at"] = lambda test: found.said(test.at)
    if which == "rotation":
        more["single seeds"] = lambda test: _of_seeds(found, test)
    return tests_table(which, _CAPTIONS[which], getattr(found, which), more)


_CAPTIONS = {
    "rotation": "Radar against the other gates and the controls, paired over rows",
    "where_it_counts": "The same over the tasks whose own expert beats the base",
    "change": "The last value of the axis against the first, paired over rows",
    "resists": "That change of radar less the same change of another system, paired over rows",
}


def _of_seeds(found: Findings, test: PairedTest) -> str | None:
    """The difference in each seed that both systems have."""
    results = found.by_value[test.at]
    first, second = results.systems[test.first], results.systems[test.second]
    if first.seeds != second.seeds or len(first.seeds) < 2:
        return None
    tasks, metric = results.tasks_of(test.metric), test.metric
    return ", ".join(f"{d:+.3f}" for d in first.seed_means(metric, tasks) - second.seed_means(metric, tasks))


def _trained(system: System) -> float | None:
    return None if system.label == ORACLE else system.measured("trained_parameters")
