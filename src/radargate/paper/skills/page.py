"""The report of the experiment on composed skills, from its records alone. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radargate.comparison.results import UNTURNED
from radargate.data.builtin.skills import pair_named, skill_rows
from radargate.io.disk import writing
from radargate.io.records import write_atomic
from radargate.paper.design import SUITE
from radargate.paper.skills.contrast import Result, contrast, planned_cells, read_cells, verdict
from radargate.paper.skills.design import CONTRAST_ROWS, UNTRAINED
from radargate.paper.skills.parts import MISTAKES, PARTS, mistakes
from radargate.report.table import NOTHING, markdown

Lines = list[str]


def write_report(records: Sequence[Mapping[str, Any]], out: str | Path) -> tuple[Path, str]:
    """Write ``report.md`` into ``out``; returns its path and the summary that the command line prints."""
    text, summary = report_of(records)
    report = Path(out) / "report.md"
    with writing("the report", Path(out)):
        write_atomic(report, text)
    return report, summary


def report_of(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The whole report, and its summary."""
    plan, cells = [r for r in records if r["suite"] == SUITE][-1], read_cells(records)
    summary = [*_heading(plan, records), *_found(cells)]
    tables = [*_contrast(cells), *_by_budget(cells), *_experts(records), *_parts(cells), *_mistakes(cells)]
    plans = {_command(r): r for r in records if r["suite"] == SUITE}
    lines = [f"# {plan['case']}", "", *summary, *tables, *_settings(plan, list(plans))]
    return "\n".join(lines) + "\n", "\n".join(summary)


def _heading(plan: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Lines:
    planned = planned_cells(records)
    done = {r["case"] for r in records if r["suite"] == "cell"} & planned
    size = f"preset {plan['preset']}{', shrunk to a smoke run, which says nothing of quality' * plan['smoke']}"
    left_out = [f"Left out: {reason}." for reason in plan["left_out"]]
    return [
        plan["question"],
        "",
        f"{len(done)} of {len(planned)} planned cells finished ({size}).",
        "",
        *(line for reason in left_out for line in (reason, "")),
    ]


def _found(cells: Sequence[Result]) -> Lines:
    """The best system at every budget of every pair, and what the contrast says."""
    lines: Lines = []
    for pair, rows in _points(cells):
        means = _means(_at(cells, pair, rows))
        single = {label: value for label, value in means.items() if _is_single(label)}
        composed = {label: value for label, value in means.items() if label not in single and label != "two-pass"}
        if single and composed:
            best, alone = max(composed, key=lambda name: composed[name]), max(single, key=lambda name: single[name])
            word = "better than" if composed[best] > single[alone] else "not better than"
            lines += [
                f"- {pair}, {rows} rows: the best composition, {best}, has {composed[best]:.3f} exact match, {word} the best single "
                f"system, {alone}, with {single[alone]:.3f} (the highest of each kind on these rows; {_seeds(_at(cells, pair, rows), best)}).",
            ]
    return [*lines, "", verdict(contrast(cells)), ""]


def _is_single(label: str) -> bool:
    """Whether it uses one expert, or one LoRA trained on the rows."""
    return label in ("base", "select", "fresh", "trained-on", "union", "union+rows") or label.startswith("expert: ")


def _points(cells: Sequence[Result]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((cell.pair, cell.rows) for cell in cells if cell.rows is not None))


def _at(cells: Sequence[Result], pair: str, rows: int) -> list[Result]:
    """What was trained on so many rows, and what is not trained at all."""
    return [cell for cell in cells if cell.pair == pair and cell.rows in (rows, None)]


def _means(cells: Sequence[Result]) -> dict[str, float]:
    labels = dict.fromkeys(cell.label for cell in cells)
    return {label: float(np.mean([c.mean("acc") for c in cells if c.label == label])) for label in labels}


def _seeds(cells: Sequence[Result], label: str) -> str:
    units = {(cell.expert_seed, cell.seed) for cell in cells if cell.label == label}
    return "1 unit of seeds: no claim" if len(units) == 1 else f"{len(units)} units of seeds"


def _experts(records: Sequence[Mapping[str, Any]]) -> Lines:
    checked = {r["case"]: r for r in records if r["suite"] == "atom"}
    rows = [
        [r["task"], str(r["seed"]), f"{r['metrics']['acc']['value']:.3f}", str(r["metrics"]["n"]), r["sha256"][:12]]
        for r in checked.values()
    ]
    return _table("Atomic experts on their own test rows", ["skill", "seed", "exact match", "rows", "sha256"], rows)


def _by_budget(cells: Sequence[Result]) -> Lines:
    lines: Lines = []
    for pair, rows in _points(cells):
        trained, held_out = pair_named(pair).composed
        mine = _at(cells, pair, rows)
        table = []
        for label in sorted(_means(mine), key=lambda name: -_means(mine)[name]):
            own = [cell for cell in mine if cell.label == label]
            facts = own[-1].cell["metrics"]
            table.append(
                [
                    label,
                    f"{_means(mine)[label]:.3f}",
                    *(_mean_of(own, "acc", task) for task in (trained, held_out)),
                    *(_mean_of(own, "nll", task) for task in (trained, held_out)),
                    f"{facts['trained_parameters']:,}",
                    f"{facts['train_seconds']:.0f}",
                    str(len({(c.expert_seed, c.seed) for c in own})),
                ]
            )
        titles = ["system", "exact match", trained, f"{held_out} (held out)", f"NLL {trained}", f"NLL {held_out}"]
        titles += ["trained parameters", "training, s", "units"]
        lines += _table(f"{pair}, {rows} composed rows", titles, table)
    return lines


def _mean_of(cells: Sequence[Result], metric: str, task: str) -> str:
    values = [cell.mean(metric, [task]) for cell in cells if task in cell.tasks]
    return f"{np.mean(values):.3f}" if values else NOTHING


def _contrast(cells: Sequence[Result]) -> Lines:
    rows = []
    for d in contrast(cells):
        each = ", ".join(f"{value:+.3f}" for value in d.units.values())
        tasks = ", ".join(f"{task} {value:+.3f}" for task, value in d.tasks.items())
        p = [NOTHING if value is None else f"{value:.3f}" for value in (d.p, d.corrected)]
        rows.append([d.other, f"{d.mean:+.3f}", str(len(d.units)), each, tasks, *p])
    titles = ["radar −", "difference of exact match", "units", "each unit", "by task", "p", "p, Holm"]
    return _table(f"The contrast, at {CONTRAST_ROWS} rows", titles, rows)


def _parts(cells: Sequence[Result]) -> Lines:
    """Share of tokens right under the gold answer, on the trained language."""
    lines: Lines = []
    for pair, rows in _points(cells):
        for task in pair_named(pair).composed:
            table = []
            for cell in _at(cells, pair, rows):
                found = (cell.cell["metrics"].get("probe") or {}).get("parts", {}).get(task)
                first = cell.expert_seed == 0 and cell.seed in (0, None)
                if found and first and UNTURNED not in cell.label:
                    table.append(
                        [
                            cell.label,
                            *(
                                f"{found[p]['right']:.3f} ({found[p]['nll']:.2f})" if p in found else NOTHING
                                for p in PARTS
                            ),
                        ]
                    )
            lines += _table(
                f"{task}, {rows} rows: tokens right under the gold answer, and nats a token", ["system", *PARTS], table
            )
    return lines


def _mistakes(cells: Sequence[Result]) -> Lines:
    lines: Lines = []
    for pair, rows in _points(cells):
        chosen = pair_named(pair)
        for task in chosen.composed:
            facts = _facts(chosen.second, task)
            targets: dict[str, str] = {}
            for split in ("validation", "test"):
                targets |= {row.id: row.target for row in skill_rows(task, split)}
            table = []
            for cell in _at(cells, pair, rows):
                if task not in cell.tasks or cell.expert_seed or cell.seed:
                    continue
                found = cell.tasks[task]["rows"]
                counts = mistakes([targets[i] for i in found["id"]], found["prediction"], facts)
                table.append([cell.label, *(str(counts.get(kind, 0)) for kind in MISTAKES)])
            lines += _table(f"{task}, {rows} rows: answers by kind, first seeds", ["system", *MISTAKES], table)
    return lines


def _facts(atom: str, task: str) -> dict[str, str]:
    """First result → its words in the language of a composed task."""
    language = task.rpartition("_in_")[2].capitalize()
    found: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        for row in skill_rows(atom, split):
            if row.prompt.endswith(f"in {language}."):
                result, _, words = row.target.partition(" = ")
                found[result] = words
    return found


def _settings(plan: Mapping[str, Any], commands: Sequence[str]) -> Lines:
    design = plan["design"]
    training, recipe = design["training"], design["recipe"]
    facts = {
        "base": f"{design['base']}, without its chat template, {plan['dtype']}",
        "training": f"{training['steps']} steps of {training['batch_size']} rows",
        "learning rates": "; ".join(f"{name} {rate:g}" for name, rate in design["rates"].items()),
        "experts": f"rank {recipe['rank']}, {recipe['steps']} steps, learning rate {recipe['lr']:g}",
        "systems without training": ", ".join(UNTRAINED),
        "to repeat": "; ".join(commands),
        "commit": plan["commit"] or "unknown",
    }
    return _table("Settings", ["what", "value"], [[what, value] for what, value in facts.items()])


def _command(plan: Mapping[str, Any]) -> str:
    """What runs these cells, all of them."""
    design = plan["design"]
    words = ["radargate experiment", plan["case"], "--preset", plan["preset"], *(["--smoke"] if plan["smoke"] else [])]
    words += ["--experts benchmarks/skills"] if plan["experts_given"] else []
    words += [f"--pairs {','.join(design['pairs'])}", *(f"--rows {rows}" for rows in design["rows"])]
    words += [f"--expert-seeds {design['expert_seeds']} --seeds {design['seeds']}", f"--dtype {plan['dtype']}"]
    return f"`{' '.join(words)}`"


def _table(caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    return [f"**{caption}**", "", markdown(list(titles), [list(row) for row in rows]), ""] if rows else []
