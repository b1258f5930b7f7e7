"""The quickstart's report, from its folder: records, training metrics, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from radargate.data.builtin import category_of
from radargate.io.records import read_records
from radargate.report import charts, page
from radargate.report.table import score_and_interval

WORDS = {
    "base": "the model alone",
    "uniform": "all experts mixed evenly, with nothing trained",
    "select": "each question answered by the one expert whose training rows are most like it, with nothing trained",
    "stretch": "a trained gate at each layer, which weighs the experts",
    "radar": "a trained gate at each layer, which weighs and rotates them",
    "router": "stretch with one more decision for the whole model, made from the prompt and trained on from select",
}
COMPARED = ("router", "radar", "stretch", "select", "uniform", "base")  # and the oracle
TRAINED = ("stretch", "radar", "router")
_EXAMPLES = ("dates", "counted_nouns", "units")


def systems(experts: list[str]) -> list[str]:
    """The systems of the quickstart, in the order of its table."""
    return ["base", *experts, "uniform", "select", "stretch", "radar", "router"]


def quickstart_page(out: Path) -> str:
    """The whole report as HTML.

    Args:
        out: the quickstart's folder, with ``records.jsonl`` and the bundles' ``metrics.jsonl``.
    """
    records = read_records(out / "records.jsonl")
    scores = [r for r in records if r["suite"] == "eval"]
    means = {r["system"]: r["metrics"] for r in scores if r["task"] == "mean"}
    tasks = {(r["system"], r["task"]): r for r in scores if r["task"] != "mean"}
    names = list(dict.fromkeys(task for _, task in tasks))
    usage: dict[str, dict[str, float]] = next((r["metrics"] for r in records if r["suite"] == "usage"), {})
    first = scores[0]
    rows = next(iter(tasks.values()))["metrics"]["n"]
    top = max(m["acc"]["value"] for m in means.values())
    best = [name for name, m in means.items() if m["acc"]["value"] == top]
    conditions = (
        f"{len(names)} tasks, {rows} held-out rows each; 95 % bootstrap intervals over rows; one seed. radargate "
        f"{first['versions'].get('radargate')}, commit {str(first['commit'])[:12]}, {first['machine']['cpu']}, {first['date'][:10]}."
    )
    experts = [name for name in means if name not in WORDS]
    leader = max(COMPARED, key=lambda name: means[name]["acc"]["value"])
    return page.page(
        "RadarGate quickstart: five experts in one model",
        [
            page.paragraph(
                "Five LoRA adapters (the experts), each trained for one kind of job, were composed into one small language model, in "
                "several ways. Every system below answered the same questions, which none was trained on."
            ),
            page.section(
                "Which system answers best?",
                page.figure(
                    charts.intervals(
                        [(n, m["acc"]) for n, m in means.items()],
                        "accuracy, mean over tasks",
                        "Accuracy of every system with 95 % intervals",
                        best,
                    ),
                    "Accuracy: the share of right answers, higher is better. The dot is the mean over tasks, the line its 95 % interval.",
                ),
                page.table(
                    ["system", "accuracy", "95 % interval", "NLL of the right answer", "95 % interval"],
                    [[n, *score_and_interval(m["acc"]), *score_and_interval(m["nll"])] for n, m in means.items()],
                    best=[i for i, n in enumerate(means) if n in best],
                ),
                page.table(
                    ["by accuracy", "difference", "95 % intervals"],
                    [_pair(means, leader, n) for n in COMPARED if n != leader],
                ),
                page.paragraph(
                    "NLL: how much the right answer surprises the system, in nats a token; lower is better. It shows a difference sooner "
                    f"than accuracy does. {', '.join(experts)}: the base with that one expert alone. "
                    + " ".join(f"{name}: {words}." for name, words in WORDS.items()),
                    note=True,
                ),
                page.paragraph(conditions, note=True),
            ),
            page.section(
                "Task by task (accuracy)",
                page.paragraph(
                    "Oracle: the task's own expert, the one trained for that kind of job. Nobody tells a gate which kind of job a question is."
                ),
                page.table(
                    ["task", *COMPARED, "oracle", "its expert"],
                    [
                        [t, *(_accuracy(tasks, n, t) for n in (*COMPARED, category_of(t))), category_of(t)]
                        for t in names
                    ],
                ),
                page.folded(
                    "Every expert on every task",
                    page.table(["task", *experts], [[t, *(_accuracy(tasks, n, t) for n in experts)] for t in names]),
                ),
            ),
            page.section(
                "How training went",
                page.figure(
                    charts.curves(
                        {g: _losses(out / g) for g in TRAINED},
                        "step",
                        "training loss",
                        "Training loss of the trained gates over steps",
                    ),
                    "Loss on the answers, lower is better. Half-way the gates switch from all experts to the best two for each token.",
                ),
            ),
            page.section(
                "Which expert is used where?",
                page.paragraph("A weight says how much of an expert's output goes in, not how much it helps."),
                page.figure(
                    charts.heat_map(usage, "mean weight", "Mean weight of each expert for each task in the radar gate"),
                    f"Mean weight in the radar gate, over layers and tokens of five test rows a task. Even use would be {1 / len(experts):.2f}.",
                ),
                page.folded(
                    "The same as a table",
                    page.table(
                        ["task", *next(iter(usage.values())), "largest", "the oracle's"],
                        [[t, *(f"{w:.2f}" for w in u.values()), *_largest(t, u)] for t, u in usage.items()],
                    ),
                ),
            )
            if usage
            else "",
            page.section(
                "Three answers side by side",
                page.paragraph(
                    f"The first question of three tasks. Answers are cut after {first['max_new_tokens']} tokens.",
                    note=True,
                ),
                *[_example(tasks, task, list(means)) for task in _EXAMPLES if ("radar", task) in tasks],
            ),
            page.section(
                "Next",
                page.paragraph("With adapters of your own:"),
                "<pre>radargate doctor BASE my_adapter_1 my_adapter_2\nradargate choose BASE my_adapter_1 my_adapter_2 --data my_rows.jsonl "
                "--out my_bundle</pre>",
                page.paragraph(
                    "Every number on this page stands in records.jsonl beside it, or in the metrics.jsonl of its gate.",
                    note=True,
                ),
            ),
        ],
    )


def _accuracy(tasks: dict[tuple[str, str], Any], system: str, task: str) -> str:
    return f"{tasks[system, task]['metrics']['acc']['value']:.2f}"


def _largest(task: str, weights: dict[str, float]) -> tuple[str, str]:
    """The expert with the largest mean weight, and whether it is the task's own."""
    name = max(weights, key=weights.__getitem__)
    return name, "yes" if name == category_of(task) else "no"


def _pair(means: dict[str, Any], leader: str, other: str) -> list[str]:
    """The best system beside another."""
    one, two = means[leader]["acc"], means[other]["acc"]
    apart = one["low"] > two["high"] or two["low"] > one["high"]
    return [f"{leader} − {other}", f"{one['value'] - two['value']:+.3f}", "apart" if apart else "overlap"]


def _losses(folder: Path) -> list[tuple[float, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


def _example(tasks: dict[tuple[str, str], Any], task: str, systems: list[str]) -> str:
    shown = tasks["radar", task]["examples"][0]
    rows = []
    for system in systems:
        answer = tasks[system, task]["examples"][0]
        rows.append([system, answer["answer"], "right" if answer["correct"] else "wrong"])
    head = page.paragraph(f"{shown['prompt']}  (right answer: {shown['target']})")
    return f'<div class="example">{head}{page.table(["system", "answer", "right?"], rows, numbers_from=9)}</div>'
