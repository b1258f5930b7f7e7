"""The top of the results page: what was asked of radar, and what the records answer; every sentence is made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments_section import findings_of
from radargate.comparison.analysis import CONTROLS, PAPER_GATES, rotation_pairs
from radargate.comparison.ranking import SIGNIFICANT, Comparison, compare_pairs, standings
from radargate.comparison.results import ORACLE, read_results
from radargate.io.records import read_records
from radargate.paper import words as experiment_words
from radargate.paper.findings import Findings, Test
from three_seeds import BETTER, METRICS, Scores

ASKED = 0.95  # of the mean of single experts
POINT = 0.01  # of accuracy


def section(results: Path) -> list[str]:
    """One paragraph a question; what was not run is said to be so."""
    found = {
        name: findings_of(results / "experiments" / name)
        for name in (
            "learnable",
            "routed",
            "recipes",
            "ablation",
            "fitting",
            "forms",
            "samples",
            "modules",
            "crowded",
            "model-size",
            "generalization",
        )
    }
    gates = [f for name in ("ablation", "fitting") if (f := found[name]) is not None]
    learned = [f for f in (found["learnable"],) if f is not None]
    return [
        "## In short: does rotation help?",
        f"Everything here is a 135M model{', in `model-size` one of 270M beside it,' if found['model-size'] else ''} on two cores, so what differs little is not told apart. "
        "A difference is *told apart* where its paired p over the same rows is below 0.05, Holm-corrected over the comparisons of its "
        "experiment by that metric. Such a p speaks of these rows, tasks and three seeds; the tables below give the single seeds.\n\n"
        "*NLL* is the mean negative log-likelihood of the right answer in nats a token, lower is better. *mole*, *hydra* and *omoe* are the "
        "architectures under the gates. *stretch*, *rotation*, *nexus* and *tutel* are the paper's other gates; *signed* (stretch with free "
        "signs), *lora* (a small LoRA beside the mixture), *vector*, *mlp* and *multiplicative* are controls: no rotation, but as many "
        "parameters or more freedom.",
        "\n".join(
            [
                f"- **Which composition is best**, whatever it does. {_best(found)}",
                f"- **With a router of the whole model** (`router=text`, ours and no rotation; [method.md](method.md#the-router-of-the-whole-model)). {_routed(found['routed'])}",
                f"- **Against the paper's other gates, where experts have something to give** (asked: on tasks that count a lower NLL than each, p < 0.05, and no lower accuracy). **{_met_against(learned)}** "
                f"{_tuned(found['learnable'], PAPER_GATES)}",
                f"- **Against the paper's other gates on the paper's nine tasks**{_rates(found['ablation'])}. **{_met_against(gates)}** {_against(gates, PAPER_GATES)} "
                f"{_most_rows(results / 'three_seeds')} {_elsewhere(results / 'compare')}",
                f"- **Against the controls**. {_tuned(found['learnable'], CONTROLS[1:])} On the nine tasks: {_against(gates, CONTROLS[1:])} {_controls(found['modules'])}",
                f"- **Which form of rotation** (on validation rows). {_forms(found['forms'])}",
                f"- **How to train it** (on validation rows, one seed). {_recipes(found['recipes'])}",
                f"- **Against each task's own expert** (asked: {ASKED:.0%} of their mean). {_router_verdict(found['routed'], found['crowded'])} Without: {_experts(results / 'three_seeds')} {_shares(found)}",
                f"- **More experts** (asked: radar loses less than a point from few to many where the others lose more, or none loses). {_more_where_it_counts(found['crowded'])} With weak experts, in `modules`: {_more(found['modules'])}",
                f"- **Beyond the tasks learned**, on the paper's benchmarks. {_beyond(found['generalization'])}",
                f"- **Another base**. {_bases(found['model-size'])}",
                f"- **Few training rows** (asked: with 50 rows a task, radar at least level with the other gates). {_few(found['samples'])}",
            ]
        ),
    ]


def _best(found: Mapping[str, Findings | None]) -> str:
    """The lowest NLL of each experiment, and radar's beside it."""
    parts, ahead = [], []
    for name, findings in found.items():
        if findings is None or name in ("fitting", "recipes", "generalization"):
            # of cells that are mostly the ablation's; of many rates, one seed each; of what nothing was trained on
            continue
        value, grid = list(findings.grids.items())[-1]
        ranked = [s for s in standings(grid, "nll") if grid.systems[s.label].kind in ("gate", "rule")]
        radar = next((place for place, s in enumerate(ranked, 1) if s.label == "radar (mole)"), None)
        if radar is None:
            continue
        where = f", {findings.said(value)}" if findings.axis else ""
        test = next(
            (t.result for t in findings.lead["nll"] if t.value == value and t.result.second == "radar (mole)"), None
        )
        told = "" if test is None else ", told apart" if test.better else ", not told apart"
        leader = "" if radar == 1 else f"{ranked[0].label.removesuffix(' (mole)')} {ranked[0].value:.3f}, "
        parts.append(
            f"{name}{where}: {leader}radar {ranked[radar - 1].value:.3f} (place {radar} of {len(ranked)}{told})"
        )
        if test is not None and test.better:
            ahead.append(f"{test.first.removesuffix(' (mole)')} in {name}")
    if not parts:
        return _sentences([])
    first = (
        f"Told apart from radar, and better: {', '.join(ahead)}; try those first."
        if ahead
        else "Nothing is told apart from radar."
    )
    return f"{first} The lowest mean NLL: {'; '.join(parts)}."


def _routed(found: Findings | None) -> str:
    """What one decision for the whole model adds to a gate, what is left to the own experts, and what turning adds beside it."""
    if found is None:
        return _sentences([])
    (grid,), labels, lines = found.grids.values(), list(_router_shares(found)), []
    for metric, words in METRICS.items():
        means = {s.label: s.value for s in standings(grid, metric)}
        pairs = [(label, other) for label in labels for other in (label.replace(" router=text", ""), ORACLE)]
        tests = compare_pairs(grid, metric, [*pairs, ("radar router=text (mole)", "stretch router=text (mole)")])
        for label in labels:
            own = {r.second.partition(" (")[0]: Test(None, r) for r in tests if r.first == label}
            lines.append(
                f"By {words} {label.partition(' ')[0]} with it has {means[label]:.3f} and is {_verdicts(own, metric)}."
            )
    return _sentences(
        [
            f"{_router_verdict(found, None)} In `routed` ({_tasks(found)}; Holm-corrected among these):",
            *lines,
        ]
    )


def _router_shares(found: Findings) -> dict[str, float]:
    """Label of each gate with a router → its accuracy as a share of the own experts', at the last value of the axis."""
    grid = list(found.grids.values())[-1]
    means = {s.label: s.value for s in standings(grid, "acc")}
    return {label: means[label] / means[ORACLE] for label in grid.systems if "router=text" in label}


def _router_verdict(found: Findings | None, crowded: Findings | None) -> str:
    if found is None:
        return ""
    parts, least = [], []
    for findings in (found, crowded):
        if findings is not None:
            shares, last = _router_shares(findings), list(findings.grids)[-1]
            said = " and ".join(f"{label.partition(' ')[0]} {share:.1%}" for label, share in shares.items())
            parts.append(f"{f'with {findings.short(last)} experts ' if findings.axis else ''}{said}")
            least += shares.values()
    return f"**{'Met' if min(least) >= ASKED else 'Not met by all'} with `router=text`**: {'; '.join(parts)} of the own experts' accuracy."


def _against(found: Sequence[Findings], names: Sequence[str]) -> str:
    """Radar − each, by both metrics; the first experiment that has a pair counts."""
    lines = []
    for metric, words in METRICS.items():
        tests: dict[str, Test] = {}
        for findings in found:
            for test in findings.rotation[metric]:
                name = test.result.second.partition(" (")[0]
                if name in names:
                    tests.setdefault(name, test)
        if tests:
            lines.append(f"By {words} radar is {_verdicts(tests, metric)}.")
    return _sentences(lines)


def _rates(found: Findings | None) -> str:
    return f", all at the rate {found.rates}" if found else ""


def _tuned(found: Findings | None, names: Sequence[str]) -> str:
    """Radar − each on the tasks that the base can learn, every gate at its own rates."""
    if found is None:
        return ""
    return f"In `learnable` ({_tasks(found)}; rates chosen on validation rows): {_against([found], names)}"


def _tasks(found: Findings) -> str:
    """How many tasks an experiment without an axis has, and how many of them count."""
    (grid,) = found.grids.values()
    counting = {metric: len(found.counting(None, metric) or ()) for metric in METRICS}
    return f"{len(grid.tasks)} tasks, {counting['acc']} count by accuracy and {counting['nll']} by NLL"


def _beyond(found: Findings | None) -> str:
    """Radar − the paper's gates, and − what needs no gate, on benchmarks that nothing was trained on."""
    if found is None:
        return _sentences([])
    (grid,) = found.grids.values()
    plain = [s.label for s in grid.systems.values() if s.name in ("base", "uniform", "arrow", "union LoRA")]
    lines = [_against([found], PAPER_GATES)]
    for metric, words in METRICS.items() if "radar (mole)" in grid.systems and plain else ():
        tests = compare_pairs(grid, metric, [("radar (mole)", label) for label in plain])
        lines.append(
            f"By {words} (Holm-corrected among these) it is {_verdicts(_by_name(Test(None, t) for t in tests), metric)}."
        )
    return _sentences([f"{len(grid.tasks)} tasks, {len(grid.tasks_of('acc'))} of them counted by accuracy.", *lines])


def _bases(found: Findings | None) -> str:
    """Radar − the paper's gates on each base."""
    lines = []
    for value in found.grids if found is not None else ():
        for metric, words in METRICS.items():
            if tests := _by_name(t for t in found.rotation[metric] if t.value == value):
                lines.append(f"On {value}, by {words} radar is {_verdicts(tests, metric)}.")
    return _sentences(lines)


def _met_against(found: Sequence[Findings]) -> str:
    """Whether radar's NLL is told apart from every other gate's of the paper, and no accuracy is worse; on tasks that count."""
    tests = {
        metric: [
            t.result
            for f in found
            for t in f.where_it_counts[metric] or f.rotation[metric]
            if t.result.second.partition(" (")[0] in PAPER_GATES
        ]
        for metric in METRICS
    }
    if {r.second.partition(" (")[0] for r in tests["nll"]} != set(PAPER_GATES):
        return "Not run yet."
    lower = all(r.better == r.first for r in tests["nll"])
    worse = [r.second for metric in METRICS for r in tests[metric] if r.better == r.second]
    if worse or lower:
        return "Not met." if worse else "Met."
    told = any(r.better for metric in METRICS for r in tests[metric])
    return "Not shown for all of them." if told else "Not shown: no difference is told apart."


def _controls(found: Findings | None) -> str:
    """Where the experts are weak: radar − each control, with the largest bank."""
    if found is None:
        return ""
    last = list(found.grids)[-1]
    tests = _by_name(t for t in found.rotation["nll"] if t.value == last)
    tests = {name: test for name, test in tests.items() if name in CONTROLS[1:]}
    steps = found.request["design"]["expert_steps"]
    return (
        f"With {found.short(last)} weak experts ({steps} steps each), by gold-answer NLL radar is {_verdicts(tests, 'nll')}."
        if tests
        else ""
    )


def _most_rows(folder: Path) -> str:
    """Radar − stretch in the run with the most rows; it has no other gate."""
    if not (folder / "scores.jsonl").exists():
        return ""
    scores = Scores(read_records(folder / "scores.jsonl"))
    rows = sum(len(rows) for rows in scores.values("radar", "acc").values())
    parts = []
    for metric, words in METRICS.items():
        d = scores.difference("radar", "stretch", metric)
        told = (
            "not told apart" if d["p"] >= SIGNIFICANT else "better" if d["difference"] * BETTER[metric] > 0 else "worse"
        )
        parts.append(f"{words} {d['difference']:+.3f} ({told}, p {d['p']:.3f})")
    return f"In the run with most rows ({len(scores.tasks)} tasks, {rows} rows, uncorrected) radar − stretch is: {', '.join(parts)}."


def _elsewhere(folder: Path) -> str:
    """Radar − stretch under the other architectures, in the small comparison of every system."""
    file = folder / "records.jsonl"
    if not file.exists():
        return ""
    grid = read_results(read_records(file))
    lines = []
    for metric, words in METRICS.items():
        tests = compare_pairs(grid, metric, rotation_pairs(grid))
        pairs = [r for r in tests if r.second.startswith("stretch (") and "(mole)" not in r.second]
        parts = [f"{r.difference:+.3f} under {r.second[len('stretch (') : -1]} (Holm p {r.holm:.4f})" for r in pairs]
        lines.append(f"{words} {' and '.join(parts)}")
    return f"In the small comparison of every system radar − stretch is: {'; '.join(lines)}."


def _by_name(tests: Iterable[Test]) -> dict[str, Test]:
    """The other side's name, without its architecture → test."""
    return {test.result.second.partition(" (")[0]: test for test in tests}


def _verdicts(tests: dict[str, Test], metric: str) -> str:
    groups: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
    for name, test in tests.items():
        r = test.result
        told = "not told apart from" if r.better is None else "better than" if r.better == r.first else "worse than"
        groups[told].append(f"{name} ({r.difference:+.3f})")
    return ", ".join(f"{words} {', '.join(names)}" for words, names in groups.items() if names)


def _forms(found: Findings | None) -> str:
    if found is None:
        return _sentences([])
    (grid,) = found.grids.values()
    if "radar (mole)" not in grid.systems:
        return _sentences([])
    turning = {s.label: s.value for s in standings(grid, "nll") if "radar" in s.label}
    best = min(turning, key=turning.__getitem__)
    tests = _by_name(found.rotation["nll"])
    return (
        f"Of {len(turning)} forms, at the rate {found.rates}, {best.partition(' (')[0]} has the lowest NLL, {turning[best]:.3f}; radar in its default form has "
        f"{turning['radar (mole)']:.3f} and is {_verdicts({n: tests[n] for n in ('stretch', 'signed', 'lora') if n in tests}, 'nll')}."
    )


def _recipes(found: Findings | None) -> str:
    """Of what was tried for each gate, what had the lowest NLL."""
    if found is None:
        return _sentences([])
    (grid,) = found.grids.values()
    tried: dict[str, list[tuple[float, str]]] = {}
    for standing in standings(grid, "nll"):
        system = grid.systems[standing.label]
        if system.kind == "gate":
            options, turns = system.cells[0]["options"], system.measured("mean_angle") is not None
            rotation = f" and rotation {options['rotation_lr']:g}" if turns or "lora" in standing.label else ""
            own = [f"{key} {value}" for key, value in options["gate_options"].items()]
            how = ", ".join([f"{options['lr']:g}{rotation}", *own])
            tried.setdefault(options["gate"], []).append((standing.value, how))
    parts = [
        f"{gate} {values[0][0]:.3f} (at {values[0][1]}; {len(values)} tried, up to {values[-1][0]:.3f})"
        for gate, values in tried.items()
    ]
    return f"The lowest NLL of each gate, and at which rate: {', '.join(parts)}."


def _experts(folder: Path) -> str:
    if not (folder / "scores.jsonl").exists():
        return _sentences([])
    scores = Scores(read_records(folder / "scores.jsonl"))
    counting = [task for task in scores.tasks if scores.counts(task, "acc")]
    parts = []
    for tasks, words in ((scores.tasks, "all"), (counting, "those that count by accuracy,")):
        if not tasks:
            continue
        radar, own = (scores.mean(system, "acc", tasks)["value"] for system in ("radar", "expert"))
        parts.append(f"on {words} {len(tasks)} tasks {radar / own:.0%} of it ({radar:.3f} of {own:.3f})")
    share = scores.mean("radar", "acc", scores.tasks)["value"] / scores.mean("expert", "acc", scores.tasks)["value"]
    return f"**{'Met' if share >= ASKED else 'Not met'}.** Its accuracy is {' and '.join(parts)}."


def _shares(found: Mapping[str, Findings | None]) -> str:
    """Radar's share of the own experts' accuracy in the experiments, at the last value of their axis."""
    parts = []
    for name in ("learnable", "ablation", "samples", "modules"):
        findings = found[name]
        if findings is None:
            continue
        value, grid = list(findings.grids.items())[-1]
        means = {s.label: s.value for s in standings(grid, "acc")}
        radar = findings.radar(grid)
        if radar is None or ORACLE not in means:
            continue
        count, total = len(findings.counting(value, "acc") or ()), len(grid.tasks_of("acc"))
        where = f", {findings.said(value)}" if findings.axis else ""
        parts.append(
            f"{name}{where} {means[radar] / means[ORACLE]:.0%} ({means[radar]:.3f} of {means[ORACLE]:.3f}; {count} of {total} tasks count)"
        )
    return f"In the experiments, over all of their tasks: {'; '.join(parts)}." if parts else ""


def _more(found: Findings | None) -> str:
    """Radar − each with the largest bank, and what growing to it did to each."""
    if found is None:
        return _sentences([])
    last, lines = list(found.grids)[-1], []
    for metric, words in METRICS.items():
        tests = _by_name(t for t in found.rotation[metric] if t.value == last)
        lines.append(f"With {found.short(last)} experts, by {words} radar is {_verdicts(tests, metric)}.")
    changes = {t.result.first.partition(" (")[0]: t.result.difference for t in found.change["acc"]}
    changes = {name: change for name, change in changes.items() if name in ("radar", *PAPER_GATES)}
    others = [change for name, change in changes.items() if name != "radar"]
    met = (changes["radar"] > -POINT and max(others) < -POINT) or min(changes.values()) >= 0
    verdict = f"**{'Met' if met else 'Not met'} by the means**, which change by " + ", ".join(
        f"{n} {c:+.3f}" for n, c in changes.items()
    )
    told = any(t.result.better for t in found.change["acc"])
    verdict += "." if told else "; none of these changes is significant."
    if found.counting(last, "acc") == []:
        verdict += " No task's own expert beats the base's accuracy here, so accuracy says nothing of composing."
    resisting = _by_name(found.resists["nll"])
    less = f"Radar's rise of NLL, less the other's, is {_verdicts(resisting, 'nll')}." if resisting else ""
    nll = [line for line in experiment_words.change(found) if "NLL changes" in line]
    return _sentences([verdict, *lines, *nll, less])


def _more_where_it_counts(found: Findings | None) -> str:
    """The same on tasks that count; and what the way there does to gates with a router of the whole model."""
    if found is None:
        return ""
    first, last = next(iter(found.grids)), list(found.grids)[-1]
    counting = len(found.counting(last, "acc") or ())
    lines = [f"On {counting} tasks that count, of {len(found.grids[last].tasks)} (`crowded`): {_more(found)}"]
    for metric, words in METRICS.items():
        before, after = ({s.label: s.value for s in standings(found.grids[value], metric)} for value in (first, last))
        labels = [label for label in after if "router=text" in label]
        tests = compare_pairs(found.grids[last], metric, [(a, a.replace(" router=text", "")) for a in labels])
        told = {t.result.first.partition(", ")[0]: t.result for t in found.change[metric]}
        for label, test in zip(labels, tests, strict=True):
            name, plain = label.partition(" ")[0], test.second.removesuffix(" (mole)")
            lines.append(
                f"By {words} {name} with `router=text` goes from {before[label]:.3f} to {after[label]:.3f} ({_significance(told[label])}; own expert "
                f"{after[ORACLE]:.3f}) and with {found.short(last)} experts is {_verdicts({plain: Test(last, test)}, metric)}."
            )
    return _sentences(lines)


def _significance(test: Comparison) -> str:
    return "no significant change" if test.better is None else f"Holm p {test.holm:.3f}"


def _few(found: Findings | None) -> str:
    lines = []
    means = []
    for metric, words in METRICS.items() if found is not None else ():
        tests = _by_name(t for t in found.rotation[metric] if t.value == 50)
        if tests:
            lines.append(f"By {words} radar is then {_verdicts(tests, metric)}.")
            means += [t.result.difference * BETTER[metric] for t in tests.values()]
    if lines:
        lines.insert(0, "**Met by the means.**" if min(means) >= 0 else "**Not met by all means.**")
    return _sentences(lines)


def _sentences(lines: Sequence[str]) -> str:
    return " ".join(lines) or "Not run yet."
