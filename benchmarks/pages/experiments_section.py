"""The results page's part on the paper's experiments, from the records of `radargate experiment`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from radargate.io.records import read_records
from radargate.paper.catalog import EXPERIMENTS
from radargate.paper.findings import Findings, read_findings
from radargate.paper.page import Parts, make_parts
from radargate.paper.summary import heading, settings_table


def section(folder: Path) -> list[str]:
    """Tables and figures of every experiment that was run; nothing where there are no records."""
    parts: list[str] = []
    for name, found, made in _experiments(folder):
        machine, records = found.request["machine"], f"benchmarks/results/experiments/{name}"
        more = {
            "tasks": ", ".join(_sources(found)),
            "base": ", ".join(found.request["design"]["bases"]),
            "machine": f"{machine['cpu']}, {machine['cores']} cores",
            "records": f"[{records}](../{records})",
        }
        parts += [f"## Experiment: {name}", *heading(found)]
        parts += [f"**{table.caption}**\n\n{table.markdown()}" for table in made.summary if table.rows]
        parts += [f"![{caption}]({_file(name, number)})" for number, (caption, _) in enumerate(made.figures, 1)]
        parts += [
            f"**{table.caption}**\n\n{table.markdown()}"
            for table in (*made.tables, settings_table(found, more))
            if table.rows
        ]
    return parts


def _sources(found: Findings) -> list[str]:
    """Where the tasks are from."""
    design = found.request["design"]
    named = [name.split("/") for name in design.get("named", ())]
    return sorted({source for source, task in named if task in found.request["tasks"]}) or [design["source"]]


def pictures(folder: Path) -> dict[str, str]:
    """File name, beside the page → SVG."""
    return {
        _file(name, number): draw()
        for name, _, made in _experiments(folder)
        for number, (_, draw) in enumerate(made.figures, 1)
    }


def _experiments(folder: Path) -> Iterator[tuple[str, Findings, Parts]]:
    for name in EXPERIMENTS.names():
        if (found := findings_of(folder / name)) is not None:
            yield name, found, make_parts(found)


@functools.cache
def findings_of(folder: Path) -> Findings | None:
    """What an experiment found, or None where it was not run."""
    file = folder / "records.jsonl"
    return read_findings(read_records(file)) if file.exists() else None


def _file(name: str, number: int) -> str:
    return f"experiment-{name}-{number}.svg"
