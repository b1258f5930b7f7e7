"""Pages written by people, with numbers from records: docs/templates/NAME becomes NAME where `TARGETS` says.

A sentence holds placeholders, ``{{ effect("routed", "radar router=text", "radar", "nll") }}``, and may hold what it depends on:
``{{ holds(test("routed", "radar", "stretch", "acc").p > 0.05) }}`` writes nothing, and fails once new records say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

import claims
import skills_page
import trace_picture
from experiment_pages import p_value
from radargate.cli.quickstart import summary
from radargate.io.records import read_records
from sources import RESULTS, ROOT, Source
from speed_tables import times_lora

TARGETS = {
    "README.md": "README.md",
    "results.md": "docs/results.md",
    "choosing.md": "docs/choosing.md",
    "trust.md": "docs/trust.md",
}
PAPER = ("stretch", "nexus", "tutel")
TEMPLATES = ROOT / "docs" / "templates"


class OutdatedSentence(ValueError):
    """A sentence says what the records no longer do."""


def filled(found: dict[str, Source]) -> dict[str, str]:
    """File, below the repository → its template with every placeholder filled."""
    return {target: fill((TEMPLATES / name).read_text(), found, name) for name, target in TARGETS.items()}


def fill(text: str, found: dict[str, Source], name: str = "a template") -> str:
    """One template filled.

    Raises:
        OutdatedSentence: something that a sentence depends on (``holds``) is not so.
    """
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.globals |= _names(found, name)
    return environment.from_string(text).render()


def _names(found: dict[str, Source], name: str) -> dict[str, Callable[..., Any]]:
    """What a placeholder may call. Experiments go by the names of their pages, systems by their labels."""

    def mean(experiment: str, system: str, metric: str = "acc", at: Any = None) -> str:
        return f"{found[experiment].standing(system, metric, at).value:.2f}"

    def interval(experiment: str, system: str, metric: str = "acc", at: Any = None) -> str:
        s = found[experiment].standing(system, metric, at)
        return f"{s.value:.2f} ({s.low:.2f} to {s.high:.2f})"

    def test(experiment: str, first: str, second: str, metric: str = "acc", at: Any = None) -> Any:
        return found[experiment].test(first, second, metric, at)

    def effect(*names: Any) -> str:
        t = test(*names)
        return f"{signed(t.difference)} ({signed(t.low)} to {signed(t.high)})"

    def chance(*names: Any) -> str:
        t = test(*names)
        seeds = f", p over seeds {_compared(t.p_seeds)}" if t.p_seeds is not None else ""
        return f"p over rows {_compared(t.p)}{seeds}"

    def sample(experiment: str, *systems: str) -> str:
        source = found[experiment]
        seeds = max((source.standing(s, "nll").seeds for s in systems), default=source.seeds)
        return f"n = {source.rows} rows of {len(source.results.tasks)} tasks, {seeds} seed{'s' * (seeds > 1)}"

    def holds(condition: bool) -> str:
        if not condition:
            raise OutdatedSentence(
                f"docs/templates/{name}: a sentence no longer agrees with the records; find its holds(…) and rewrite it."
            )
        return ""

    def most_seeds() -> int:
        return max(source.seeds for source in found.values())

    def beats_paper_gates() -> list[str]:
        """Experiments where radar has significantly lower NLL than each of the paper's other gates there."""
        plans = {name: source.findings for name, source in found.items() if source.findings is not None}
        tests = {
            name: [t for t in plan.rotation["nll"] if t.second.partition(" (")[0] in PAPER]
            for name, plan in plans.items()
        }
        return [
            name
            for name, of in tests.items()
            if len({t.second for t in of}) > 1 and all(t.better == t.first for t in of)
        ]

    def record(file: str, metric: str, place: int = -1) -> str:
        value = read_records(RESULTS / file)[place]["metrics"][metric]
        return f"{value:,}" if isinstance(value, int) else f"{value:.2g}"

    def vllm(ratio: str) -> str:
        """A ratio of throughputs in vLLM, of tokens a second."""
        found = next(r for r in read_records(RESULTS / "vllm" / "offline.jsonl") if r["case"] == "offline, 16 requests")
        return f"{found['metrics']['a second']['ratios'][ratio]:.2f}"

    def forty(case: str, metric: str) -> str:
        """Of `select` among forty adapters."""
        found = read_records(RESULTS / "select_of_forty" / "records.jsonl")
        return f"{next(r for r in found if r['case'] == case)['metrics'][metric]:.2f}"

    def composed(label: str) -> str:
        """Exact match of a system where an answer needs two adapters."""
        return f"{skills_page.exact(label)['value']:.2f}"

    def quickstart() -> str:
        """What the command prints at its end, up to the page's name."""
        printed = summary(RESULTS / "quickstart").replace(str(RESULTS / "quickstart"), "quickstart")
        return printed[: printed.index("\n\n")]

    return {
        "mean": mean, "interval": interval, "test": test, "effect": effect, "chance": chance, "sample": sample, "holds": holds,
        "signed": signed, "most_seeds": most_seeds, "record": record, "beats_paper_gates": beats_paper_gates, "rotation": claims.ROTATION, "times_lora": times_lora, "vllm": vllm, "forty": forty, "trace": lambda fact: read_records(trace_picture.RECORD)[-1][fact], "quickstart": quickstart, "composed": composed, "compared": _compared, "against": skills_page.against, "composed_units": skills_page.units, "composed_tasks": lambda: len(skills_page.cells()[0].tasks), "composed_rows": lambda: sum(len(r["rows"]["id"]) for r in skills_page.cells()[0].tasks.values()), "pages": _links(found), "counting": lambda experiment, metric: _counting(found[experiment], metric),
        "share": lambda experiment, system: f"{found[experiment].standing(system, 'acc').value / found[experiment].standing('oracle', 'acc').value:.0%}".replace("%", " %"),
    }  # fmt: skip


def signed(value: float) -> str:
    """Two digits and a sign."""
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


def _compared(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {p:.2f}" if p >= 0.095 else f"= {text}"


def _counting(source: Source, metric: str) -> str:
    """On how many tasks their own adapter beats the base."""
    from radargate.comparison.ranking import task_worth

    worth = task_worth(source.results, metric)
    return f"{sum(w.counts for w in worth)} of {len(worth)}"


def template_of(target: str) -> Path:
    """The template that a page is made from."""
    return TEMPLATES / next(name for name, made in TARGETS.items() if made == target)


def _links(found: dict[str, Source]) -> str:
    return ", ".join(f"[{name}](results/{name}.md)" for name in (*found, "select-of-forty"))
