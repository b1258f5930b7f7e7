"""Tables that hold two systems against each other: paired tests, wins and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from radargate.comparison.analysis import Analysis, contestants
from radargate.comparison.ranking import ENOUGH_SEEDS, WORDS, PairedTest
from radargate.comparison.results import METRICS
from radargate.report.table import Column, Row, Table, interval, number, probability, text

_COUNTED = ("wins", "ties", "losses")


def tests_table(
    name: str,
    caption: str,
    tests: Mapping[str, list[PairedTest]],
    more: Mapping[str, Callable[[PairedTest], str | None]] | None = None,
) -> Table:
    """Paired tests of one family, metric by metric, with p by each unit of chance and Holm's p over rows.

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
            "p_seeds": t.p_seeds,
            "p_tasks": t.p_tasks,
            "seeds": t.seeds,
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
        Column("p (rows)", probability("p")),
        Column("Holm p", probability("holm_p")),
        Column("p (seeds)", probability("p_seeds")),
        Column("p (tasks)", probability("p_tasks")),
        Column("better", _better),
    ]
    return Table(name, caption, rows, columns)


def _better(row: Row) -> str:
    """Who is, and where there were too few seeds to ask them."""
    if row["better"] is None:
        return "not significant"
    return f"{row['better']}{' (rows only)' * (row['seeds'] < ENOUGH_SEEDS)}"


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


def _counts(counts: Sequence[int], metric: str = "") -> dict[str, float | None]:
    """Wins, ties, losses and the rate of wins; ``metric`` begins their names where a row has several."""
    total, prefix = sum(counts), f"{metric}_" if metric else ""
    rate = counts[0] / total if total else None
    return {f"{prefix}{key}": value for key, value in zip((*_COUNTED, "rate"), (*counts, rate), strict=True)}


def _count_columns(title: str, metric: str = "") -> list[Column]:
    prefix = f"{metric}_" if metric else ""
    return [Column(title, number(f"{prefix}rate")), *(Column(key, text(f"{prefix}{key}")) for key in _COUNTED)]
