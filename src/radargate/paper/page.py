"""The report of an experiment: words, tables, figures, CSV files, all from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from radargate.comparison.grid import CHRF, METRICS
from radargate.comparison.ranking import Standing, standings
from radargate.comparison.tables import WORDS, curve_rows, smoothed
from radargate.io.disk import writing
from radargate.io.records import write_atomic
from radargate.paper import words as experiment_words
from radargate.paper.design import AXES
from radargate.paper.findings import Findings, read_findings
from radargate.paper.probes import angle_parts, hull_parts
from radargate.paper.tables import axis_table, curve_table, last_table, source_table, task_table, test_table
from radargate.report import charts
from radargate.report.table import Table

Figure = tuple[str, Callable[[], str]]  # what it shows, and what draws it
RESAMPLED = {
    "angles": "pairs of experts as if no two shared one",
    "hull": "tasks",
}  # by layout; elsewhere rows within tasks


@dataclass(frozen=True)
class Parts:
    """What a layout makes of the findings."""

    words: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[Figure]


def write_report(records: Sequence[Mapping[str, Any]], out: str | Path) -> tuple[Path, list[str]]:
    """Write ``report.md``, ``figure-N.svg`` and ``csv/`` into ``out``; returns the report's path and its words."""
    found, out = read_findings(records), Path(out)
    parts = make_parts(found)
    lines = [f"# {found.request['case']}", "", *(line for word in parts.words for line in (word, ""))]
    with writing("the report", out):
        (out / "csv").mkdir(parents=True, exist_ok=True)
        for number, (caption, draw) in enumerate(parts.figures, 1):
            try:
                picture = draw()
            except ModuleNotFoundError as error:
                lines += [f"No figure ({caption}): {error.name} is missing; pip install 'radargate[report]'.", ""]
                continue
            write_atomic(out / f"figure-{number}.svg", picture)
            lines += [f"![{caption}](figure-{number}.svg)", "", f"*{caption}.*", ""]
        for table in parts.tables:
            if table.rows:
                write_atomic(out / "csv" / f"{table.name}.csv", table.csv())
                lines += [f"**{table.caption}** ([CSV](csv/{table.name}.csv))", "", table.markdown(), ""]
        lines += [f"Made from `records.jsonl` (commit {found.request['commit'] or 'unknown'}): {basis(found)}"]
        report = out / "report.md"
        write_atomic(report, "\n".join(lines) + "\n")
    return report, list(parts.words)


def make_parts(found: Findings) -> Parts:
    """The question and the answer in words, the tables and the figures of an experiment's layout."""
    request, parts = found.request, LAYOUTS[found.request["layout"]](found)
    question = f"{request['question']} ({request['paper']} of the paper)" if request["paper"] else request["question"]
    return replace(parts, words=[question, experiment_words.progress(found), *parts.words])


def _task_parts(found: Findings) -> Parts:
    tables = [*(task_table(found, metric) for metric in METRICS), *_tests(found)]
    figures = _axis_figures(found) if len(found.grids) > 1 else [_interval_figure(found, metric) for metric in METRICS]
    words = [*experiment_words.leaders(found), *experiment_words.rotation(found), *experiment_words.counting(found)]
    return Parts(words, tables, figures)


def _tests(found: Findings) -> list[Table]:
    return [test_table(found, which) for which in ("rotation", "where_it_counts", "change", "resists")]


def _axis_parts(found: Findings) -> Parts:
    words = [
        *experiment_words.leaders(found),
        *experiment_words.rotation(found),
        *experiment_words.counting(found),
        *experiment_words.change(found),
    ]
    by_task = [last_table(found, metric) for metric in METRICS] if len(found.grids) > 1 else []
    tables = [*(axis_table(found, metric) for metric in METRICS), *by_task, *_tests(found)]
    return Parts(words, tables, _axis_figures(found))


def _curve_parts(found: Findings) -> Parts:
    def draw(value: Any) -> Callable[[], str]:
        lines = {found.drawn(s.label): smoothed(c) for s in found.grids[value].systems.values() if (c := curve_rows(s))}
        return lambda: charts.curves(lines, "step", "training loss (smoothed)", f"Training loss, {found.said(value)}")

    figures = [(f"Training loss, {found.said(value)}", draw(value)) for value in found.grids]
    words = [*experiment_words.convergence(found), *experiment_words.leaders(found)]
    return Parts(words, [curve_table(found), *(axis_table(found, metric) for metric in METRICS)], figures)


def _source_parts(found: Findings) -> Parts:
    grid = next(iter(found.grids.values()))
    metrics = [*METRICS, *([CHRF] if grid.tasks_of(CHRF) else [])]
    tables = [*(source_table(found, metric) for metric in metrics), test_table(found, "rotation")]
    measured = grid.tasks_of("acc")
    sources = list(dict.fromkeys(task.split("/")[0] for task in measured))

    def draw() -> str:
        by_source = {
            source: {
                s.label: s.value for s in standings(grid, "acc", [t for t in measured if t.split("/")[0] == source])
            }
            for source in sources
        }
        values = {label: {source: by_source[source][label] for source in sources} for label in found.systems()}
        return charts.heat_map(values, "benchmark", "Accuracy of every system on every benchmark")

    figures: list[Figure] = [("Accuracy of every system on every benchmark", draw), _interval_figure(found, "nll")]
    return Parts([*experiment_words.leaders(found), *experiment_words.rotation(found)], tables, figures)


def _probed(make: Callable[[Findings], tuple[list[str], list[Table], list[Figure]]]) -> Callable[[Findings], Parts]:
    """A layout of a probe's findings, followed by the scores."""

    def parts(found: Findings) -> Parts:
        words, tables, figures = make(found)
        scores = [task_table(found, metric) for metric in METRICS]
        return Parts(
            [*words, *experiment_words.rotation(found)], [*tables, *scores, test_table(found, "rotation")], figures
        )

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
    grid = next(iter(found.grids.values()))
    ranked = standings(grid, metric)
    off = _off_scale(ranked)
    rows = [(found.drawn(s.label), _spread(s)) for s in ranked if s not in off]
    caption = f"Mean {WORDS[metric]} over tasks with 95 % intervals over rows, seeds averaged"
    caption += _left_out(off)
    return caption, lambda: charts.intervals(rows, f"mean {WORDS[metric]}", caption)


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
        ranked = {value: standings(grid, metric) for value, grid in found.grids.items()}
        caption = f"Mean {WORDS[metric]} over tasks with 95 % intervals over rows, by {AXES[found.axis]}"
        if found.axis in ("bases", "leave_one_out") or len(ranked) < 2:
            rows = [(f"{found.drawn(s.label)}, {found.short(v)}", _spread(s)) for v in ranked for s in ranked[v]]
            figures.append((caption, partial(charts.intervals, rows, f"mean {WORDS[metric]}", caption)))
            continue
        off = [_off_scale(each) for each in ranked.values()]
        composed = {label for grid in found.grids.values() for label, s in grid.systems.items() if s.architecture}
        references = [label for label in found.systems() if label not in composed]
        lines = {
            found.drawn(label): {
                found.short(v): (s.value, s.low, s.high) for v in ranked for s in ranked[v] if s.label == label
            }
            for label in found.systems()
            if not (all(off) and label == "base")
        }
        caption += _left_out(off[0] if all(off) else [])
        title = "training rows a task" if found.axis == "rows" else AXES[found.axis]
        figures.append((caption, partial(charts.points, lines, title, f"mean {WORDS[metric]}", caption, references)))
    return figures


def basis(found: Findings) -> str:
    """What the numbers rest on."""
    request, design = found.request, found.request["design"]
    left_out = f" Left out: {'; '.join(request['left_out'])}." if request["left_out"] else ""
    split = design.get("split", "test")
    rows = f"all {split} rows" if design["limit"] is None else f"up to {design['limit']} {split} rows a task"
    experts = "experts as given" if found.experts_given else f"{design['expert_steps']} for each expert"
    unit = RESAMPLED.get(request["layout"], "rows within tasks")
    own = [text.replace(":", " (").replace(",", ", ") + ")" for text in design.get("rates", ())]
    rates = f", at the rate {found.rates} unless its name says otherwise" if found.rates else ""
    rates += f"; {', '.join(own)}" if own else ""
    seeds = "seed 0" if design["seeds"] == 1 else f"seeds 0 to {design['seeds'] - 1}"
    versions = f" Cells were run by {found.commits} versions of the code." if found.commits > 1 else ""
    return (
        f"{rows}, {design['steps']} steps of {design['batch_size']} rows for each gate{rates}, {experts}, {seeds}. "
        f"Intervals resample {unit}, seeds averaged; p-values flip the signs of their differences and are corrected by Holm's method. "
        f"Both speak of these seeds and tasks; another draw of seeds may differ, as the single seeds do.{versions}{left_out}"
    )
