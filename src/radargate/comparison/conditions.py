"""Under what conditions a comparison was run, from its records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from radargate.comparison.analysis import Analysis
from radargate.report.table import Column, Table, facts_table, text


def conditions(analysis: Analysis) -> str:
    """A table of facts: data, rows, seeds, settings, time, code and machine."""
    return facts_table("conditions", "Where these values come from", _facts(analysis)).html()


def settings_table(analysis: Analysis) -> Table:
    """Settings that are not the same for all systems that have any."""
    options = {s.label: [c.get("options") or {} for c in s.cells] for s in analysis.results.systems.values() if s.cells}
    given = {label: found for label, found in options.items() if any(found)}
    keys = list(dict.fromkeys(key for found in given.values() for cell in found for key in cell))
    varying = [key for key in keys if len({str(cell.get(key)) for found in given.values() for cell in found}) > 1]
    rows = [
        {"system": label, **{key: _joined(str(cell[key]) for cell in found if key in cell) for key in varying}}
        for label, found in given.items()
    ]
    columns = [Column("system", text("system")), *(Column(key, text(key)) for key in varying)]
    return Table("settings", "Settings that differ between systems", rows if varying else [], columns)


def _facts(analysis: Analysis) -> dict[str, Any]:
    results = analysis.results
    cells = [cell for system in results.systems.values() for cell in system.cells]
    run = (results.compare or {}).get("metrics") or {}
    request = results.request
    rows = {r["task"]: len(r["rows"]["id"]) for r in results.evals}
    hashes = {r["task"]: str(r.get("data_hash"))[:12] for r in results.evals}
    dates = sorted({str(c.get("date"))[:10] for c in cells})
    return {
        "base": request.get("base"),
        "experts": _joined(request.get("experts") or ()),
        "tasks and rows": _joined(f"{task} {count}" for task, count in rows.items()),
        "split": _joined(str(r.get("split")) for r in results.evals),
        "first rows of each task": request.get("limit"),
        "hash of each task's rows": _joined(f"{task} {value}" for task, value in hashes.items()),
        "seeds": max(len(s.seeds) for s in results.systems.values()),
        "cells": f"{results.finished} of {results.planned if results.planned is not None else 'an unknown number'}",
        "settings common to all": _joined(f"{key} {value}" for key, value in _common_options(cells).items()),
        "time predicted": _duration(run.get("predicted_seconds")),
        "time taken": _duration(run.get("seconds")),
        "commit": _joined(
            f"{str(c.get('commit'))[:12]}{' (with changes not committed)' if c.get('dirty') else ''}" for c in cells
        ),
        "versions": _joined(f"{name} {version}" for c in cells for name, version in (c.get("versions") or {}).items()),
        "python": _joined(str(c.get("python")) for c in cells),
        "machine": _joined(_machine(c.get("machine") or {}) for c in cells),
        "dates": " to ".join(dict.fromkeys((dates[0], dates[-1]))),
    }


def _common_options(cells: list[Mapping[str, Any]]) -> dict[str, Any]:
    given = [cell["options"] for cell in cells if cell.get("options")]
    keys = dict.fromkeys(key for options in given for key in options)
    return {key: given[0][key] for key in keys if len({str(options.get(key)) for options in given}) == 1}


def _joined(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _machine(facts: Mapping[str, Any]) -> str:
    return f"{facts.get('cpu')} with {facts.get('cores')} cores, {facts.get('system')}"


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds:,.0f} s ({seconds / 3600:.1f} h)"
