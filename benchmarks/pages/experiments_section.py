"""The results page's part on the paper's experiments, from the records of `radargate experiment`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from radargate.io.records import read_records
from radargate.paper.catalog import EXPERIMENTS
from radargate.paper.findings import Findings, read_findings
from radargate.paper.page import Parts, basis, make_parts


def section(folder: Path) -> list[str]:
    """Words, figures and tables of every experiment that was run; nothing where there are no records."""
    parts: list[str] = []
    for name, found, made in _experiments(folder):
        machine = found.request["machine"]
        parts += [f"## Experiment: {name}", *made.words]
        parts += [f"![{caption}]({_file(name, number)})" for number, (caption, _) in enumerate(made.figures, 1)]
        parts += [f"**{table.caption}**\n\n{table.markdown()}" for table in made.tables if table.rows]
        design = found.request["design"]
        named = [name.split("/") for name in design.get("named", ())]
        learned = {source for source, task in named if task in found.request["tasks"]}
        source = ", ".join(sorted(learned)) or design["source"]
        records = f"benchmarks/results/experiments/{name}"
        parts.append(
            f"{source}, {', '.join(design['bases'])}: {basis(found)} {machine['cpu']}, "
            f"{machine['cores']} cores; records in [{records}](../{records}), command in "
            "[benchmarks/results/experiments/commands.sh](../benchmarks/results/experiments/commands.sh)."
        )
    return parts


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
