"""docs/skills.md: what composed skills are, and what was found; samples from the generators, numbers from the records."""

from __future__ import annotations

from radargate.data.builtin.skills import PAIRS, skill_rows
from radargate.io.records import read_records
from radargate.paper.skills.page import report_lines
from radargate.report.table import markdown
from sources import ROOT

RECORDS = ROOT / "benchmarks" / "results" / "skills"
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


def page() -> str:
    """The whole page."""
    summary, tables = report_lines(read_records(RECORDS / "records.jsonl"))
    lines = ["# Composed skills", "", *summary, "## The tasks", *BEFORE.splitlines(), "", _samples(), *FORM.splitlines(), ""]
    lines += ["## Numbers", "", *tables, "## Commands and records", "", "```bash"]
    lines += [(RECORDS / "commands.sh").read_text().strip(), "```", ""]
    lines += ["Records: [benchmarks/results/skills](../benchmarks/results/skills). Experts: [benchmarks/skills](../benchmarks/skills)."]
    return "\n".join(lines) + "\n"


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
