"""One page an experiment under docs/results: table, figure, conditions, commands, records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from radargate.comparison.ranking import compare_pairs, standings
from radargate.comparison.results import METRICS, UNTURNED
from radargate.io.records import read_records
from radargate.paper.page import make_parts
from radargate.paper.summary import settings_table
from radargate.paper.tables import axis_table, family_table
from radargate.report import charts
from radargate.report.table import Table, facts_table, markdown
from sources import RESULTS, ROOT, Source

WORDS = {"acc": "accuracy", "nll": "NLL"}
EMPHASISED = ("select", "radar router=text", "radar", "union LoRA on all rows")
REFERENCES = ("select", "radar", "uniform", "base")  # the first that is there: what others are held against
FIGURES = 2
MOST = 20  # systems in a figure


def pages(found: dict[str, Source]) -> dict[str, str]:
    """File, below docs → text: pages and their figures."""
    made: dict[str, str] = {}
    for name, source in found.items():
        figures = list(_figures(source))
        made[f"results/{name}.md"] = "\n\n".join(_page(source, [caption for caption, _ in figures])) + "\n"
        made |= {f"results/{name}-{number}.svg": draw() for number, (_, draw) in enumerate(figures, 1)}
    return made


def forty() -> str:
    """The page of what `select` finds among forty adapters, where no system was scored anew."""
    folder = RESULTS / "select_of_forty"
    records = read_records(folder / "records.jsonl")
    rows = [
        [r["features"], r["by"], str(r["prompts"]), f"{r['metrics']['right_adapter']:.3f}", f"{r['metrics']['accuracy_at_least']:.3f}"]
        for r in records
    ]  # fmt: skip
    header = ["what `select` reads", "decided by", "prompts an adapter", "right adapter", "accuracy, at least"]
    machine, first = records[0]["machine"], records[0]
    facts = {
        "adapters": str(first["experts"]),
        "scored rows": str(first["rows"]),
        "machine": f"{machine['cpu']}, {machine['cores']} cores",
        "dates": " to ".join(dict.fromkeys(ends([r["date"][:10] for r in records]))),
    }
    parts = (
        "# select-of-forty",
        (folder / "about.md").read_text().strip(),
        "## Table",
        markdown(header, rows),
        "## Conditions",
        facts_table("settings", "", facts).markdown(),
        "## Commands and records",
        "```bash\npython benchmarks/robustness/select_of_forty.py\n```",
        f"Records: [{folder.relative_to(ROOT)}](../../{folder.relative_to(ROOT)}). Made by `make pages`.",
    )
    return "\n\n".join(parts) + "\n"


def _page(source: Source, captions: Sequence[str]) -> Iterator[str]:
    yield f"# {source.name}"
    yield _about(source)
    for number, caption in enumerate(captions, 1):
        yield f"![{caption}]({source.name}-{number}.svg)"
    yield "## Table"
    yield from _tables(source)
    yield "## Conditions"
    yield _conditions(source)
    yield "## Commands and records"
    yield f"```bash\n{_commands(source)}\n```"
    folder = source.folder.relative_to(ROOT)
    yield (
        f"Records: [{folder}](../../{folder}). Task by task: [every record](records.html#{source.name}). "
        "Made by `make pages`; change the records or `about.md` beside them."
    )


def _about(source: Source) -> str:
    """What a person wrote beside the records, else the experiment's own question."""
    file = source.folder / "about.md"
    if file.exists():
        return file.read_text().strip()
    return str(source.findings.request["question"]) if source.findings else f"Scores in `{source.folder.name}`."


def _tables(source: Source) -> Iterator[str]:
    found = source.findings
    if found is None or found.axis is None or len(found.by_value) < 2:
        yield _systems_table(source)
    else:
        for metric in METRICS:
            yield _captioned(axis_table(found, metric))
    if found is not None and found.request["layout"] in ("angles", "hull"):
        yield from map(_captioned, make_parts(found).summary)
    if found is not None and any(found.rotation.values()):
        table = family_table(found, "rotation")
        yield f'<details markdown="1"><summary>{table.caption}</summary>\n\n{table.markdown()}\n\n</details>'


def _systems_table(source: Source) -> str:
    """A line a system: both means, and how far its NLL is from the reference's."""
    results = source.results
    ranked = {metric: {s.label: s for s in standings(results, metric)} for metric in METRICS}
    reference = next(label for name in REFERENCES if (label := source.label(name)) in results.systems)
    others = [label for label in ranked["nll"] if label != reference]
    tests = {t.first: t for t in compare_pairs(results, "nll", [(label, reference) for label in others])}
    rows = []
    for label, nll in ranked["nll"].items():
        acc, test = ranked["acc"][label], tests.get(label)
        change = "" if test is None else f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"
        chance = ["", ""] if test is None else [p_value(test.holm), p_value(test.p_seeds)]
        rows.append([f"`{drawn(label)}`", _with_interval(acc), _with_interval(nll), change, *chance, str(nll.seeds)])
    header = [
        "system",
        "accuracy [95 %]",
        "NLL, nats a token [95 %]",
        f"NLL − `{drawn(reference)}`",
        "p over rows (Holm)",
        "p over seeds",
        "seeds",
    ]
    return markdown(header, rows)


def _with_interval(s: Any) -> str:
    return f"{s.value:.3f} [{s.low:.3f}, {s.high:.3f}]"


def p_value(p: float | None) -> str:
    """A p-value for people."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def drawn(label: str) -> str:
    """A system's name without the default architecture."""
    return label.removesuffix(" (mole)")


def _captioned(table: Table) -> str:
    return f"**{table.caption}**\n\n{table.markdown()}"


def _conditions(source: Source) -> str:
    one = source.results.evals[0]
    machine = one["machine"]
    facts = {
        "base": "gemma3-270m, smollm2-135m" if source.name == "model-size" else "smollm2-135m",
        "tasks": ", ".join(source.results.tasks),
        "scored rows": f"{source.rows} in all",
        "dtype": one.get("dtype") or "",
        "machine": f"{machine['cpu']}, {machine['cores']} cores",
        "dates": " to ".join(dict.fromkeys(ends([r["date"][:10] for r in source.results.evals]))),
    }
    if source.findings is not None:
        return settings_table(source.findings, facts).markdown()
    return facts_table("settings", "", {key: value for key, value in facts.items() if value}).markdown()


def ends(values: Sequence[str]) -> tuple[str, str]:
    """The first and the last."""
    return min(values), max(values)


def _commands(source: Source) -> str:
    """The lines of the nearest commands.sh that speak of this experiment, else the request in short."""
    for folder in (source.folder, source.folder.parent):
        if (file := folder / "commands.sh").exists():
            lines = [line for line in file.read_text().splitlines() if not line.startswith(("#!", "set -euo"))]
            own = [line for line in lines if f"experiment {source.folder.name} " in line]
            return "\n".join(own if folder != source.folder else lines)
    if source.findings is not None:
        request = source.findings.request
        return f"radargate experiment {request['case']} --preset {request['preset']} --data sources/ --out runs/{source.folder.name}"
    return str((source.results.request or {}).get("command") or "radargate quickstart")


def _figures(source: Source) -> Iterator[tuple[str, Callable[[], str]]]:
    if source.findings is not None:
        yield from make_parts(source.findings).figures[:FIGURES]
        return
    for metric in METRICS:
        caption = f"Mean {WORDS[metric]} over {len(source.results.tasks)} tasks with 95 % intervals over rows"
        yield caption, lambda metric=metric, caption=caption: interval_chart(source, metric, caption)


def interval_chart(source: Source, metric: str, caption: str, systems: Sequence[str] = ()) -> str:
    """Systems as dots with intervals, best first; a base that would squeeze them is left out."""
    wanted = [source.label(name) for name in systems]
    shown = [s for s in standings(source.results, metric) if (s.label in wanted if wanted else UNTURNED not in s.label)]
    if metric == "nll":
        shown = [s for s in shown if s.label != "base"] or shown
    shown = shown[:MOST]
    rows = [(drawn(s.label), {"value": s.value, "low": s.low, "high": s.high}) for s in shown]
    unit = "accuracy, share of answers that are right" if metric == "acc" else "NLL of the right answer, nats a token"
    return charts.intervals(rows, unit, caption, [name for name in EMPHASISED if name in dict(rows)])
