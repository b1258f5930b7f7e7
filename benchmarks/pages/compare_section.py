"""The results page's part on every system side by side, from the records of `radargate compare`."""

from __future__ import annotations

from pathlib import Path

from radargate.comparison.page import compare_table
from radargate.io.records import read_records


def section(folder: Path) -> list[str]:
    """Summary, ranking and paired tests; nothing where there are no records."""
    path = folder / "records.jsonl"
    if not path.exists():
        return []
    records = read_records(path)
    one = next(r for r in records if r["suite"] == "eval")
    request = next(r for r in reversed(records) if r["suite"] == "compare")["request"]
    return [
        f"## Every system side by side, {request['seeds']} seeds, a very small budget",
        f"`radargate compare` over {len(request['experts'])} experts, one a task ({', '.join(request['tasks'])}): the gates, rules and architectures "
        f"below, {request['seeds']} seeds, {request['steps']} steps of "
        f"{request['batch_size']} rows, the first {request['limit']} test rows of each task. The budget is what two cores could do beside other work, so the "
        "intervals are wide and most orders below are not significant; the table above with three seeds and more rows weighs more. "
        f"Hydra's experts share A and were trained for it, so their rows differ in experts as well. {one['machine']['cpu']}, {one['machine']['cores']} cores; commands in "
        "[benchmarks/results/compare/commands.sh](../benchmarks/results/compare/commands.sh), the whole report as a page in "
        "[benchmarks/results/compare/report.html](../benchmarks/results/compare/report.html).",
        compare_table(records),
    ]
