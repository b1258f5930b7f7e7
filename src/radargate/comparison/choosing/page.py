"""The page of a choice, from its records: what to take, why, what it costs, and what more time could try."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radargate.comparison.cells import UNION
from radargate.comparison.choosing.decision import Decision, decide
from radargate.comparison.choosing.plan import SIZES, Plan
from radargate.comparison.results import System
from radargate.io.progress import duration
from radargate.io.records import read_records
from radargate.report import charts, page
from radargate.report.table import NOTHING, markdown, score_and_interval

SCORES = {"acc": "accuracy", "nll": "NLL"}
AXES = {"acc": "share of right answers, mean over tasks", "nll": "nats a token, mean over tasks"}
WORDS = {
    "base": "the base model alone: nothing was significantly better on these rows",
    "union": "one LoRA trained on all rows together",
    "expert": "one adapter alone: composing adds nothing that these rows could show",
    "rule": "a composition that trains nothing",
    "gate": "a composition with trained gates",
}


def choice_page(out: Path) -> str:
    """The whole report as HTML.

    Args:
        out: the choice's folder, with ``records.jsonl``.
    """
    records = read_records(out / "records.jsonl")
    plan_record = next(r for r in records if r["suite"] == "choose")
    failed = [(r["case"], r["reason"]) for r in records if r["suite"] == "left out"]
    choice = [r for r in records if r["suite"] == "train"][-1]
    plan, found = Plan.of(plan_record["plan"]), choice["metrics"]
    decision = decide([r for r in records if "cell" in r], plan_record["cells"])
    report, taken = _report(records), decision.system(decision.taken)
    return page.page(
        f"RadarGate: take {decision.taken}",
        [
            page.section("What to take", page.paragraph(_taken(decision, taken)), *_commands(out, taken)),
            page.section(
                "On rows that nothing saw",
                page.paragraph(
                    f"{report[0]['metrics']['n']} rows that no gate learned from and that the choice was not made by. "
                    "NLL: surprise at the right answer in nats a token, lower is better."
                ),
                page.table(
                    ["system", "accuracy", "95 % interval", "NLL", "95 % interval"],
                    [
                        [
                            r["system"],
                            *score_and_interval(r["metrics"]["acc"]),
                            *score_and_interval(r["metrics"]["nll"]),
                        ]
                        for r in report
                    ],
                    best=[i for i, r in enumerate(report) if r["system"] == decision.taken],
                ),
            ),
            page.section("All that was tried", *_ranking(decision)),
            page.section("With more time", *map(page.paragraph, _more(decision, plan))),
            *(
                [page.section("What cannot work here", *(page.paragraph(f"{a}: {b}") for a, b in failed))]
                if failed
                else []
            ),
            page.section("How it was done", *map(page.paragraph, _how(decision, plan, found, choice))),
        ],
    )


def choice_table(out: Path, taken: str) -> str:
    """What the last systems reached, in a few lines for a terminal."""
    report = _report(read_records(out / "records.jsonl"))
    width = max(len(r["system"]) for r in report)
    lines = [f"{'on rows that nothing saw':<{max(width, 24)}}  accuracy          NLL"]
    for r in report:
        acc, nll = r["metrics"]["acc"], r["metrics"]["nll"]
        mark = "  <- taken" if r["system"] == taken else ""
        lines.append(
            f"{r['system']:<{max(width, 24)}}  {acc['value']:.3f} [{acc['low']:.2f}, {acc['high']:.2f}]  "
            f"{nll['value']:.3f} [{nll['low']:.2f}, {nll['high']:.2f}]{mark}"
        )
    return "\n".join(lines)


def choice_scores(out: Path) -> tuple[str, str]:
    """The same as a Markdown table for the bundle's card, and what it rests on."""
    report = _report(read_records(out / "records.jsonl"))
    header = ["system", "accuracy", "95 % interval", "NLL", "95 % interval"]
    scores = [
        [r["system"], *score_and_interval(r["metrics"]["acc"]), *score_and_interval(r["metrics"]["nll"])]
        for r in report
    ]
    rows = report[0]["metrics"]["n"]
    return markdown(header, scores), f"{rows} rows that no gate learned from and that the choice was not made by."


def _report(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Means of the systems that were scored on rows that nothing saw."""
    return [r for r in records if r["suite"] == "eval" and "cell" not in r and r["task"] == "mean"]


def _taken(decision: Decision, taken: System) -> str:
    what = f"Take {decision.taken}: {WORDS['union' if taken.name.startswith(UNION) else taken.kind]}. "
    if decision.taken == decision.leader:
        return what + "It leads, and no simpler system is level with it."
    others = ", ".join(label for label in decision.level if label not in (decision.taken, decision.leader))
    return what + (
        f"{decision.leader} leads on the rows to choose by, but not by more than chance; of the systems that are level with it "
        f"this is the simplest and cheapest{f' (also level: {others})' if others else ''}."
    )


def _commands(out: Path, taken: System) -> list[str]:
    if taken.kind == "base":
        return [page.paragraph("Nothing was saved: use the base as it is.")]
    lines = f'radargate generate {out} --prompt "…"\nradargate serve {out}'
    return [page.paragraph("It is saved as a bundle:"), f"<pre>{lines}</pre>"]


def _ranking(decision: Decision) -> list[str]:
    standing = {metric: {s.label: s for s in ranked} for metric, ranked in decision.standings.items()}
    order = sorted(standing["nll"], key=lambda label: standing["nll"][label].value)
    base = next((s for s in decision.results.systems.values() if s.kind == "base"), None)
    parts = []
    for metric, words in SCORES.items():
        ranked = decision.standings[metric]
        parts.append(
            page.figure(
                charts.intervals(
                    [(s.label, {"value": s.value, "low": s.low, "high": s.high}) for s in ranked],
                    AXES[metric],
                    f"{words} of every system with 95 % intervals",
                    [decision.taken],
                ),
                f"{words.capitalize() if metric == 'acc' else words} on the rows to choose by, best first "
                f"({'higher' if metric == 'acc' else 'lower'} is better); the system taken stands out.",
                narrow=True,
            )
        )
    rows = []
    for label in order:
        system = decision.system(label)
        rows.append(
            [
                label,
                *(_value(standing[metric][label]) for metric in SCORES),
                _p(decision, label),
                _times(system, base),
                _seconds(system.measured("train_seconds")),
                f"{int(system.measured('trained_parameters') or 0):,}",
            ]
        )
    header = ["system", "accuracy", "NLL", "p, to the best", "time to answer", "training", "trained parameters"]
    table = page.table(
        header,
        rows,
        best=[i for i, row in enumerate(rows) if row[0] == decision.taken],
        many=True,
        caption="Every system",
    )
    return [*parts, table]


def _value(standing: Any) -> str:
    return f"{standing.value:.3f} ({standing.low:.2f} to {standing.high:.2f})"


def _p(decision: Decision, label: str) -> str:
    """Of the metric by which it is further behind."""
    found = [tests[label].p for tests in decision.behind.values() if label in tests]
    if not found:
        return NOTHING
    return "< 0.001" if min(found) < 0.001 else f"{min(found):.3f}"


def _times(system: System, base: System | None) -> str:
    own, alone = system.measured("score_seconds"), base.measured("score_seconds") if base else None
    return f"{own / alone:.1f} × base" if own and alone else NOTHING


def _seconds(seconds: float | None) -> str:
    return duration(seconds) if seconds else NOTHING


def _more(decision: Decision, plan: Plan) -> list[str]:
    """What more time or rows could show."""
    lines = []
    if plan.left_out:
        lines.append(f"Not tried, for want of time: {', '.join(plan.left_out)}.")
    if plan.rounds and (plan.rounds[-1].steps, plan.validation) != SIZES[0][:2]:
        lines.append(
            f"Trained systems got at most {plan.rounds[-1].steps} steps. Some go on improving: run it again with more minutes, or train "
            "the one you prefer with radargate train."
        )
    if len(decision.level) > 1:
        rows = sum(len(decision.system(decision.taken).rows["nll"][task][0]) for task in decision.results.tasks)
        lines.append(
            f"{len(decision.level)} systems are level on {rows} rows. Four times as many rows halve the intervals: "
            f"about {math.ceil(4 * rows / 100) * 100} rows to choose by would show differences half as large."
        )
    return lines or ["Nothing that these records suggest."]


def _how(decision: Decision, plan: Plan, found: Mapping[str, Any], choice: Mapping[str, Any]) -> list[str]:
    rounds = ", then ".join(f"{r.kept} for {r.steps} steps" for r in plan.rounds)
    tasks = decision.results.tasks
    return [
        f"Rows of {len(tasks)} tasks were parted into three: to learn from, to choose by (at most {plan.validation} a task), and to report on "
        f"(at most {plan.test} a task). No prompt stands in two of them. "
        + (f"Systems that are trained went through rounds: {rounds}; the lower NLL went on." if rounds else ""),
        "Taken is the simplest system that is not significantly behind the best: first by accuracy, then among those by NLL (paired "
        "sign flips over rows, p < 0.05, uncorrected).",
        f"It took {duration(found['seconds'])}{' after it was resumed' if found.get('resumed') else ''} "
        f"(predicted {duration(found['predicted_seconds'])}) on {choice['machine']['cpu']} with "
        f"{choice['machine']['cores']} cores; radargate {choice['versions'].get('radargate')}, {str(choice['date'])[:10]}. "
        "Every number stands in records.jsonl beside this page.",
    ]
