"""Tables and figures of the experiments that look into trained gates: angles and hull."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from radargate.comparison.ranking import SIGNIFICANT
from radargate.evaluation.resampling import bootstrap_intervals, holm, sign_flip_p
from radargate.paper.findings import Findings
from radargate.report import charts
from radargate.report.table import Column, Table, interval, number, probability, text, with_interval

Parts = tuple[list[Table], list[tuple[str, Callable[[], str]]]]
KINDS = {True: "related", False: "unrelated"}
RESIDUALS = {
    "one": "nearest expert",
    "hull": "hull: best convex weights",
    "turned_hull": "hull of rotated outputs",
    "span": "span: best free weights",
    "gate": "the trained gate",
}


def angle_parts(found: Findings) -> Parts:
    """Cosines between experts' outputs, before and after training."""
    pairs = _pairs(found.probes())
    rows: list[dict[str, Any]] = []
    for label in found.systems():
        for related in (True, False):
            mine = [p for p in pairs if p["label"] == label and p["related"] == related]
            if not mine:
                continue
            before, after = (np.array([p[key] for p in mine]) for key in ("before", "after"))
            change = (after - before)[:, None]
            low, high = bootstrap_intervals([change])
            row: dict[str, Any] = {
                "system": label,
                "pairs": KINDS[related],
                "n": len(mine),
                "before": float(before.mean()),
                "after": float(after.mean()),
                "change": float(change.mean()),
                "change_low": float(low[0]),
                "change_high": float(high[0]),
                "p": float(sign_flip_p([change])[0]),
            }
            rows.append(row)
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p"] = p
        row["turned"] = "not significant" if p >= SIGNIFICANT else "apart" if row["change"] < 0 else "together"
    table = Table(
        "angles",
        "Mean cosine between two experts' outputs, by kind of pair (seeds averaged, intervals over pairs)",
        rows,
        [
            Column("system", text("system")),
            Column("pairs", text("pairs")),
            Column("number", text("n")),
            Column("before", number("before")),
            Column("after", number("after")),
            Column("change", number("change", sign=True)),
            Column("95 % interval", interval("change", sign=True)),
            Column("Holm p", probability("p")),
            Column("rotated", text("turned")),
        ],
    )
    every = Table(
        "pairs",
        "Every pair",
        pairs,
        [
            Column("system", text("label")),
            Column("pair", lambda row: f"{row['first']}, {row['second']}"),
            Column("related", lambda row: KINDS[row["related"]]),
            Column("before", number("before")),
            Column("after", number("after")),
        ],
    )
    return [table, every], _angle_figures(found)


def hull_parts(found: Findings) -> Parts:
    """Residuals of the wanted update, by what may be done with the experts' outputs."""
    probes = found.probes()
    rows: list[dict[str, Any]] = []
    for label in dict.fromkeys(p["label"] for p in probes):
        tasks: dict[str, list[Mapping[str, float]]] = {}
        for probe in probes:
            if probe["label"] == label:
                tasks.setdefault(probe["wanted"], []).append(probe["means"])
        seeds_averaged = {
            task: {name: float(np.mean([seed[name] for seed in seeds])) for name in seeds[0]}
            for task, seeds in tasks.items()
        }
        rows += [{"system": label, "wanted": task, **_no_intervals(means)} for task, means in seeds_averaged.items()]
        rows.append({"system": label, "wanted": "mean of tasks (95 % interval)", **_over(seeds_averaged.values())})
    columns = [
        Column("gate", text("system")),
        Column("left out", text("wanted")),
        *(Column(title, with_interval(name)) for name, title in RESIDUALS.items()),
        Column("tokens inside", number("inside")),
        Column("mean angle, rad", number("angle")),
    ]
    gap = max((p["gap"] for p in probes), default=0.0)
    table = Table(
        "hull",
        "Length of what is missing from the wanted update, over its length (0: reached, 1: as bad as adding nothing; hull and "
        f"rotated hull solved to {gap:.0e} of its square)",
        rows,
        columns,
        numbers_from=2,
    )
    by_site = [
        {"system": p["label"], "seed": p["seed"], "wanted": p["wanted"], **site} for p in probes for site in p["sites"]
    ]
    sites = Table(
        "hull_sites",
        "Site by site",
        by_site,
        [
            Column("gate", text("system")),
            Column("left out", text("wanted")),
            Column("site", text("site")),
            *(Column(title, number(name)) for name, title in RESIDUALS.items()),
        ],
        shown=by_site[:20],
    )
    caption = "Missing from the wanted update at every site, in the base model's order (mean over tasks and seeds)"
    return [table, sites], [(caption, lambda: charts.curves(_by_site(probes), "site", "missing share", caption))]


def _pairs(probes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every pair of experts of every system, seeds averaged."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for probe in probes:
        for pair in probe["pairs"]:
            found.setdefault((probe["label"], pair["first"], pair["second"]), []).append(pair)
    return [
        {
            "label": label,
            "first": first,
            "second": second,
            "related": seeds[0]["related"],
            **{key: float(np.mean([s[key] for s in seeds])) for key in ("before", "after")},
        }
        for (label, first, second), seeds in found.items()
    ]


def _angle_figures(found: Findings) -> list[tuple[str, Callable[[], str]]]:
    figures: list[tuple[str, Callable[[], str]]] = []
    for label in found.systems():
        first = next((p for p in found.probes() if p["label"] == label), None)
        if first is None:
            continue
        by_site = {
            when: [(float(i), site[place]) for i, site in enumerate(first["sites"])]
            for place, when in ((1, "before training"), (2, "after training"))
        }
        caption = f"{label}: mean cosine between experts' outputs at every site, in the base model's order (first seed)"
        figures.append((caption, partial(charts.curves, by_site, "site", "mean cosine", caption)))
        points = [(p["expert"], p["before"], p["after"]) for p in first["points"]]
        caption = (
            f"{label}: mean output of each expert at {first['site']} on two principal axes, before and after training"
        )
        figures.append((caption, partial(charts.moves, points, caption)))
    return figures


def _by_site(probes: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    def mean(chosen: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
        return [
            (float(i), float(np.mean([p["sites"][i][name] for p in chosen])))
            for i in range(min(len(p["sites"]) for p in chosen))
        ]

    lines = {RESIDUALS[name]: mean(probes, name) for name in ("hull", "span")}
    for label in dict.fromkeys(p["label"] for p in probes):
        lines[label] = mean([p for p in probes if p["label"] == label], "gate")
    return lines


def _no_intervals(means: Mapping[str, float]) -> dict[str, float | None]:
    return {
        key: value
        for name, mean in means.items()
        for key, value in zip(_with_ends(name), (mean, None, None), strict=True)
    }


def _over(tasks: Collection[Mapping[str, float]]) -> dict[str, float]:
    """The mean over tasks of everything measured, with its interval."""
    found: dict[str, float] = {}
    for name in next(iter(tasks)):
        values = np.array([[task[name]] for task in tasks])
        low, high = bootstrap_intervals([values])
        found |= zip(_with_ends(name), (float(values.mean()), float(low[0]), float(high[0])), strict=True)
    return found


def _with_ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"
