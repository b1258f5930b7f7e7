"""The report of an experiment: tables, figures, CSV files, all from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from radargate.comparison.curves import curves_of, smoothed
from radargate.comparison.ranking import WORDS, Standing, standings
from radargate.comparison.results import CHRF, METRICS
from radargate.io.disk import writing
from radargate.io.records import write_atomic
from radargate.paper.design import AXES
from radargate.paper.findings import Findings, read_findings
from radargate.paper.probes import angle_parts, hull_parts
from radargate.paper.summary import experts_table, heading, leaders_table, rivals_table, settings_table
from radargate.paper.tables import axis_table, family_table, last_table, loss_table, source_table, task_table
from radargate.report import charts
from radargate.report.table import Table

_SUBJECTS = ("select", "radar router=text", "radar", "union LoRA on all rows")
_UNITS = {"acc": "mean accuracy (share of right answers)", "nll": "mean NLL (nats a token)"}
Figure = tuple[str, Callable[[], str]]  # what it shows, and what draws it


@dataclass(frozen=True)
class Parts:
    """What a layout makes of the findings; ``summary`` comes first, and is what the command line prints."""

    summary: Sequence[Table]
    tables: Sequence[Table]
    figures: Sequence[Figure]


def write_report(records: Sequence[Mapping[str, Any]], out: str | Path) -> tuple[Path, str]:
    """Write ``report.md``, ``figure-N.svg`` and ``csv/`` into ``out``; returns the report's path and its summary."""
    found, out = read_findings(records), Path(out)
    parts = make_parts(found)
    summary = "\n\n".join([*heading(found), *(table.markdown() for table in parts.summary if table.rows)])
    lines = [f"# {found.request['case']}", "", *(line for words in heading(found) for line in (words, ""))]
    with writing("the report", out):
        (out / "csv").mkdir(parents=True, exist_ok=True)
        lines += _written(parts.summary, out)
        for number, (caption, draw) in enumerate(parts.figures, 1):
            try:
                picture = draw()
            except ModuleNotFoundError as error:
                lines += [f"No figure ({caption}): {error.name} is missing; pip install 'radargate[report]'.", ""]
                continue
            write_atomic(out / f"figure-{number}.svg", picture)
            lines += [f"![{caption}](figure-{number}.svg)", "", f"*{caption}.*", ""]
        lines += _written([*parts.tables, settings_table(found)], out)
        lines += [f"Made from `records.jsonl` (commit {found.request['commit'] or 'unknown'})."]
        report = out / "report.md"
        write_atomic(report, "\n".join(lines) + "\n")
    return report, summary


def _written(tables: Sequence[Table], out: Path) -> list[str]:
    """Write each table's CSV file; the report's lines."""
    lines: list[str] = []
    for table in tables:
        if table.rows:
            write_atomic(out / "csv" / f"{table.name}.csv", table.csv())
            lines += [f"**{table.caption}** ([CSV](csv/{table.name}.csv))", "", table.markdown(), ""]
    return lines


def make_parts(found: Findings) -> Parts:
    """The tables and figures of an experiment's layout."""
    return LAYOUTS[found.request["layout"]](found)


def _short(found: Findings) -> list[Table]:
    return [leaders_table(found), rivals_table(found), experts_table(found)]


def _task_parts(found: Findings) -> Parts:
    tables = [*(task_table(found, metric) for metric in METRICS), *_tests(found)]
    figures = _axis_figures(found) if len(found.by_value) > 1 else [_interval_figure(found, m) for m in METRICS]
    return Parts(_short(found), tables, figures)


def _tests(found: Findings) -> list[Table]:
    return [family_table(found, which) for which in ("rotation", "where_it_counts", "change", "resists")]


def _axis_parts(found: Findings) -> Parts:
    by_task = [last_table(found, metric) for metric in METRICS] if len(found.by_value) > 1 else []
    tables = [*(axis_table(found, metric) for metric in METRICS), *by_task, *_tests(found)]
    return Parts(_short(found), tables, _axis_figures(found))


def _curve_parts(found: Findings) -> Parts:
    figures: list[Figure] = []
    for value, results in found.by_value.items():
        lines = {found.drawn(n): smoothed(curve) for n, curve in curves_of(results.systems.values()).items()}
        caption = f"Training loss, {found.said(value)}"
        figures.append((caption, partial(charts.curves, lines, "step", "training loss (smoothed)", caption)))
    tables = [loss_table(found), *(axis_table(found, metric) for metric in METRICS)]
    return Parts([leaders_table(found)], tables, figures)


def _source_parts(found: Findings) -> Parts:
    results = next(iter(found.by_value.values()))
    metrics = [*METRICS, *([CHRF] if results.tasks_of(CHRF) else [])]
    measured: dict[str, list[str]] = {}
    for task in results.tasks_of("acc"):
        measured.setdefault(task.split("/")[0], []).append(task)
    caption = "Accuracy of every system on every benchmark"

    def draw() -> str:
        means = {s: {x.label: x.value for x in standings(results, "acc", tasks)} for s, tasks in measured.items()}
        values = {label: {source: means[source][label] for source in measured} for label in found.systems()}
        return charts.heat_map(values, "benchmark", caption)

    tables = [*(source_table(found, metric) for metric in metrics), family_table(found, "rotation")]
    return Parts([leaders_table(found)], tables, [(caption, draw), _interval_figure(found, "nll")])


def _probed(make: Callable[[Findings], tuple[list[Table], list[Figure]]]) -> Callable[[Findings], Parts]:
    """A layout of a probe's findings, followed by the scores."""

    def parts(found: Findings) -> Parts:
        tables, figures = make(found)
        scores = [task_table(found, metric) for metric in METRICS]
        return Parts(tables[:1], [*tables[1:], *scores, family_table(found, "rotation")], figures)

    return parts


LAYOUTS: dict[str, Callable[[Findings], Parts]] = {
    "tasks": _task_parts,
    "axis": _axis_parts,
    "curves": _curve_parts,
    "sources": _source_parts,
    "angles": _probed(angle_parts),
    "hull": _probed(hull_parts),
}


def _interval_figure(found: Findings, metric: str) -> Figure:
    results = next(iter(found.by_value.values()))
    ranked = standings(results, metric)
    off = _off_scale(ranked)
    rows = [(found.drawn(s.label), _spread(s)) for s in ranked if s not in off]
    caption = f"Mean {WORDS[metric]} over tasks with 95 % intervals over rows, seeds averaged"
    caption += _left_out(off)
    shown = [found.drawn(label) for label in _emphasised([s.label for s in ranked])]
    return caption, lambda: charts.intervals(rows, _UNITS[metric], caption, shown)


def _emphasised(labels: Sequence[str]) -> list[str]:
    """The systems that a figure is about; all others are grey."""
    return [label for name in _SUBJECTS for label in labels if label.partition(" (")[0] == name]


def _off_scale(ranked: Sequence[Standing]) -> list[Standing]:
    """The base, where it would leave no room for the others."""
    return [s for s in ranked if s.label == "base" and _far(s, [other for other in ranked if other is not s])]


def _left_out(off: Sequence[Standing]) -> str:
    return "".join(f"; {s.label}, {s.value:.3f}, is off the scale" for s in off)


def _far(one: Standing, others: Sequence[Standing]) -> bool:
    """Whether its interval would squeeze all others into a corner of the figure."""
    low, high = min((s.low for s in others), default=one.low), max((s.high for s in others), default=one.high)
    return max(one.low - high, low - one.high) > high - low


def _spread(s: Standing) -> dict[str, float]:
    return {"value": s.value, "low": s.low, "high": s.high}


def _axis_figures(found: Findings) -> list[Figure]:
    """Mean over tasks along the axis, a line a system; names instead of a line where the axis has no numbers."""
    assert found.axis is not None
    figures: list[Figure] = []
    for metric in METRICS:
        ranked = {value: standings(results, metric) for value, results in found.by_value.items()}
        caption = f"Mean {WORDS[metric]} over tasks with 95 % intervals over rows, by {AXES[found.axis]}"
        if found.axis in ("bases", "leave_one_out") or len(ranked) < 2:
            rows = [(f"{found.drawn(s.label)}, {found.short(v)}", _spread(s)) for v in ranked for s in ranked[v]]
            subjects = [(label, v) for v in ranked for label in _emphasised([s.label for s in ranked[v]])]
            shown = [f"{found.drawn(label)}, {found.short(v)}" for label, v in subjects]
            figures.append((caption, partial(charts.intervals, rows, _UNITS[metric], caption, shown)))
            continue
        off = [_off_scale(each) for each in ranked.values()]
        emphasised = _emphasised(found.systems())
        references = [found.drawn(label) for label in found.systems() if label not in emphasised]
        lines = {
            found.drawn(label): {
                found.short(v): (s.value, s.low, s.high) for v in ranked for s in ranked[v] if s.label == label
            }
            for label in found.systems()
            if not (all(off) and label == "base")
        }
        caption += _left_out(off[0] if all(off) else [])
        title = "training rows a task" if found.axis == "rows" else AXES[found.axis]
        figures.append((caption, partial(charts.series, lines, title, _UNITS[metric], caption, references)))
    return figures
