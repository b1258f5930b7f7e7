"""The top of the results page: what was asked of radar and what was found, as tables made from the records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from experiments_section import findings_of
from radargate.comparison.pairs import tests_table
from radargate.comparison.ranking import PairedTest, compare_pairs, standings
from radargate.comparison.results import ORACLE
from radargate.gates import GATES
from radargate.io.records import read_records
from radargate.paper.findings import Findings, Value
from tables import markdown
from three_seeds import BETTER, METRICS, Scores

ASKED = 0.95  # of the oracle's accuracy
POINT = 0.01  # of accuracy
NAMES = (
    "learnable",
    "routed",
    "ablation",
    "forms",
    "samples",
    "modules",
    "crowded",
    "model-size",
    "generalization",
    "recipes",
)
RADAR, ROUTED = "radar (mole)", "router=text"
INTRODUCTION = """\
One 135M model (and one of 270M in `model-size`) on two cores, three seeds. *Significant*: paired p over the same rows below 0.05, Holm-corrected over the
comparisons of an experiment by one metric, and with three seeds p over seeds (paired t) below 0.05 too; *rows only* stands where there are fewer seeds. *NLL*: mean negative log-likelihood of the right answer in nats a token, lower is better. *oracle*: each task's own
expert, which has to be told the task. *mole*, *hydra* and *omoe*: architectures. *signed* (stretch with free signs), *lora* (a small LoRA beside the mixture),
*vector*, *mlp* and *multiplicative*: controls without rotation, with as many parameters or more freedom. `router=text`: one decision for the whole model
([method.md](method.md#the-router-of-the-whole-model)). `forms` and `recipes` are scored on validation rows, `recipes` with one seed."""


def section(results: Path) -> list[str]:
    """Tables, one a question; experiments that were not run are not in them."""
    found = {name: each for name in NAMES if (each := findings_of(results / "experiments" / name)) is not None}
    scores = _three_seeds(results / "three_seeds")
    best = [
        "experiment",
        "at",
        "best by NLL",
        "NLL",
        "NLL of radar",
        "place of radar",
        "significantly worse than the best",
    ]
    against = ["experiment", "at", "metric", "radar is significantly better than", "not significant", "worse than"]
    share = ["experiment", "at", "system", "accuracy", "oracle", "share", "tasks whose own expert beats the base"]
    recipe = ["gate", "lowest NLL", "learning rate", "rotation", "options", "tried", "highest NLL"]
    return [
        "## In short: does rotation help?",
        INTRODUCTION,
        "**What was asked of radar**",
        markdown(["asked", "experiment", "reached"], list(_goals(found, scores))),
        "**The best gate or rule of each experiment**",
        markdown(best, list(_best(found))),
        "**Radar against the other gates** (differences radar − other)",
        markdown(against, list(_against(found))),
        "**A router of the whole model** (Holm's correction over the pairs of one experiment)",
        *_routers(found),
        "**How much of the oracle's accuracy is kept**",
        markdown(share, [*_shares(found), *_share_of(scores)]),
        "**Radar on benchmarks that nothing was trained on, against what needs no gate**",
        *_plain(found.get("generalization")),
        "**How each gate wants to be trained**",
        markdown(recipe, list(_recipes(found.get("recipes")))),
    ]


def _goals(found: Mapping[str, Findings], scores: Scores | None) -> Iterator[list[str]]:
    paper = "lower NLL than each of the paper's other gates, significantly, and no lower accuracy"
    for name in ("learnable", "ablation"):
        if name in found:
            tests = [t for m in METRICS for t in found[name].where_it_counts[m] or found[name].rotation[m]]
            tests = [t for t in tests if _other(t) in GATES.having(role="paper")]
            met = all(t.better == t.first for t in tests if t.metric == "nll")
            yield [paper, name, _reached(met and not any(t.better == t.second for t in tests))]
    shares = [(name, label, value) for name, _, label, *_, value in _oracle_shares(found) if ROUTED in label]
    for name, label, value in shares:
        yield [f"{ASKED:.0%} of the oracle's accuracy", f"{name}, {label}", _reached(value >= ASKED)]
    if scores is not None:
        radar, own = (scores.mean(system, "acc", scores.tasks)["value"] for system in ("radar", "expert"))
        yield [f"{ASKED:.0%} of the oracle's accuracy", "three seeds, radar", _reached(radar / own >= ASKED)]
    for name in ("crowded", "modules"):
        if name in found:
            changes = {t.first.partition(" (")[0]: t.difference for t in found[name].change["acc"]}
            changes = {gate: change for gate, change in changes.items() if gate in GATES.having(role="paper")}
            others = max(change for gate, change in changes.items() if gate != "radar")
            met = (changes["radar"] > -POINT and others < -POINT) or min(changes.values()) >= 0
            yield [
                "with many experts, less than a point lost where others lose more, or none lost",
                name,
                _reached(met),
            ]
    if "samples" in found:
        gains = [t.difference * BETTER[m] for m in METRICS for t in found["samples"].rotation[m] if t.at == 50]
        yield ["with 50 rows a task, means level with the other gates", "samples", _reached(min(gains) >= 0)]


def _best(found: Mapping[str, Findings]) -> Iterator[list[str]]:
    for name, value in _last(found, leave_out=("recipes", "generalization")):
        results = found[name].by_value[value]
        ranked = [s for s in standings(results, "nll") if results.systems[s.label].kind in ("gate", "rule")]
        place = next(place for place, s in enumerate(ranked) if s.label == RADAR)
        worse = [t.better for t in found[name].lead["nll"] if t.at == value and t.second == RADAR]
        shown = [
            ranked[0].label,
            f"{ranked[0].value:.3f}",
            f"{ranked[place].value:.3f}",
            f"{place + 1} of {len(ranked)}",
        ]
        yield [
            name,
            found[name].short(value) if found[name].axis else "",
            *shown,
            "" if not place else "yes" if any(worse) else "no",
        ]


def _against(found: Mapping[str, Findings]) -> Iterator[list[str]]:
    for name, findings in found.items():
        for value in [] if name == "recipes" else findings.by_value:
            for metric, words in METRICS.items():
                tests = [t for t in findings.rotation[metric] if t.at == value]
                groups = [
                    ", ".join(f"{_other(t)} {t.difference:+.3f}" for t in tests if t.better == winner(t))
                    for winner in (lambda t: t.first, lambda t: None, lambda t: t.second)
                ]
                yield [name, findings.short(value) if findings.axis else "", words, *groups]


def _routers(found: Mapping[str, Findings]) -> Iterator[str]:
    for name, value in _last(found):
        results = found[name].by_value[value]
        labels = [label for label in results.systems if ROUTED in label]
        pairs = [(label, other) for label in labels for other in (label.replace(f" {ROUTED}", ""), ORACLE)]
        if labels:
            pairs.append((f"radar {ROUTED} (mole)", f"stretch {ROUTED} (mole)"))
            tests = {metric: compare_pairs(results, metric, pairs) for metric in METRICS}
            yield tests_table("", "", tests, {"experiment": lambda test, name=name: name}).markdown()


def _oracle_shares(found: Mapping[str, Findings]) -> Iterator[tuple[str, Value, str, float, float, float]]:
    """Experiment, place on its axis, label, its accuracy, the oracle's, and the share."""
    for name, value in _last(found, leave_out=("forms", "recipes", "model-size")):
        means = {s.label: s.value for s in standings(found[name].by_value[value], "acc")}
        for label in means if ORACLE in means else ():
            if label == RADAR or ROUTED in label:
                yield name, value, label, means[label], means[ORACLE], means[label] / means[ORACLE]


def _shares(found: Mapping[str, Findings]) -> Iterator[list[str]]:
    for name, value, label, accuracy, oracle, share in _oracle_shares(found):
        helped = len(found[name].counting(value, "acc") or ())
        total = len(found[name].by_value[value].tasks_of("acc"))
        at = found[name].short(value) if found[name].axis else ""
        yield [name, at, label, f"{accuracy:.3f}", f"{oracle:.3f}", f"{share:.1%}", f"{helped} of {total}"]


def _share_of(scores: Scores | None) -> Iterator[list[str]]:
    """Radar's share in the run with three seeds, over all tasks and over those whose expert helps."""
    if scores is not None:
        helped = [task for task in scores.tasks if scores.counts(task, "acc")]
        for tasks in (scores.tasks, helped):
            radar, own = (scores.mean(system, "acc", tasks)["value"] for system in ("radar", "expert"))
            shown = [f"{radar:.3f}", f"{own:.3f}", f"{radar / own:.1%}", f"{len(helped)} of {len(tasks)}"]
            yield ["three seeds", "", RADAR, *shown]


def _plain(found: Findings | None) -> list[str]:
    if found is None:
        return []
    (results,) = found.by_value.values()
    plain = [s.label for s in results.systems.values() if s.kind in ("base", "rule")]
    tests = {metric: compare_pairs(results, metric, [(RADAR, label) for label in plain]) for metric in METRICS}
    return [tests_table("", "", tests).markdown()]


def _recipes(found: Findings | None) -> Iterator[list[str]]:
    """What was tried for each gate, and what had the lowest NLL."""
    if found is None:
        return
    (results,) = found.by_value.values()
    ranked = [(results.systems[s.label], s.value) for s in standings(results, "nll")]
    for gate in dict.fromkeys(s.cells[0]["options"]["gate"] for s, _ in ranked if s.kind == "gate"):
        tried = [(s, nll) for s, nll in ranked if s.kind == "gate" and s.cells[0]["options"]["gate"] == gate]
        best, lowest = tried[0]
        options = best.cells[0]["options"]
        own = ", ".join(f"{key} {value}" for key, value in options["gate_options"].items())
        rates = [f"{options['lr']:g}", f"{options['rotation_lr']:g}"]
        yield [gate, f"{lowest:.3f}", *rates, own, str(len(tried)), f"{tried[-1][1]:.3f}"]


def _last(found: Mapping[str, Findings], leave_out: Sequence[str] = ()) -> Iterable[tuple[str, Value]]:
    """Every experiment that has radar, and the last value of its axis."""
    for name, findings in found.items():
        value = list(findings.by_value)[-1]
        if name not in leave_out and RADAR in findings.by_value[value].systems:
            yield name, value


def _three_seeds(folder: Path) -> Scores | None:
    file = folder / "scores.jsonl"
    return Scores(read_records(file)) if file.exists() else None


def _other(test: PairedTest) -> str:
    return test.second.partition(" (")[0]


def _reached(met: bool) -> str:
    return "yes" if met else "no"
