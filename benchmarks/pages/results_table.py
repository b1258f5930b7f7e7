"""Make docs/results.md and the README's tables from records and registries: .venv/bin/python benchmarks/pages/results_table.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import adapters_page
import answers_section
import compare_section
import experiments_section
import readme_tables
import rivals_section
import scale_page
import speed_tables
from radargate.evaluation.metrics import paired_difference, row_values
from radargate.experts.shipped import shipped_experts
from radargate.io.records import read_records
from radargate.report import charts
from tables import cell, delta, markdown
from three_seeds import section as three_seeds

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {
    "smollm2-135m": "base",
    "uniform": "uniform mixture",
    "stretch": "stretch",
    "radar": "radar",
    "paper": "radar, `--preset paper`",
}
PAIRS = (
    ("radar", "stretch"),
    ("radar", "paper"),
    ("radar", "uniform"),
    ("stretch", "uniform"),
    ("uniform", "smollm2-135m"),
)


BEGIN, END = "<!-- {}: made by benchmarks/pages/results_table.py -->", "<!-- {}: end -->"
QUICKSTART = RESULTS / "quickstart" / "records.jsonl"


def main() -> int:
    """Write docs/results.md, docs/speed.md, docs/scale.md, docs/adapters.md, the README's made parts and the pictures."""
    for name, text in pages().items():
        (ROOT / name).write_text(text)
    (ROOT / "docs" / "quickstart.svg").write_text(quickstart_picture())
    pictures = speed_tables.pictures() | experiments_section.pictures(RESULTS / "experiments")
    for stale in set((ROOT / "docs").glob("experiment-*.svg")) - {ROOT / "docs" / name for name in pictures}:
        stale.unlink()
    for name, picture in pictures.items():
        (ROOT / "docs" / name).write_text(picture)
    return 0


def pages() -> dict[str, str]:
    """File → its text, made anew from the records."""
    return {
        "docs/results.md": page(),
        "docs/adapters.md": adapters_page.page(),
        "docs/scale.md": scale_page.page(),
        "docs/speed.md": speed_tables.page(),
        "docs/systems.md": systems_page(),
        "README.md": with_blocks((ROOT / "README.md").read_text()),
    }


def with_blocks(text: str) -> str:
    """A page with every part between markers made anew."""
    blocks = {"quickstart": quickstart_block, "expect": expect_block}
    for name, make in blocks.items():
        begin, end = BEGIN.format(name), END.format(name)
        text = f"{text[: text.index(begin)]}{begin}\n\n{make()}\n\n{text[text.index(end) :]}"
    return text


def systems_page() -> str:
    """docs/systems.md: every command, gate, rule and architecture in one sentence."""
    parts = [
        "# Commands, gates, rules, architectures",
        "Made by `benchmarks/pages/results_table.py` from the registries. Every command has `--help` with an example; flags may come from a file "
        "(`--config FILE.yaml`). Options of gates are in [method.md](method.md).",
        "## Commands",
        readme_tables.commands(),
        "## Gates, rules, architectures",
        readme_tables.gates(),
    ]
    return "\n\n".join(parts) + "\n"


def quickstart_means() -> dict[str, dict[str, Any]]:
    """System → its record of the quickstart's mean over tasks."""
    return {r["system"]: r for r in read_records(QUICKSTART) if r["suite"] == "eval" and r["task"] == "mean"}


def quickstart_block() -> str:
    """What the demo ends with, from its records."""
    one = next(r for r in read_records(QUICKSTART) if r["suite"] == "eval" and r["task"] != "mean")
    found, experts = quickstart_means(), list(shipped_experts())
    best = max(experts, key=lambda name: found[name]["metrics"]["acc"]["value"])
    shown = {
        "base": "the model alone",
        best: "the best single adapter",
        "uniform": "all adapters mixed evenly",
        "radar": "a trained gate at each layer, with rotation",
        "select": "one adapter a question, chosen by its words; nothing trained",
        "router": "stretch gates, and one more weighting of adapters for each prompt; trained",
    }
    rows = [
        [f"`{name}`: {words}", cell(found[name]["metrics"]["acc"]), cell(found[name]["metrics"]["nll"])]
        for name, words in shown.items()
    ]
    note = (
        f"SmolLM2-135M-Instruct, {one['metrics']['n']} held-out rows of each task, one seed, 95 % intervals over rows; NLL: surprise at the right answer, "
        f"lower is better ({one['machine']['cpu']}, {one['machine']['cores']} cores; [records](benchmarks/results/quickstart))."
    )
    return "\n\n".join([markdown(["it prints", "accuracy", "NLL"], rows), note])


def expect_block() -> str:
    """Quality and speed in two sentences, from records."""
    found = rivals_section.routed(RESULTS)
    tasks = found.tasks

    def shown(label: str) -> str:
        if label not in found.systems:
            return "–"
        acc, nll = (found.systems[label].seed_means(metric, tasks).mean() for metric in ("acc", "nll"))
        return f"{acc:.2f} (NLL {nll:.2f})"

    rows = sum(found.systems["base"].rows["acc"][task].shape[1] for task in tasks)
    return "\n".join(
        (
            f"- **Quality:** on {len(tasks)} other tasks ({rows} test rows, accuracy) the base has {shown('base')}, `select` {shown('select (mole)')}: as much as each task's own "
            f"adapter, since the prompts' words always give these tasks away. Stretch with a router has {shown('stretch router=prompt router_start=select (mole)')}, radar without one "
            f"{shown('radar (mole)')}, one LoRA trained on all rows {shown('union LoRA on all rows')}: level with `select` within chance ([all results](docs/results.md)).",
            "- **Rotation:** by NLL a little, over rows and not over seeds; by accuracy nothing is shown.",
            speed_tables.sentence(),
        )
    )


def quickstart_picture() -> str:
    """How the quickstart's systems compare."""
    rows = [(name, r["metrics"]["acc"]) for name, r in quickstart_means().items()]
    return charts.intervals(
        rows,
        "accuracy, mean over ten tasks",
        "Accuracy of every system of the quickstart",
        ("router", "select", "radar"),
    )


def page() -> str:
    """The whole page."""
    scores = [r for r in read_records(RESULTS / "main_job" / "scores.jsonl") if r["suite"] == "eval"]
    trained = {
        r["case"] if r["options"]["preset"] is None else "paper": r
        for r in read_records(RESULTS / "main_job" / "train.jsonl")
    }
    by_case = {(r["system"], r["task"]): r for r in scores}
    tasks = sorted({task for _, task in by_case} - {"mean"})
    systems = [name for name in NAMES if (name, "mean") in by_case]
    rows = by_case[systems[0], tasks[0]]["metrics"]["n"]
    one = by_case[systems[0], "mean"]
    recipe = read_records(RESULTS / "main_job" / "experts.jsonl")[0]["options"]
    parts = [
        "## The main job, one seed: nine experts in one 135M model",
        f"SmolLM2-135M-Instruct; nine FLAN chain-of-thought tasks (`flan_cot`); one expert a task on q and v, rank {recipe['rank']}, alpha {recipe['alpha']} ({recipe['steps']} steps "
        f"of {recipe['batch_size']} rows at {recipe['lr']:g}); gates trained on the mixture of all tasks, top-{trained['radar']['options']['top_k']} of {len(tasks)}, {trained['radar']['options']['steps']} steps of "
        f"{trained['radar']['options']['batch_size']} rows, one seed; scored on the first {rows} test rows of each task. Brackets are 95 % bootstrap "
        f"intervals over rows; they say nothing about other seeds. {one['machine']['cpu']}, {one['machine']['cores']} cores; commands in "
        "[benchmarks/results/main_job/commands.sh](../benchmarks/results/main_job/commands.sh).",
        markdown(
            ["system", "accuracy", "gold-answer NLL"],
            [
                [NAMES[s], cell(by_case[s, "mean"]["metrics"]["acc"]), cell(by_case[s, "mean"]["metrics"]["nll"])]
                for s in systems
            ],
        ),
        "Paired over the same rows, averaged over tasks; p from sign flips, uncorrected:",
        markdown(
            ["difference", "accuracy", "p", "NLL", "p"],
            [pair(by_case, tasks, a, b) for a, b in PAIRS if (a, "mean") in by_case and (b, "mean") in by_case],
        ),
        "Mind what this is not: one seed, which says little about a difference between gates, and radar trains more parameters than stretch without a control of as many beside it. "
        "Most of these tasks are near chance for a model of this size. The paper's form runs at the paper's own learning rate "
        "of 1e-4, which hardly moves a gate in so few steps (its angle says so).",
        "### What the gates cost and did",
        markdown(
            [
                "gate",
                "trained parameters",
                "learning rate of the softmax / of rotation",
                "dense start",
                "last loss",
                "mean angle (rad)",
                "seconds",
            ],
            [train_row(n, r) for n, r in trained.items()],
        ),
        "### Task by task",
        "The oracle is the adapter of that task alone. It helps where it beats the base on these rows (paired p < 0.05).",
        markdown(
            ["task", *(NAMES[s] for s in systems), "oracle", "expert helps (accuracy / NLL)"],
            [task_row(by_case, t, systems, "acc") for t in tasks],
        ),
        "The same for gold-answer NLL:",
        markdown(
            ["task", *(NAMES[s] for s in systems), "oracle"], [task_row(by_case, t, systems, "nll") for t in tasks]
        ),
    ]
    parity = RESULTS / "main_job" / "lm_eval.jsonl"
    if parity.exists():
        parts.append("### The same rows through lm-eval")
        for record in read_records(parity):
            m = record["metrics"]
            parts.append(
                f"{record['case']}, float32: lm-eval and `radargate eval` decide alike on {m['same_acc']} of {m['n']} rows by `acc` and on "
                f"{m['same_acc_norm']} by `acc_norm`."
            )
    top = [
        "# Results",
        "Made by `benchmarks/pages/results_table.py` from the records in `benchmarks/results/`; edit neither by hand.",
    ]
    return (
        "\n\n".join(
            [
                *top,
                *rivals_section.section(RESULTS),
                *answers_section.section(RESULTS),
                *three_seeds(RESULTS / "three_seeds"),
                *experiments_section.section(RESULTS / "experiments"),
                *compare_section.section(RESULTS / "compare"),
                *parts,
            ]
        )
        + "\n"
    )


def difference(by_case: dict[Any, Any], tasks: list[str], a: str, b: str, metric: str) -> dict[str, float]:
    """Paired difference a - b over all tasks."""
    first, second = ({t: row_values(by_case[s, t], metric) for t in tasks} for s in (a, b))
    return paired_difference(first, second)


def pair(by_case: dict[Any, Any], tasks: list[str], a: str, b: str) -> list[str]:
    """One row of the paired table."""
    acc, nll = (difference(by_case, tasks, a, b, metric) for metric in ("acc", "nll"))
    return [f"{NAMES[a]} − {NAMES[b]}", delta(acc), f"{acc['p']:.4f}", delta(nll), f"{nll['p']:.4f}"]


def train_row(name: str, record: dict[str, Any]) -> list[str]:
    """One row of the training table."""
    m, o = record["metrics"], record["options"]
    rates = (
        ""
        if not m["trained_parameters"]
        else f"{o['lr']:g} / {o['rotation_lr']:g}"
        if m["mean_angle"] is not None
        else f"{o['lr']:g}"
    )
    angle = "" if m["mean_angle"] is None else f"{m['mean_angle']:.3f}"
    loss = "" if m.get("final_loss") is None else f"{m['final_loss']:.3f}"
    return [
        NAMES[name],
        f"{m['trained_parameters']:,}",
        rates,
        f"{o['dense_start']:.0%}" if m["trained_parameters"] else "",
        loss,
        angle,
        f"{m['seconds']:.0f}",
    ]


def task_row(by_case: dict[Any, Any], task: str, systems: list[str], metric: str) -> list[str]:
    """One task's row; for accuracy also whether its expert counts."""
    row = [task, *(f"{by_case[s, task]['metrics'][metric]['value']:.3f}" for s in systems)]
    if (task, task) not in by_case:
        return [*row, "", ""] if metric == "acc" else [*row, ""]
    row.append(f"{by_case[task, task]['metrics'][metric]['value']:.3f}")
    if metric == "acc":
        marks = []
        for m, sign in (("acc", 1), ("nll", -1)):
            d = paired_difference(
                {task: row_values(by_case[task, task], m)}, {task: row_values(by_case["smollm2-135m", task], m)}
            )
            marks.append("yes" if d["p"] < 0.05 and d["difference"] * sign > 0 else "no")
        row.append(" / ".join(marks))
    return row


if __name__ == "__main__":
    sys.exit(main())
