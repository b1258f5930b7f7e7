"""Tables, figures and words of the experiments that look into trained gates: angles and hull."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from radargate.comparison.ranking import SIGNIFICANT
from radargate.evaluation.resampling import bootstrap_intervals, holm, sign_flip_p
from radargate.paper.findings import Findings
from radargate.report import charts
from radargate.report.table import Column, Table, interval, number, probability, text

Parts = tuple[list[str], list[Table], list[tuple[str, Callable[[], str]]]]
KINDS = {True: "related", False: "unrelated"}
RESIDUALS = {
    "one": "nearest expert",
    "hull": "hull: best convex weights",
    "turned_hull": "hull of turned outputs",
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
    words = []
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p"] = p
        told = p < SIGNIFICANT
        turned = "cannot be told from none" if not told else "apart" if row["change"] < 0 else "together"
        words.append(
            f"{row['system']} changes the mean cosine between {row['pairs']} experts from {row['before']:.3f} to {row['after']:.3f} "
            f"({row['change']:+.3f}, 95 % interval {row['change_low']:+.3f} to {row['change_high']:+.3f} over {row['n']} pairs, "
            f"Holm p {p:.3f}: {'it turns them ' if told else 'a change that '}{turned})."
        )
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
    return words, [table, every], _angle_figures(found)


def hull_parts(found: Findings) -> Parts:
    """Residuals of the wanted update, by what may be done with the experts' outputs."""
    probes = found.probes()
    rows, words = [], []
    for label in dict.fromkeys(p["label"] for p in probes):
        mine = [p for p in probes if p["label"] == label]
        for task in dict.fromkeys(p["wanted"] for p in mine):
            of_task = [p["means"] for p in mine if p["wanted"] == task]
            rows.append(
                {"system": label, "wanted": task, **{k: float(np.mean([m[k] for m in of_task])) for k in of_task[0]}}
            )
        values = {name: _over_tasks(rows, label, name) for name in RESIDUALS}
        rows.append(
            {
                "system": label,
                "wanted": "mean of tasks",
                **{name: v[0] for name, v in values.items()},
                **{key: _over_tasks(rows, label, key)[0] for key in ("inside", "angle")},
            }
        )
        gate, hull, span, turned = (values[name] for name in ("gate", "hull", "span", "turned_hull"))
        words.append(
            f"{label} leaves {_share(gate)} of the length of a left-out task's update; the best convex weights on the other experts leave "
            f"{_share(hull)}, the best free weights {_share(span)}, and the best convex weights on its own turned outputs {_share(turned)}. "
            f"{rows[-1]['inside']:.1%} of the wanted updates lie inside the hull."
        )
    columns = [
        Column("gate", text("system")),
        Column("left out", text("wanted")),
        *(Column(title, number(name)) for name, title in RESIDUALS.items()),
        Column("tokens inside", number("inside")),
        Column("mean angle, rad", number("angle")),
    ]
    gap = max((p["gap"] for p in probes), default=0.0)
    table = Table(
        "hull",
        "Length of what is missing from the wanted update, over its length (0: reached, 1: as bad as adding nothing; hull and "
        f"turned hull solved to {gap:.0e} of its square)",
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
    return words, [table, sites], [(caption, lambda: charts.curves(_by_site(probes), "site", "missing share", caption))]


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


def _over_tasks(rows: Sequence[Mapping[str, Any]], label: str, name: str) -> tuple[float, float, float]:
    values = np.array([[row[name]] for row in rows if row["system"] == label])
    low, high = bootstrap_intervals([values])
    return float(values.mean()), float(low[0]), float(high[0])


def _share(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.3f} (95 % interval over tasks {value[1]:.3f} to {value[2]:.3f})"
