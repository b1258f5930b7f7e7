"""What a comparison's numbers say, in plain words; every sentence is made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from radargate.comparison.analysis import ROTATING, Analysis
from radargate.comparison.grid import METRICS, OWN_EXPERT
from radargate.comparison.ranking import HIGHER_IS_BETTER, SIGNIFICANT, TIE, Comparison
from radargate.comparison.tables import WORDS, capital

_NAMED = 4  # systems named before "and 12 more"


def progress(analysis: Analysis) -> str:
    """How many cells are in, and which were left out."""
    grid = analysis.grid
    of = f" of {grid.planned}" if grid.planned is not None else ""
    words = f"{grid.finished}{of} cells are in"
    if grid.planned is None:
        words += "; the run has not written how many there will be"
    elif grid.finished < grid.planned:
        words += "; the rest are missing, and everything here is about the finished part"
    if grid.incomplete:
        words += f". Left out, as not every task is scored: {_listed(grid.incomplete)}"
    return words + "."


def verdict(analysis: Analysis) -> list[str]:
    """Who leads, whether that is more than chance, and whether rotation is worth it."""
    lines = [_leader(analysis, metric) for metric in METRICS]
    lines += [rotation_summary(analysis)]
    if OWN_EXPERT in analysis.grid.systems:
        lines.append(_oracle(analysis))
    counts = [
        f"{len(tasks)} of {len(analysis.grid.tasks_of(metric))} by {WORDS[metric]}{f' ({_listed(tasks)})' if tasks else ''}"
        for metric in METRICS
        if analysis.worth[metric] and (tasks := analysis.counting(metric)) is not None
    ]
    if counts:
        lines.append(f"Tasks that count, because their own expert beats the base (p < 0.05): {', '.join(counts)}.")
    if max(len(s.seeds) for s in analysis.grid.systems.values()) == 1:
        lines.append("Every system has one seed, so nothing here says what another seed would give.")
    return lines


def rotation_summary(analysis: Analysis) -> str:
    """Under how many architectures radar beats stretch, and every control, by each metric."""
    if not analysis.rotation["acc"]:
        return "Whether rotation is worth it cannot be said: radar and something to hold it against are not both in."
    parts = []
    for metric in METRICS:
        by = _by_architecture(analysis, metric)
        held = [c for tests in by.values() for c in tests if _control(analysis, c) == "stretch"]
        over = sum(c.better == c.first for c in held)
        under = sum(c.better == c.second for c in held)
        over_all = sum(all(c.better == c.first for c in tests) for tests in by.values())
        answer = "yes" if over_all == len(by) else "in part" if over else "no" if under else "not shown"
        clauses = []
        if held:
            clauses.append(f"significantly better than stretch under {_share(over, len(held))} architectures")
            clauses[0] += f", significantly worse under {_share(under, len(held))}" if under else ""
        controls = list(dict.fromkeys(_control(analysis, c) for tests in by.values() for c in tests))
        if controls != ["stretch"]:
            clauses.append(f"better than {_listed(controls, 99)} at once under {_share(over_all, len(by))}")
        parts.append(f"{answer} by {WORDS[metric]}: radar is {', and '.join(clauses)}")
    return "Is rotation worth it? " + " ".join(f"{capital(part)}." for part in parts)


def rotation_details(analysis: Analysis) -> list[str]:
    """Architecture by architecture: what radar beats, what beats it, what cannot be told; and what radar costs."""
    lines = []
    for architecture in analysis.grid.architectures():
        for metric in METRICS:
            tests = _by_architecture(analysis, metric).get(architecture, [])
            found = {
                "better than": [c for c in tests if c.better == c.first],
                "worse than": [c for c in tests if c.better == c.second],
                "not told apart from": [c for c in tests if c.better is None],
            }
            said = [
                f"{words} {_listed([_gap(analysis, c) for c in group], 99)}" for words, group in found.items() if group
            ]
            if said:
                lines.append(f"{architecture}, {WORDS[metric]}: radar is {'; '.join(said)}.")
        lines += _price(analysis, architecture)
    return lines


def _leader(analysis: Analysis, metric: str) -> str:
    best = analysis.leaders[metric]
    standing = next(s for s in analysis.standings[metric] if s.label == best)
    tests = analysis.against_leader[metric]
    behind = [c.second for c in tests if c.better == best]
    level = [c.second for c in tests if abs(c.difference) <= TIE]
    order = [s.label for s in analysis.standings[metric]]
    close = sorted({c.second for c in tests} - set(behind), key=order.index)
    words = (
        f"By {WORDS[metric]}{'' if HIGHER_IS_BETTER[metric] else ' (lower is better)'}, {best} {'is level at the top with ' + _listed(level) if level else 'leads'} with "
        f"{standing.value:.3f} (95 % interval {standing.low:.3f} to {standing.high:.3f}). "
    )
    if not tests:
        return words.strip()
    words += f"{len(behind)} of the {len(tests)} other systems are significantly worse (Holm p < {SIGNIFICANT})"
    return words + (f"; these rows cannot tell it from {_listed(close)}." if close else ".")


def _oracle(analysis: Analysis) -> str:
    parts = []
    for metric in METRICS:
        value = {s.label: s.value for s in analysis.standings[metric]}
        best = analysis.leaders[metric]
        parts.append(f"{value[OWN_EXPERT]:.3f} by {WORDS[metric]} ({best}: {value[best]:.3f})")
    return f"For reference: each task's own expert, which has to be told the task, reaches {' and '.join(parts)}."


def _price(analysis: Analysis, architecture: str) -> list[str]:
    radar, stretch = (analysis.grid.find(name, architecture) for name in (ROTATING, "stretch"))
    pairs = []
    for name, words in (("trained_parameters", "trained parameters"), ("train_seconds", "training time")):
        ours, theirs = (system.measured(name) if system else None for system in (radar, stretch))
        if ours and theirs:
            pairs.append(f"{ours / theirs:.1f} times its {words}")
    return [f"{architecture}: radar has, against stretch, {' and '.join(pairs)}."] if pairs else []


def _by_architecture(analysis: Analysis, metric: str) -> dict[str, list[Comparison]]:
    found: dict[str, list[Comparison]] = {}
    for test in analysis.rotation[metric]:
        found.setdefault(str(analysis.grid.systems[test.first].architecture), []).append(test)
    return found


def _control(analysis: Analysis, test: Comparison) -> str:
    return analysis.grid.systems[test.second].name


def _gap(analysis: Analysis, test: Comparison) -> str:
    p = "< 0.001" if test.holm < 0.001 else f"{test.holm:.3f}"
    return f"{_control(analysis, test)} ({test.difference:+.3f}, Holm p {p})"


def _share(count: int, total: int) -> str:
    return f"none of {total}" if count == 0 else f"all {total}" if count == total else f"{count} of {total}"


def _listed(names: Sequence[str], most: int = _NAMED) -> str:
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
