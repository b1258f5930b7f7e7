"""Every folder of scores under benchmarks/results as systems on the same rows, whatever command wrote it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radargate.comparison.ranking import PairedTest, Standing, compare_pairs, standings
from radargate.comparison.results import ORACLE, Results, System, read_results
from radargate.evaluation.metrics import row_values
from radargate.io.records import read_records
from radargate.paper.findings import Findings, read_findings

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BASES = ("base", "smollm2-135m")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """One experiment: its folder, and its systems at every value of its axis (a single None where it has none)."""

    folder: Path
    by_value: Mapping[Any, Results]
    findings: Findings | None = None

    @property
    def name(self) -> str:
        """Of its folder, and of its page."""
        return self.folder.name.replace("_", "-")

    @property
    def results(self) -> Results:
        """The systems at the last value of its axis."""
        return list(self.by_value.values())[-1]

    def label(self, system: str) -> str:
        """A system's label in the records; ``(mole)``, the default architecture, may be left out."""
        found = self.results.systems
        return next((label for label in (system, f"{system} (mole)") if label in found), system)

    def standing(self, system: str, metric: str, at: Any = None) -> Standing:
        """A system's mean over tasks."""
        results = self.results if at is None else self.by_value[at]
        return next(s for s in standings(results, metric) if s.label == self.label(system))

    def test(self, first: str, second: str, metric: str, at: Any = None) -> PairedTest:
        """``first - second`` over the same rows."""
        results = self.results if at is None else self.by_value[at]
        return compare_pairs(results, metric, [(self.label(first), self.label(second))])[0]

    @property
    def rows(self) -> int:
        """Scored rows of all tasks together."""
        any_system = next(iter(self.results.systems.values()))
        return sum(any_system.rows["nll"][task].shape[1] for task in self.results.tasks)

    @property
    def seeds(self) -> int:
        """Of the system that has most."""
        return max(len(s.seeds) for s in self.results.systems.values())


def sources() -> dict[str, Source]:
    """Name of the page → experiment, of every folder that holds scores."""
    found = {}
    for folder in sorted({file.parent for file in RESULTS.rglob("*.jsonl")}):
        if (source := _source(folder)) is not None:
            found[source.name] = source
    return found


@functools.cache
def _source(folder: Path) -> Source | None:
    records = [r for name in ("records", "scores") for r in _read(folder / f"{name}.jsonl")]
    suites = {r["suite"] for r in records}
    if any(r["suite"] == "experiment" and r["case"].startswith("skills") for r in records):
        return None  # its page is the command's own report
    if "experiment" in suites:
        findings = read_findings(_with_all_plans(records))
        return Source(folder, findings.by_value, findings)
    if "cell" in suites:
        return Source(folder, {None: read_results(records)})
    scored = [r for r in records if r["suite"] == "eval" and "rows" in r]
    return Source(folder, {None: _plain(scored)}) if scored else None


def _with_all_plans(records: Sequence[Record]) -> list[Record]:
    """An experiment without an axis may have run in parts, with a request each; the last then gets the cells of all."""
    requests = [r for r in records if r["suite"] == "experiment"]
    last = requests[-1]
    if last["axis"] is not None:
        return list(records)
    plan = {cell["id"]: cell for request in reversed(requests) for cell in reversed(request["plan"])}
    return [*(r for r in records if r["suite"] != "experiment"), {**last, "plan": list(plan.values())[::-1]}]


def _read(file: Path) -> list[dict[str, Any]]:
    return read_records(file) if file.exists() else []


def _plain(records: Sequence[Record]) -> Results:
    """Systems of `radargate eval`: ``NAME-SEED`` is one seed of NAME; what was scored on a task alone is its own expert."""
    by_case = {(r["system"], r["task"]): r for r in records}
    tasks = tuple(dict.fromkeys(task for _, task in by_case))
    runs: dict[str, dict[int | None, str]] = {}
    for run in dict.fromkeys(name for name, _ in by_case):
        if _whole(run, tasks, by_case):
            match = re.fullmatch(r"(.+)-(\d)", run)
            name, seed = (match[1], int(match[2])) if match else ("base" if run in BASES else run, None)
            runs.setdefault(name, {})[seed] = run

    def system(name: str, kind: str, seeds: Sequence[Any], cases: Sequence[Mapping[str, Record]]) -> System:
        rows = {m: {t: np.array([row_values(c[t], m) for c in cases]) for t in tasks} for m in ("acc", "nll")}
        return System(name, kind, None, tuple(seeds), (), {**rows, "chrf": {}})

    systems = {
        name: system(name, "base" if name == "base" else "gate", runs_of, [{t: by_case[run, t] for t in tasks} for run in runs_of.values()])
        for name, runs_of in runs.items()
    }  # fmt: skip
    own = {task: [name for name, of in by_case if of == task and not _whole(name, tasks, by_case)] for task in tasks}
    if all(len(names) == 1 for names in own.values()):
        systems[ORACLE] = system(ORACLE, "oracle", [None], [{task: by_case[own[task][0], task] for task in tasks}])
    return Results(systems, tasks, len(systems), None, (), None, tuple(records))


def _whole(run: str, tasks: Sequence[str], by_case: Mapping[tuple[str, str], Record]) -> bool:
    """Whether a run was scored on every task."""
    return all((run, task) in by_case for task in tasks)
