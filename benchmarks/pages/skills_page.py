"""docs/skills.md: what composed skills are, with samples from the generators."""

from __future__ import annotations

import functools

import numpy as np

from radargate.data.builtin.skills import PAIRS, skill_rows
from radargate.evaluation.metrics import row_values
from radargate.evaluation.resampling import bootstrap_intervals
from radargate.io.records import read_records
from radargate.paper.skills.contrast import Difference, Result, contrast, read_cells
from radargate.paper.skills.design import CONTRAST, CONTRAST_ROWS
from radargate.report import charts
from radargate.report.table import markdown
from sources import RESULTS

RECORDS = RESULTS / "skills" / "records.jsonl"
SMALL_LORA = "lora, signed's size"  # beside stretch, of rank 1
SHOWN = ("two-pass", *CONTRAST, SMALL_LORA, "uniform", "sum", "select", "expert: sum", "expert: number_word", "base")

BEFORE = """
Every other benchmark here asks for one skill at a time, so that picking one adapter for each prompt is hard to beat. These tasks need two adapters in
one answer. `builtin:skills` makes them: seven atomic skills, of which one expert each is trained, and eight composed tasks in four pairs, no row of which
is in any expert's data. One language of each pair has composed training rows, the other has none.
"""
FORM = """
The first expert learns to answer `25 =`, the second to answer `25 = fünfundzwanzig` to `Write 25 in German.`, and the composed answer is the second's.
So every token of it is, at its place, one that an expert writes itself, and a mixture that cannot leave the experts' hull is able to write all of them. The units of
composed rows (sums in either order, sequences, amounts, dates) are in no atomic row. Number words are facts: none is held out, and a test row of an atomic skill asks for
one in a phrasing in which it was never trained. Answers are checked a second way in the tests.
"""
AFTER = """
## Run it

```bash
radargate experiment skills --dry-run                                  # cells and hours
radargate experiment skills --smoke                                    # minutes; says nothing of quality
radargate experiment skills --experts benchmarks/skills --pairs sum-number_word --rows 50 --expert-seeds 1 --seeds 1 --resume
radargate experiment skills-tuning --experts benchmarks/skills         # learning rates, on validation rows
```

Without `--experts` all experts are trained first. Each is scored on its own test rows before any cell is run, and a pair of which one is below 0.9 is left out, with the number.
The base is read without its chat template, whose system text would be longer than these prompts. What was found: [results](results.md).
"""


def page() -> str:
    """The whole page."""
    lines = [
        "# Composed skills",
        *BEFORE.splitlines(),
        "",
        "## Samples",
        "",
        _samples(),
        "",
        "## The form",
        *FORM.splitlines(),
    ]
    return "\n".join([*lines, *AFTER.splitlines()]) + "\n"


def _samples() -> str:
    rows = []
    for pair in PAIRS:
        second = skill_rows(pair.second, "test")[0]
        for number, task in enumerate(pair.composed):
            row = skill_rows(task, "test")[0]
            state = "held out" if number else "200 training rows"
            rows.append([f"`{task}` ({state})", row.prompt, row.target])
        first = skill_rows(pair.first, "test")[0]
        rows += [[f"atom `{atom}`", r.prompt, r.target] for atom, r in ((pair.first, first), (pair.second, second))]
    kept = {tuple(row): row for row in rows}
    return markdown(["task", "prompt", "answer"], list(kept.values()))


@functools.cache
def cells() -> list[Result]:
    """What was run on the first pair with the contrast's rows, or without any."""
    found = read_cells(read_records(RECORDS))
    return [cell for cell in found if cell.pair == found[0].pair and cell.rows in (CONTRAST_ROWS, None)]


def exact(label: str) -> dict[str, float]:
    """Exact match of a system with its 95 % interval over rows, seeds averaged."""
    own = [cell for cell in cells() if cell.label == label]
    groups = [
        np.mean([row_values(cell.tasks[task], "acc") for cell in own], 0)[:, None].astype(float)
        for task in own[0].tasks
    ]
    low, high = bootstrap_intervals(groups)
    return {"value": float(np.mean([group.mean() for group in groups])), "low": float(low[0]), "high": float(high[0])}


def against(other: str) -> Difference:
    """Exact match of radar less another system's, over units of seeds."""
    return next(d for d in contrast(cells()) if d.other == other)


def units() -> int:
    """Units of seeds that the contrast has."""
    return min(len(d.units) for d in contrast(cells()))


def chart() -> str:
    """Exact match of every system on the composed tasks."""
    known = {cell.label for cell in cells()}
    rows = sorted(((label, exact(label)) for label in SHOWN if label in known), key=lambda row: -row[1]["value"])
    return charts.intervals(
        rows,
        "exact match",
        "Exact match where an answer needs two adapters",
        ("radar", "multiplicative", "stretch", "fresh"),
    )
