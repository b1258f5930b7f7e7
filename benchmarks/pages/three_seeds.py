"""The section of docs/results.md on the real run with three seeds, from its records alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radargate.evaluation.metrics import paired_difference, row_values
from radargate.io.records import read_records
from tables import cell, delta, table

BASE, EXPERT = "smollm2-135m", "expert"
NAMES = {BASE: "base", "uniform": "uniform mixture", "stretch": "stretch", "radar": "radar", EXPERT: "own expert"}
PAIRS = (("radar", "stretch"), ("radar", "uniform"), ("stretch", "uniform"), ("uniform", BASE), ("radar", EXPERT))
METRICS = {"acc": "accuracy", "nll": "gold-answer NLL"}
BETTER = {"acc": 1, "nll": -1}
LEVEL = 0.05


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
    counting = {m: [t for t in scores.tasks if EXPERT in scores.systems and scores.counts(t, m)] for m in METRICS}
    parts = [
        "## The real run, three seeds",
        _conditions(scores, training, read_records(folder / "experts.jsonl")),
        _means(scores, scores.tasks),
        _verdict(scores),
        "Paired over the same rows, averaged over seeds and then over tasks; p from sign flips. The last columns are the "
        "differences of the single seeds, where both sides have them.",
        _pairs(scores, scores.tasks),
        _caution(training),
        "### Tasks that count",
        f"A task counts where its own expert, alone, beats the base on these rows (paired p < {LEVEL:g}, one test a task and metric): elsewhere "
        f"there is nothing to compose. By accuracy {_number(len(counting['acc']), scores)}"
        f"{_listed(counting['acc'])}, by NLL {_number(len(counting['nll']), scores)}{_listed(counting['nll'])}.",
    ]
    for metric, tasks in counting.items():
        if tasks and len(tasks) < len(scores.tasks):
            parts += [
                f"Over the {len(tasks)} that count by {METRICS[metric]}:",
                _means(scores, tasks),
                _pairs(scores, tasks),
            ]
    parts += ["### Task by task, three seeds", "Mean over seeds. The last column says whether the task counts."]
    for metric, words in METRICS.items():
        parts += [f"{words[0].upper()}{words[1:]}:", _by_task(scores, metric, counting[metric])]
    return [*parts, "### What training cost, three seeds", _training(training)]


def _conditions(scores: Scores, training: list[dict[str, Any]], experts: list[dict[str, Any]]) -> str:
    one = scores.rows[BASE, scores.tasks[0], 0]
    rows = sorted({scores.rows[BASE, task, 0]["metrics"]["n"] for task in scores.tasks})
    options, own = training[-1]["options"], experts[0]["options"]
    seeds = {s: len(scores.seeds(s, scores.tasks[0])) for s in ("stretch", "radar") if s in scores.systems}
    return (
        f"SmolLM2-135M-Instruct; {len(scores.tasks)} tasks ({', '.join(scores.tasks)}); {len(experts)} experts, one a task, rank {own['rank']}, "
        f"alpha {own['alpha']}, {own['steps']} steps of {own['batch_size']} rows at {own['lr']:g}; gates trained on the mixture of all tasks, "
        f"top-{options['top_k']} of {len(experts)}, {options['steps']} steps of {options['batch_size']} rows, "
        f"{' and '.join(f'{n} seeds of {s}' for s, n in seeds.items())}; the experts are the same for all seeds. Scored on the first "
        f"{' to '.join(map(str, dict.fromkeys((rows[0], rows[-1]))))} test rows of each task. Brackets are 95 % bootstrap intervals over rows, "
        f"each row averaged over seeds; *seeds* is the lowest and the highest mean of a single seed. {one['machine']['cpu']}, "
        f"{one['machine']['cores']} cores; commands in [benchmarks/results/three_seeds/commands.sh](../benchmarks/results/three_seeds/commands.sh)."
    )


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
    return table(["system", "accuracy", "seeds", "gold-answer NLL", "seeds"], rows)


def _pairs(scores: Scores, tasks: Sequence[str]) -> str:
    rows = []
    for a, b in _present(scores):
        row = [f"{NAMES[a]} − {NAMES[b]}"]
        for metric in METRICS:
            d = scores.difference(a, b, metric, tasks)
            row += [delta(d), f"{d['p']:.4f}", ", ".join(f"{v:+.3f}" for v in _of_seeds(scores, a, b, metric, tasks))]
        rows.append(row)
    return table(["difference", "accuracy", "p", "seeds", "NLL", "p", "seeds"], rows)


def _present(scores: Scores) -> list[tuple[str, str]]:
    return [(a, b) for a, b in PAIRS if a in scores.systems and b in scores.systems]


def _of_seeds(scores: Scores, a: str, b: str, metric: str, tasks: Sequence[str] | None = None) -> list[float]:
    first, second = scores.spread(a, metric, tasks), scores.spread(b, metric, tasks)
    if len(first) < 2 or len(first) != len(second):
        return []
    return [x - y for x, y in zip(first, second, strict=True)]


def _verdict(scores: Scores) -> str:
    """Who wins, in words made from the numbers."""
    lines = []
    for a, b in _present(scores):
        words = [_in_words(scores, a, b, metric) for metric in METRICS]
        lines.append(f"- {NAMES[a]} against {NAMES[b]}: {'; '.join(words)}.")
    return "In words:\n\n" + "\n".join(lines)


def _in_words(scores: Scores, a: str, b: str, metric: str) -> str:
    d, single = scores.difference(a, b, metric), _of_seeds(scores, a, b, metric)
    if d["p"] >= LEVEL:
        return f"no difference in {METRICS[metric]} can be claimed (p = {d['p']:.2f})"
    better = a if d["difference"] * BETTER[metric] > 0 else b
    agree = sum(value * d["difference"] > 0 for value in single)
    seeds = f", so in {agree} of {len(single)} seeds" if single else ""
    word = "higher" if metric == "acc" else "lower"
    return f"{NAMES[better]} has the {word} {METRICS[metric]}, by {abs(d['difference']):.3f} (p = {d['p']:.4f}{seeds})"


def _caution(training: Sequence[dict[str, Any]]) -> str:
    numbers = {r["case"]: r["metrics"]["trained_parameters"] for r in training}
    more = (
        f"; radar trains {numbers['radar'] / numbers['stretch']:.1f} times as many numbers as stretch"
        if {"radar", "stretch"} <= numbers.keys()
        else ""
    )
    commits = len({r["commit"] for r in training})
    code = (
        f" The gates were trained by {commits} versions of the code, so their seconds do not compare."
        if commits > 1
        else ""
    )
    return (
        "Mind what this is not: a seed changes the gates' initial values and the order of rows, never the experts or the test rows; a few seeds "
        f"show a spread, not an interval; p counts rows, and nothing is corrected for the number of comparisons{more}.{code}"
    )


def _number(count: int, scores: Scores) -> str:
    return f"{count} of {len(scores.tasks)} count" + ("s" if count == 1 else "")


def _listed(tasks: Sequence[str]) -> str:
    return f" ({', '.join(tasks)})" if tasks else ""


def _by_task(scores: Scores, metric: str, counting: Sequence[str]) -> str:
    return table(
        ["task", *(NAMES[s] for s in scores.systems), "counts"],
        [
            [
                task,
                *(f"{scores.mean(s, metric, [task])['value']:.3f}" for s in scores.systems),
                "yes" if task in counting else "no",
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
    return table(["gate", "seed", "trained numbers", "last loss", "mean angle (rad)", "seconds"], rows)
