"""The section of docs/results.md on the real run with three seeds, from its records alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radargate.evaluation.metrics import paired_difference, row_values
from radargate.io.records import read_records
from radargate.report.table import facts_table
from tables import cell, delta, markdown

BASE, EXPERT = "smollm2-135m", "expert"
NAMES = {BASE: "base", "uniform": "uniform mixture", "stretch": "stretch", "radar": "radar", EXPERT: "oracle"}
PAIRS = (("radar", "stretch"), ("radar", "uniform"), ("stretch", "uniform"), ("uniform", BASE), ("radar", EXPERT))
METRICS = {"acc": "accuracy", "nll": "gold-answer NLL"}
BETTER = {"acc": 1, "nll": -1}
LEVEL = 0.05
GATES = ("stretch", "radar")
PAIRED = """\
Brackets are 95 % bootstrap intervals over rows, each row averaged over seeds; *seeds* is the lowest and the highest mean of a single seed. Below: paired over the
same rows, averaged over seeds and then over tasks; p from sign flips, not corrected for the number of comparisons; *seeds* are the differences of single seeds. A
seed changes the gates' initial values and the order of rows, never the experts or the test rows: a few seeds show a spread, not an interval."""


class Scores:
    """Row values of every system, task and seed. ``expert`` is each task's own adapter alone.

    Args:
        records: eval records; a target named ``NAME-SEED`` is one seed of system NAME.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.rows: dict[tuple[str, str, int], dict[str, Any]] = {}
        scored = [r for r in records if r["suite"] == "eval" and r["task"] != "mean"]
        self.tasks = sorted({r["task"] for r in scored})
        for record in scored:
            match = re.fullmatch(r"(stretch|radar)-(\d+)", record["system"])
            name = EXPERT if record["system"] == record["task"] else match[1] if match else record["system"]
            self.rows[name, record["task"], int(match[2]) if match else 0] = record
        self.systems = [name for name in NAMES if all(self.seeds(name, task) for task in self.tasks)]

    def seeds(self, system: str, task: str) -> list[int]:
        """The seeds a system was scored with."""
        return sorted(seed for name, of, seed in self.rows if (name, of) == (system, task))

    def values(
        self, system: str, metric: str, tasks: Sequence[str] | None = None, seed: int | None = None
    ) -> dict[str, np.ndarray]:
        """Task → one value a row: of one seed, or averaged over all of them.

        Raises:
            ValueError: two seeds, or a system and the base, were scored on different rows.
        """
        found = {}
        for task in self.tasks if tasks is None else tasks:
            records = [self.rows[system, task, s] for s in (self.seeds(system, task) if seed is None else [seed])]
            first = self.rows[BASE, task, 0]["rows"]["id"]
            if any(record["rows"]["id"] != first for record in records):
                raise ValueError(f"{system} and {BASE} were scored on different rows of {task}; score them alike.")
            found[task] = np.mean([row_values(record, metric) for record in records], axis=0)
        return found

    def mean(self, system: str, metric: str, tasks: Sequence[str] | None = None) -> dict[str, float]:
        """Mean over tasks with its 95 % interval over rows, rows averaged over seeds."""
        values = self.values(system, metric, tasks)
        d = paired_difference(values, {task: np.zeros_like(rows) for task, rows in values.items()})
        return {"value": d["difference"], "low": d["low"], "high": d["high"]}

    def spread(self, system: str, metric: str, tasks: Sequence[str] | None = None) -> list[float]:
        """The same mean, for each seed alone."""
        return [
            float(np.mean([v.mean() for v in self.values(system, metric, tasks, seed).values()]))
            for seed in self.seeds(system, self.tasks[0])
        ]

    def difference(self, a: str, b: str, metric: str, tasks: Sequence[str] | None = None) -> dict[str, float]:
        """Paired difference a - b over the same rows, averaged over seeds."""
        return paired_difference(self.values(a, metric, tasks), self.values(b, metric, tasks))

    def counts(self, task: str, metric: str) -> bool:
        """Whether a task's own expert beats the base on it, so that there is something to compose."""
        d = self.difference(EXPERT, BASE, metric, [task])
        return d["p"] < LEVEL and d["difference"] * BETTER[metric] > 0


def section(folder: Path) -> list[str]:
    """Paragraphs and tables, empty where the run has not been made."""
    if not all((folder / f"{name}.jsonl").exists() for name in ("scores", "train", "experts")):
        return []
    scores = Scores(read_records(folder / "scores.jsonl"))
    training = [r for r in read_records(folder / "train.jsonl") if r["suite"] == "train"]
    helped = {m: [t for t in scores.tasks if EXPERT in scores.systems and scores.counts(t, m)] for m in METRICS}
    parts = [
        "## The real run, three seeds",
        _conditions(scores, training, read_records(folder / "experts.jsonl")),
        _means(scores, scores.tasks),
        PAIRED,
        _pairs(scores, scores.tasks),
        "### Tasks where an expert helps",
        f"An expert helps where it, alone, beats the base on these rows (paired p < {LEVEL:g}, one test a task and metric).",
        markdown(
            ["metric", "an expert helps", "these tasks"],
            [[METRICS[m], f"{len(tasks)} of {len(scores.tasks)}", ", ".join(tasks)] for m, tasks in helped.items()],
        ),
    ]
    for metric, tasks in helped.items():
        if tasks and len(tasks) < len(scores.tasks):
            parts += [f"Over those by {METRICS[metric]}:", _means(scores, tasks), _pairs(scores, tasks)]
    parts += ["### Task by task, three seeds", "Mean over seeds."]
    for metric, words in METRICS.items():
        parts += [f"{words[0].upper()}{words[1:]}:", _by_task(scores, metric, helped[metric])]
    return [*parts, "### What training cost, three seeds", _training(training)]


def _conditions(scores: Scores, training: list[dict[str, Any]], experts: list[dict[str, Any]]) -> str:
    one = scores.rows[BASE, scores.tasks[0], 0]
    rows = sorted({scores.rows[BASE, task, 0]["metrics"]["n"] for task in scores.tasks})
    options, own = training[-1]["options"], experts[0]["options"]
    parameters = {r["case"]: r["metrics"]["trained_parameters"] for r in training}
    facts = {
        "base": "SmolLM2-135M-Instruct",
        "tasks": ", ".join(scores.tasks),
        "experts": f"{len(experts)}, one a task, the same for all seeds; rank {own['rank']}, alpha {own['alpha']}, {own['steps']} steps "
        f"of {own['batch_size']} rows, learning rate {own['lr']:g}",
        "gates": f"top-{options['top_k']}, {options['steps']} steps of {options['batch_size']} rows of all tasks",
        "seeds": ", ".join(f"{s}: {len(scores.seeds(s, scores.tasks[0]))}" for s in GATES if s in scores.systems),
        "parameters of radar / stretch": f"{parameters['radar'] / parameters['stretch']:.1f}",
        "scored rows a task": " to ".join(map(str, dict.fromkeys((rows[0], rows[-1])))),
        "versions of the code that trained": str(len({r["commit"] for r in training})),
        "machine": f"{one['machine']['cpu']}, {one['machine']['cores']} cores",
        "commands": "[benchmarks/results/three_seeds/commands.sh](../benchmarks/results/three_seeds/commands.sh)",
    }
    return facts_table("", "", facts).markdown()


def _means(scores: Scores, tasks: Sequence[str]) -> str:
    rows = []
    for system in scores.systems:
        row = [NAMES[system]]
        for metric in METRICS:
            single = scores.spread(system, metric, tasks)
            row += [
                cell(scores.mean(system, metric, tasks)),
                f"{min(single):.3f} to {max(single):.3f}" if len(single) > 1 else "",
            ]
        rows.append(row)
    return markdown(["system", "accuracy", "seeds", "gold-answer NLL", "seeds"], rows)


def _pairs(scores: Scores, tasks: Sequence[str]) -> str:
    rows = []
    for a, b in _present(scores):
        row = [f"{NAMES[a]} − {NAMES[b]}"]
        for metric in METRICS:
            d = scores.difference(a, b, metric, tasks)
            better = NAMES[a if d["difference"] * BETTER[metric] > 0 else b]
            seeds = ", ".join(f"{v:+.3f}" for v in _of_seeds(scores, a, b, metric, tasks))
            row += [delta(d), f"{d['p']:.4f}", seeds, better if d["p"] < LEVEL else "not significant"]
        rows.append(row)
    return markdown(["difference", "accuracy", "p", "seeds", "better", "NLL", "p", "seeds", "better"], rows)


def _present(scores: Scores) -> list[tuple[str, str]]:
    return [(a, b) for a, b in PAIRS if a in scores.systems and b in scores.systems]


def _of_seeds(scores: Scores, a: str, b: str, metric: str, tasks: Sequence[str] | None = None) -> list[float]:
    first, second = scores.spread(a, metric, tasks), scores.spread(b, metric, tasks)
    if len(first) < 2 or len(first) != len(second):
        return []
    return [x - y for x, y in zip(first, second, strict=True)]


def _by_task(scores: Scores, metric: str, helped: Sequence[str]) -> str:
    return markdown(
        ["task", *(NAMES[s] for s in scores.systems), "an expert helps"],
        [
            [
                task,
                *(f"{scores.mean(s, metric, [task])['value']:.3f}" for s in scores.systems),
                "yes" if task in helped else "no",
            ]
            for task in scores.tasks
        ],
    )


def _training(training: list[dict[str, Any]]) -> str:
    rows = []
    for record in sorted(training, key=lambda r: (list(NAMES).index(r["case"]), r["options"]["seed"])):
        metrics = record["metrics"]
        if not metrics["trained_parameters"]:
            continue
        angle = metrics["mean_angle"]
        rows.append(
            [
                NAMES[record["case"]],
                str(record["options"]["seed"]),
                f"{metrics['trained_parameters']:,}",
                f"{metrics['final_loss']:.3f}",
                "" if angle is None else f"{angle:.3f}",
                f"{metrics['seconds']:.0f}",
            ]
        )
    return markdown(["gate", "seed", "trained parameters", "last loss", "mean angle (rad)", "seconds"], rows)
