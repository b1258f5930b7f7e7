"""The page that shows a sample of every built-in task: ``python -m radargate.data.builtin.page > docs/tasks.md``."""

from __future__ import annotations

import sys

from radargate.data.builtin import CATEGORIES, TASKS, builtin_rows

SAMPLES = 3


def sample_page() -> str:
    """docs/tasks.md."""
    lines = [
        "# Built-in tasks",
        "",
        "Rows of the data source `builtin:NAME`, where NAME is a task, a category, or `all`. They are made on your machine from well-kept libraries and plain",
        "rules (`pip install 'radargate[builtin]'`), the same everywhere. A hash of each item decides its split, so no item stands in two.",
        "",
        f"{len(CATEGORIES)} categories, {len(TASKS.names())} tasks. Made by `python -m radargate.data.builtin.page > docs/tasks.md`.",
    ]
    for category, tasks in CATEGORIES.items():
        lines += ["", f"## {category}"]
        for task in tasks:
            counts = {split: len(builtin_rows(task, split)) for split in ("train", "validation", "test")}
            summary = TASKS.get(task).__doc__.strip().splitlines()[0]
            lines += [
                "",
                f"### {task}",
                "",
                f"{summary} {counts['train']:,} training, {counts['validation']} validation, {counts['test']} test rows.",
                "",
                "| prompt | target | choices |",
                "|---|---|---|",
            ]
            lines += [
                f"| {r.prompt} | {r.target} | {', '.join(r.choices)} |" for r in builtin_rows(task, "test")[:SAMPLES]
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(sample_page())
