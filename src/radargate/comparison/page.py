"""The report of ``radargate compare``, from its records alone: one page, Markdown, CSV files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from radargate.comparison import curves, pairs, tables
from radargate.comparison.analysis import BASELINE, SUBJECT, Analysis, analyse, rotation_pairs
from radargate.comparison.conditions import conditions, settings_table
from radargate.comparison.ranking import RULE, WORDS
from radargate.comparison.results import METRICS, System
from radargate.comparison.summary import finished, price_table, summary_table
from radargate.gates import GATES
from radargate.io.records import write_atomic
from radargate.report import dense_charts, page
from radargate.report.dense_charts import NO_GROUP, Mark
from radargate.report.table import Table

_AXIS = {"acc": "accuracy, mean over tasks (higher is better)", "nll": "NLL, mean over tasks (lower is better)"}
_COSTS = {
    "trained_parameters": "trained parameters",
    "train_seconds": "training time, s",
    "peak_memory_mb": "peak memory, MB",
}
_USAGE_SHOWN = 8
_OPEN_ROWS = 25  # longer tables are folded where a chart shows the same


def compare_page(records: Iterable[Mapping[str, Any]], reference: str | None = None) -> str:
    """The whole report as one HTML page that loads nothing.

    Args:
        records: of one comparison, finished or not (see ``radargate.io.records.read_records``).
        reference: label of the system that all are tested against; by default ``uniform``, or else the base.

    Raises:
        RadarGateError: no cell is finished, or cells were scored on different rows.
    """
    analysis = analyse(records, reference)
    parts = {
        "In short": [page.paragraph(finished(analysis.results)), summary_table(analysis).html()],
        "Ranking": _ranking(analysis),
        "Is rotation worth it?": _rotation(analysis),
        "Task by task": _tasks(analysis),
        "How training went": _training(analysis),
        "Cost against quality": _costs(analysis),
        "What each gate does": _gates(analysis),
        "Wins and ties": _wins(analysis),
        "Paired tests": _tests(analysis),
        "Conditions": [conditions(analysis), *_shown(settings_table(analysis))],
    }
    shown = {title: body for title, body in parts.items() if body}
    sections = [page.section(title, *body) for title, body in shown.items()]
    return page.page("RadarGate comparison", [sections[0], page.contents(list(shown)[1:]), *sections[1:]])


def compare_table(records: Iterable[Mapping[str, Any]], reference: str | None = None) -> str:
    """The summary, the ranking, and radar's paired tests as Markdown.

    Args:
        records: as for ``compare_page``.
        reference: as for ``compare_page``.
    """
    analysis = analyse(records, reference)
    parts = [finished(analysis.results), summary_table(analysis).markdown(), tables.ranking_table(analysis).markdown()]
    if analysis.rotation["acc"]:
        parts.append(_rotation_table(analysis).markdown())
    return "\n\n".join(parts) + "\n"


def write_csv(records: Iterable[Mapping[str, Any]], out: str | Path, reference: str | None = None) -> list[Path]:
    """Write every table of the report, unrounded, as a CSV file of its own.

    Args:
        records: as for ``compare_page``.
        out: folder, made if it is not there.
        reference: as for ``compare_page``.

    Returns:
        The files.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for table in all_tables(analyse(records, reference)):
        files.append(out / f"{table.name}.csv")
        write_atomic(files[-1], table.csv())
    return files


def all_tables(analysis: Analysis) -> list[Table]:
    """Every table of the report that has rows."""
    results = analysis.results
    found = [
        summary_table(analysis),
        tables.ranking_table(analysis),
        *(tables.task_table(analysis, metric) for metric in METRICS),
        tables.worth_table(analysis),
        *(_curves_table(analysis, architecture) for architecture in _curve_groups(analysis)),
        tables.cost_table(analysis),
        tables.gates_table(analysis),
        tables.usage_table(list(results.systems.values())),
        pairs.win_rates_table(analysis),
        pairs.wins_table(analysis),
        _rotation_table(analysis),
        price_table(analysis),
        *_other_tests(analysis),
        settings_table(analysis),
    ]
    return [table for table in found if table.rows]


def _ranking(analysis: Analysis) -> list[str]:
    parts = []
    for metric in METRICS:
        words = WORDS[metric]
        marks = _marks(analysis, metric)
        chart = dense_charts.ranking(
            marks,
            _AXIS[metric],
            f"{words} of {len(marks)} systems with 95 % intervals, best first; the table has all values",
        )
        caption = (
            f"{words}: dot and 95 % bootstrap interval over rows, a tick for each seed's mean. An empty dot is significantly "
            f"worse than the leader ({RULE}); an arrow lies off the scale."
        )
        parts += [page.heading(f"By {words}"), page.figure(chart, tables.capital(caption), narrow=True)]
    table = tables.ranking_table(analysis)
    return [*parts, page.folded("All values of the ranking", table.html(), unfolded=len(table.rows) <= _OPEN_ROWS)]


def _rotation(analysis: Analysis) -> list[str]:
    if not analysis.rotation["acc"]:
        return []
    words = "Radar rotates each expert's output besides weighing it; stretch only weighs it, and the controls spend parameters otherwise."
    table = page.folded(
        "Radar's paired tests", _rotation_table(analysis).html(), unfolded=len(analysis.rotation["acc"]) <= _OPEN_ROWS
    )
    return [page.paragraph(words), *_shown(price_table(analysis)), table]


def _tasks(analysis: Analysis) -> list[str]:
    parts = [
        page.paragraph(
            "Dark is good. The colour of a column runs over what gates and rules reach on that task; what lies beyond has the end's colour."
        )
    ]
    for metric in METRICS:
        parts += [page.heading(tables.capital(WORDS[metric])), tables.task_table(analysis, metric).html()]
    worth = tables.worth_table(analysis)
    return [*parts, *([page.heading("Tasks where an expert helps"), worth.html()] if worth.rows else [])]


def _training(analysis: Analysis) -> list[str]:
    parts = []
    for architecture, systems in _curve_groups(analysis).items():
        lines = {s.name if architecture else s.label: curves.smoothed(curves.curve_rows(s)) for s in systems}
        name = architecture or "Without an architecture"
        description = f"Training loss over steps, {name}: {', '.join(lines)}; values are in the table below"
        heavy = [line for line in lines if line in (SUBJECT, BASELINE)]
        chart = dense_charts.named_lines(lines, "step", "training loss", description, heavy)
        caption = "Mean over seeds, smoothed over a tenth of the steps. Names stand in the order of the last losses; radar and stretch are drawn thicker."
        parts += [page.heading(name), page.figure(chart, caption, narrow=True)]
        parts.append(page.folded("Values", _curves_table(analysis, architecture).html()))
    return parts


def _costs(analysis: Analysis) -> list[str]:
    parts = []
    for name, words in _COSTS.items():
        costs = {label: cost for label, s in analysis.results.systems.items() if (cost := s.measured(name)) is not None}
        panels = {WORDS[m]: [k for k in _marks(analysis, m) if k.name in costs] for m in METRICS}
        if not any(costs.values()):
            parts.append(page.paragraph(f"No system has {words.partition(',')[0]} to show.", note=True))
            continue
        chart = dense_charts.costs(
            costs, panels, words, f"Accuracy and NLL over {words}; the table has all values", _notable(analysis)
        )
        caption = f"{words}: names where there is room, the leaders and radar first; the table names all."
        parts += [page.heading(tables.capital(words)), page.figure(chart, tables.capital(caption), narrow=True)]
    return [*parts, page.folded("All costs", tables.cost_table(analysis).html())]


def _gates(analysis: Analysis) -> list[str]:
    parts = [tables.gates_table(analysis).html()] if tables.gates_table(analysis).rows else []
    chosen = [
        n
        for n in _notable(analysis)
        if analysis.results.systems[n].name in (SUBJECT, BASELINE) or n in analysis.leaders.values()
    ]
    shown = [system for n in chosen if any(tables.usage(system := analysis.results.systems[n]).values())][:_USAGE_SHOWN]
    if shown:
        words = "Mean weight of each expert on each task, seeds averaged; dark is much. The leaders, radar and stretch; the file has every gate."
        parts += [page.heading("Which expert is used where"), page.paragraph(words)]
        for i, system in enumerate(shown):
            parts.append(page.folded(system.label, tables.usage_table([system]).alone(), unfolded=i == 0))
        parts.append(tables.usage_table(list(analysis.results.systems.values())).link())
    return parts


def _wins(analysis: Analysis) -> list[str]:
    parts = [
        page.paragraph(
            "On each task, and with each seed that both have, one of two systems is better, or they are level. No significance here."
        ),
        pairs.win_rates_table(analysis).html(),
    ]
    if held := rotation_pairs(analysis.results, "control"):
        parts += [page.heading("Radar, pair by pair"), pairs.wins_table(analysis, held).html()]
    return [*parts, page.paragraph("Every pair:"), pairs.wins_table(analysis).link()]


def _tests(analysis: Analysis) -> list[str]:
    words = (
        "Differences over the same rows, seeds averaged, with two-sided p by three units of chance: rows (signs of their differences flipped; "
        "Holm's p is corrected for all rows of one table and metric), seeds (a paired t test; – with one seed) and tasks (all flips of signs; – "
        f"with more than 16). One system is called better by {RULE}; (rows only) stands where there are fewer seeds. The leader was picked on "
        "these same rows, which flatters it a little."
    )
    return [page.paragraph(words), *(page.folded(t.caption, t.html()) for t in _other_tests(analysis) if t.rows)]


def _rotation_table(analysis: Analysis) -> Table:
    caption = "Radar minus stretch and minus each control, under each architecture"
    return pairs.tests_table("tests_rotation", caption, analysis.rotation)


def _other_tests(analysis: Analysis) -> list[Table]:
    return [
        pairs.tests_table("tests_reference", f"Every system minus {analysis.reference}", analysis.against_reference),
        pairs.tests_table("tests_leader", "The leader minus every other system", analysis.against_leader),
    ]


def _shown(table: Table) -> list[str]:
    return [table.html()] if table.rows else []


def _marks(analysis: Analysis, metric: str) -> list[Mark]:
    behind = {c.second for c in analysis.against_leader[metric] if c.better == analysis.leaders[metric]}
    marks = []
    for standing in analysis.standings[metric]:
        system = analysis.results.systems[standing.label]
        seeds = [float(v) for v in system.seed_means(metric, analysis.results.tasks_of(metric))]
        group = system.architecture or NO_GROUP
        marks.append(
            Mark(system.label, standing.value, standing.low, standing.high, group, seeds, system.label in behind)
        )
    return marks


def _notable(analysis: Analysis) -> list[str]:
    """Leaders, then radar, stretch and the controls under every architecture, then base and rules."""
    results = analysis.results
    gates = [
        s
        for name in (SUBJECT, BASELINE, *GATES.having(role="control"))
        for a in results.architectures()
        if (s := results.find(name, a))
    ]
    others = [s for s in results.systems.values() if s.kind in ("oracle", "base", "rule", "told")]
    return list(dict.fromkeys([*analysis.leaders.values(), *(s.label for s in gates), *(s.label for s in others)]))


def _curve_groups(analysis: Analysis) -> dict[str | None, list[System]]:
    """Architecture, or None → its systems that have a training curve."""
    groups: dict[str | None, list[System]] = {}
    for system in analysis.results.systems.values():
        if curves.curve_rows(system):
            groups.setdefault(system.architecture, []).append(system)
    return groups


def _curves_table(analysis: Analysis, architecture: str | None) -> Table:
    losses = curves.curves_of(_curve_groups(analysis)[architecture])
    caption = f"Training loss on the way, {architecture or 'no architecture'}"
    return curves.curves_table(
        f"curves_{architecture or 'other'}", caption, [({"system": label}, curve) for label, curve in losses.items()]
    )
