"""The answers of a comparison in short: who leads, is that more than chance, and is rotation worth it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from radargate.comparison.analysis import BASELINE, SUBJECT, Analysis
from radargate.comparison.ranking import RULE, TIE, PairedTest, named
from radargate.comparison.results import METRICS, ORACLE, Results
from radargate.report.table import NOTHING, Column, Table, number, text


def finished(results: Results) -> str:
    """How many cells are finished, and which are left out."""
    left_out = f"; left out, as a task is missing: {', '.join(results.incomplete)}" if results.incomplete else ""
    return f"{results.finished} of {results.planned or 'an unknown number of'} cells finished{left_out}"


def summary_table(analysis: Analysis) -> Table:
    """One row a question, one column a metric."""
    rows = [{"what": what, **{metric: say(analysis, metric) for metric in METRICS}} for what, say in _QUESTIONS.items()]
    columns = [Column("question", text("what")), *(Column(named(metric), text(metric)) for metric in METRICS)]
    return Table("summary", f"In short; significant: {RULE}", rows, columns, numbers_from=9)


def price_table(analysis: Analysis) -> Table:
    """What rotation costs: radar's parameters and training time, as multiples of the baseline's."""
    rows = []
    for architecture in analysis.results.architectures():
        pair = [analysis.results.find(name, architecture) for name in (SUBJECT, BASELINE)]
        row: dict[str, str | float | None] = {"architecture": architecture}
        for key in ("trained_parameters", "train_seconds"):
            ours, theirs = (system.measured(key) if system else None for system in pair)
            row[key] = ours / theirs if ours and theirs else None
        if any(row[key] for key in ("trained_parameters", "train_seconds")):
            rows.append(row)
    columns = [
        Column("architecture", text("architecture")),
        Column("trained parameters", number("trained_parameters", 1)),
        Column("training time", number("train_seconds", 1)),
    ]
    return Table("price", f"What rotation costs: {SUBJECT} / {BASELINE}", rows, columns)


def _mean(analysis: Analysis, metric: str) -> str:
    s = next(s for s in analysis.standings[metric] if s.label == analysis.leaders[metric])
    return f"{s.value:.3f} ({s.low:.3f} to {s.high:.3f})"


def _level(analysis: Analysis, metric: str) -> str:
    return _listed([t.second for t in analysis.against_leader[metric] if abs(t.difference) <= TIE])


def _behind(analysis: Analysis, metric: str) -> str:
    tests = analysis.against_leader[metric]
    return f"{sum(t.better == t.first for t in tests)} of {len(tests)}"


def _close(analysis: Analysis, metric: str) -> str:
    order = [s.label for s in analysis.standings[metric]]
    close = {t.second for t in analysis.against_leader[metric] if t.better != t.first}
    return _listed(sorted(close, key=order.index))


def _oracle(analysis: Analysis, metric: str) -> str:
    return next((f"{s.value:.3f}" for s in analysis.standings[metric] if s.label == ORACLE), NOTHING)


def _helped(analysis: Analysis, metric: str) -> str:
    tasks, worth = analysis.counting(metric), analysis.worth[metric]
    return f"{len(tasks)} of {len(worth)}{': ' * bool(tasks)}{', '.join(tasks)}" if worth else NOTHING


def _rotation(holds: Callable[[PairedTest], bool], controls: bool) -> Callable[[Analysis, str], str]:
    """Under how many architectures ``holds`` is true of radar against the baseline, or against it and all controls at once."""

    def say(analysis: Analysis, metric: str) -> str:
        by_architecture: dict[str, list[bool]] = {}
        for test in analysis.rotation[metric]:
            other = analysis.results.systems[test.second]
            if controls or other.name == BASELINE:
                by_architecture.setdefault(other.architecture or "", []).append(holds(test))
        found = by_architecture.values()
        return f"{sum(map(all, found))} of {len(found)} architectures" if found else NOTHING

    return say


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or NOTHING


_QUESTIONS: dict[str, Callable[[Analysis, str], str]] = {
    "best system": lambda analysis, metric: analysis.leaders[metric],
    "its mean (95 % interval)": _mean,
    "level with it": _level,
    "significantly worse than it": _behind,
    "not significantly worse": _close,
    "oracle (each task's own expert)": _oracle,
    "tasks whose own expert beats the base (p < 0.05)": _helped,
    f"{SUBJECT} significantly better than {BASELINE}": _rotation(lambda test: test.better == test.first, False),
    f"{SUBJECT} significantly worse than {BASELINE}": _rotation(lambda test: test.better == test.second, False),
    f"{SUBJECT} significantly better than {BASELINE} and all controls": _rotation(
        lambda test: test.better == test.first, True
    ),
}
