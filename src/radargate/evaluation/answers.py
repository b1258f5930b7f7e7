"""How a generated answer is judged: one table from task names to metrics, which a row's own ``metric`` field overrides."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from radargate.data.rows import Row
from radargate.errors import DataError

CHOICE = "choice"  # rows with choices are ranked, not generated
EXACT = "exact_match"
MATH = "math"
TRANSLATION = "translation"

# the first pattern that fits a task's name decides; a task that fits none is compared after strip and lower-case
TASK_METRICS = (
    ("gsm8k*", MATH),
    ("math", MATH),
    ("math500", MATH),
    ("math_500", MATH),
    ("minerva_math*", MATH),
    ("hendrycks_math*", MATH),
    ("asdiv*", MATH),
    ("svamp*", MATH),
    ("addsub", MATH),
    ("multiarith", MATH),
    ("singleeq", MATH),
    ("mawps*", MATH),
    ("wmt[0-9]*", TRANSLATION),
    ("iwslt[0-9]*", TRANSLATION),
    ("multi30k*", TRANSLATION),
    ("flores*", TRANSLATION),
)
_NEEDS = {MATH: ("math_verify", "math-verify"), TRANSLATION: ("sacrebleu", "sacrebleu")}


@dataclass(frozen=True)
class Verdict:
    """What judging one generated answer gave.

    Attributes:
        correct: right by the row's metric; for a translation, equal to the reference.
        values: per-row numbers, such as the sentence's chrF.
        stats: per-row counts that corpus-level metrics add up.
        timed_out: the checker gave no verdict in time, which counts as wrong.
    """

    correct: bool
    values: Mapping[str, float] = field(default_factory=dict)
    stats: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    timed_out: bool = False


def metric_of(row: Row) -> str:
    """The name of the metric that judges a row."""
    if row.choices:
        return CHOICE
    return row.metric or next((metric for pattern, metric in TASK_METRICS if fnmatchcase(row.task, pattern)), EXACT)


def check_metrics(rows: Iterable[Row]) -> None:
    """Raise `DataError` where a row's metric needs a package that is not installed, before anything is scored."""
    seen: dict[str, Row] = {}
    for row in rows:
        seen.setdefault(metric_of(row), row)
    for metric, row in seen.items():
        module, package = _NEEDS.get(metric, ("", ""))
        if module and importlib.util.find_spec(module) is None:
            raise DataError(
                f"task {row.task!r}: the metric {metric!r} needs {package}: pip install 'radargate[eval]'. "
                f'Or give its rows "metric": "{EXACT}", to compare answers after strip and lower-case.'
            )


def judge(row: Row, answer: str) -> Verdict:
    """Judge one generated answer by its row's metric."""
    metric = metric_of(row)
    same = answer.strip().lower() == row.target.strip().lower()
    if metric == MATH and not same:
        from radargate.evaluation.math_answers import equal_answers

        verdict = equal_answers(row.target, answer)
        return Verdict(bool(verdict), timed_out=verdict is None)
    if metric == TRANSLATION:
        from radargate.evaluation.translation import sentence_chrf, sentence_stats

        text = first_line(answer) if "\n" not in row.target.strip() else answer.strip()
        values = {"chrf": sentence_chrf(text, row.target)}
        return Verdict(text.lower() == row.target.strip().lower(), values, sentence_stats(text, row.target))
    return Verdict(same)


def first_line(text: str) -> str:
    """The first line that is not empty: lm-eval ends a translation there too."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
