"""The first part of the results page: what a user should take, from the records of the strongest rivals."""

from __future__ import annotations

from pathlib import Path

from radargate.comparison.ranking import compare_pairs, standings
from radargate.comparison.results import ORACLE, Results, read_results
from radargate.io.records import read_records
from radargate.paper.findings import read_findings
from tables import markdown

# label in the records → what it is
SHOWN = {
    "base": "base",
    ORACLE: "each task's own adapter (has to be told the task)",
    "union LoRA on all rows": "one LoRA trained on all adapters' rows and the gate's",
    "uniform (mole)": "uniform",
    "select (mole)": "select",
    "select by=centroid (mole)": "select, by=centroid",
    "select features=hidden (mole)": "select, features=hidden",
    "stretch (mole)": "stretch",
    "radar (mole)": "radar",
    "radar with Q = 0 (mole)": "radar, its rotation switched off after training",
    "stretch router=text (mole)": "stretch, router=text",
    "radar router=text (mole)": "radar, router=text",
    "stretch router=prompt router_start=select (mole)": "stretch, router=prompt, started from select",
    "radar router=prompt router_start=select (mole)": "radar, router=prompt, started from select",
}


def routed(results: Path) -> Results:
    """Five tasks whose own adapters beat the base: `radargate experiment routed`, one seed."""
    return read_findings(read_records(results / "routed_rivals" / "records.jsonl")).by_value[None]


def quickstart(results: Path) -> Results:
    """The quickstart's ten tasks on its five adapters."""
    return read_results(read_records(results / "quickstart_routers" / "records.jsonl"))


def section(results: Path) -> list[str]:
    """A table of both, and how far each system is from ``select``."""
    found = {"routed": routed(results), "quickstart": quickstart(results)}
    rows = []
    for label, words in SHOWN.items():
        cells = [_cell(each, label, metric) for each in found.values() for metric in ("acc", "nll")]
        if any(cells):
            rows.append([words, *cells])
    header = ["system", *(f"{name}: {metric}" for name in found for metric in ("accuracy", "NLL"))]
    parts = [
        "## What to take",
        "[choosing.md](choosing.md) says how to decide; this is what we measured. *routed*: five short tasks whose own adapters beat the base (120 steps each), gates of 60 steps, 50 test rows a "
        "task, float32. *quickstart*: ten built-in tasks on five shipped adapters, 15 test rows a task, bfloat16. One seed each, so that differences are over rows only; brackets are 95 % "
        "intervals over rows. NLL: nats a token of the right answer, lower is better.",
        markdown(header, rows),
        "**Difference to `select`**, over the same rows (paired sign flips, uncorrected):",
        markdown(["system", "experiment", "accuracy", "p", "NLL", "p"], _against_select(found)),
    ]
    return parts


def _cell(found: Results, label: str, metric: str) -> str:
    if label not in found.systems:
        return ""
    standing = next(s for s in standings(found, metric) if s.label == label)
    return f"{standing.value:.3f} [{standing.low:.3f}, {standing.high:.3f}]"


def _against_select(found: dict[str, Results]) -> list[list[str]]:
    rows = []
    for name, results in found.items():
        labels = [
            label
            for label in SHOWN
            if label in results.systems and label not in ("base", "select (mole)", "uniform (mole)")
        ]
        pairs = [(label, "select (mole)") for label in labels]
        by_metric = [compare_pairs(results, metric, pairs) for metric in ("acc", "nll")]
        for acc, nll in zip(*by_metric, strict=True):
            rows.append(
                [SHOWN[acc.first], name, f"{acc.difference:+.3f}", _p(acc.p), f"{nll.difference:+.3f}", _p(nll.p)]
            )
    return rows


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
