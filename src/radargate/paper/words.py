"""What an experiment's numbers say, in plain words; every sentence is made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radargate.comparison.grid import METRICS, OWN_EXPERT
from radargate.comparison.ranking import HIGHER_IS_BETTER, SIGNIFICANT, leader, standings
from radargate.comparison.tables import WORDS, curve_rows, smoothed
from radargate.paper.findings import Findings, Test, Value


def progress(found: Findings) -> str:
    """How much is in, at which size."""
    request, design = found.request, found.request["design"]
    size = f"preset {request['preset']}{', shrunk to a smoke run' if request['smoke'] else ''}"
    words = f"{found.finished} of {found.planned} cells are in ({size}, {design['seeds']} seed{'s' if design['seeds'] > 1 else ''})."
    if request["smoke"]:
        words += " A smoke run shows that everything works; its numbers say nothing about the systems."
    elif design["seeds"] == 1:
        words += " With one seed, nothing here says what another seed would give."
    return words


def leaders(found: Findings) -> list[str]:
    """Who leads at every value of the axis, and whether that is more than chance."""
    lines = []
    for metric in METRICS:
        parts = []
        for value, grid in found.grids.items():
            best = leader(grid, standings(grid, metric))
            tests = [test.result for test in found.lead[metric] if test.value == value]
            behind = sum(test.better == best.label for test in tests)
            close = [test.second for test in tests if test.better is None]
            words = f"{best.label} with {best.value:.3f} (95 % interval {best.low:.3f} to {best.high:.3f})"
            words = f"at {found.said(value)} {words}" if found.axis else words
            if tests:
                words += f", significantly better than {behind} of {len(tests)} others"
                words += f"; not told apart from {_listed(close)}" if close else ""
            parts.append(words)
        better = "" if HIGHER_IS_BETTER[metric] else " (lower is better)"
        lines.append(f"By {WORDS[metric]}{better} the best is {'; '.join(parts)}.")
    return lines


def rotation(found: Findings) -> list[str]:
    """Whether radar beats the other gates and the controls, how often, and by how much."""
    lines = [
        f"Radar by {WORDS[metric]} against {_against(found.rotation[metric])}."
        for metric in METRICS
        if found.rotation[metric]
    ]
    return lines or ["Radar and something to hold it against are not both in."]


def counting(found: Findings) -> list[str]:
    """On which tasks there is something to compose (the own expert beats the base), and how much of it radar reaches there."""
    lines = []
    for metric in METRICS:
        groups: dict[tuple[str, ...], list[Value]] = {}
        for value in found.grids:
            if (counted := found.counting(value, metric)) is not None:
                groups.setdefault(tuple(counted), []).append(value)
        parts = []
        for tasks, values in groups.items():
            total = len(found.grids[values[0]].tasks_of(metric))
            words = f"{len(tasks)} of {total} tasks count" + (
                f" ({', '.join(tasks)})" if 0 < len(tasks) < total else ""
            )
            words = f"at {_listed([found.said(value) for value in values])} {words}" if len(groups) > 1 else words
            parts.append(words + (f"; there {_reached(found, values, metric, tasks)}" if tasks else ""))
        if parts:
            tests = found.where_it_counts[metric]
            rivals = f" There radar against {_against(tests)}." if tests else ""
            lines.append(f"By {WORDS[metric]} {'; '.join(parts)}.{rivals}")
    return lines


def _reached(found: Findings, values: Sequence[Value], metric: str, tasks: Sequence[str]) -> str:
    """Means over tasks, of each task's own expert and of radar; values of the axis that share them are said once."""
    said: dict[str, list[str]] = {}
    for value in values:
        grid = found.grids[value]
        own, radar = float(grid.systems[OWN_EXPERT].seed_means(metric, tasks).mean()), found.radar(grid)
        parts = said.setdefault(f"each task's own expert has {own:.3f}", [])
        if radar:
            composed = float(grid.systems[radar].seed_means(metric, tasks).mean())
            words = f"{composed:.3f}" + (f" ({composed / own:.0%} of it)" if metric == "acc" and own else "")
            parts.append(f"{words} at {found.said(value)}" if found.axis else words)
    return ", ".join(f"{own} and radar {', '.join(parts)}" if parts else own for own, parts in said.items())


def _against(tests: list[Test]) -> str:
    by_control: dict[str, list[Test]] = {}
    for test in tests:
        by_control.setdefault(test.result.second.partition(" (")[0], []).append(test)
    return "; ".join(f"{control}: {_verdict(each)}" for control, each in by_control.items())


def change(found: Findings) -> list[str]:
    """What the way along the axis did to every system."""
    lines = []
    for metric in METRICS:
        parts = []
        for test in found.change[metric]:
            r = test.result
            gain = None if r.holm >= SIGNIFICANT else (r.difference > 0) == HIGHER_IS_BETTER[metric]
            word = "no significant change" if gain is None else "better" if gain else "worse"
            parts.append(f"{r.first.rpartition(', ')[0]} {r.difference:+.3f} ({word}, Holm p {_p(r.holm)})")
        if parts:
            ends = [found.said(value) for value in list(found.grids)[:: len(found.grids) - 1]]
            lines.append(f"From {ends[0]} to {ends[1]}, {WORDS[metric]} changes: {'; '.join(parts)}.")
        if found.resists[metric]:
            lines.append(f"Radar's change of {WORDS[metric]} less that of {_against(found.resists[metric])}.")
    return lines


def convergence(found: Findings) -> list[str]:
    """Whose training loss is lowest on the way, and where radar's stands."""
    lines = []
    for value, grid in found.grids.items():
        curves = {s.label: smoothed(c) for s in grid.systems.values() if (c := curve_rows(s))}
        parts = []
        for share, words in ((0.25, "a quarter of the steps"), (0.5, "half of them"), (1.0, "all")):
            losses = {label: curve[round(share * (len(curve) - 1))][1] for label, curve in curves.items()}
            order = sorted(losses, key=losses.__getitem__)
            radar = found.radar(grid)
            place = (
                f", radar {losses[radar]:.3f} (place {order.index(radar) + 1} of {len(order)})"
                if radar in losses and radar != order[0]
                else ""
            )
            parts.append(f"after {words} with {order[0]} ({losses[order[0]]:.3f}{place})")
        if curves:
            lines.append(
                f"The smoothed training loss, mean of the seeds, is lowest at {found.said(value)} {'; '.join(parts)}."
            )
    return lines


def _verdict(tests: list[Test]) -> str:
    mean = float(np.mean([t.result.difference for t in tests]))
    if len(tests) == 1:
        r = tests[0].result
        word = "cannot be told apart" if r.better is None else "better" if r.better == r.first else "worse"
        return f"{r.difference:+.3f} (95 % interval {r.low:+.3f} to {r.high:+.3f}, Holm p {_p(r.holm)}: {word})"
    better = sum(t.result.better == t.result.first for t in tests)
    worse = sum(t.result.better == t.result.second for t in tests)
    return f"significantly better in {better} of {len(tests)} places, worse in {worse}, mean difference {mean:+.3f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _listed(names: list[str], most: int = 4) -> str:
    shown = names if len(names) <= most + 1 else [*names[:most], f"{len(names) - most} more"]
    return ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 else shown[0]
