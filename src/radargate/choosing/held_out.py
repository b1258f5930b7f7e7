"""Three sets of rows: to learn from, to choose by, and to report on what nothing saw."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from radargate.data.rows import Row
from radargate.data.sources import has_split, load_rows
from radargate.errors import DataError

SHARE = 5  # a fifth of the rows is held out for choosing, and one for reporting
LEAST = 2  # rows of a task in each set
logger = logging.getLogger(__name__)
Rows = dict[str, list[Row]]


@dataclass(frozen=True)
class HeldOut:
    """Task → rows of each set; no prompt stands in two sets.

    Attributes:
        fit: gates learn from these.
        validation: systems are chosen by these.
        test: the last systems are scored on these.
    """

    fit: Rows
    validation: Rows
    test: Rows


def hold_out(data: str, tasks: list[str] | None = None) -> HeldOut:
    """Read rows, and hold some out where the source has no splits of its own.

    Raises:
        DataError: nothing can be held out.
    """
    given = {split for split in ("validation", "test") if data.startswith("builtin:") or has_split(data, split)}
    test, validation = (load_rows(data, s, tasks) if s in given else Rows() for s in ("test", "validation"))
    validation = {task: rows for task, rows in _without(validation, test).items() if len(rows) >= LEAST}
    fit = _without(_without(load_rows(data, "train", tasks), test), validation)
    for task, rows in fit.items():
        missing = [found for found in (validation, test) if task not in found]
        size = len(rows) // SHARE
        if missing and size >= LEAST:
            fit[task] = _hold_out_of(rows, size, missing)
        elif missing:
            logger.warning(f"{task} has {len(rows)} rows, too few to hold some out: it is learned from and not scored.")
    fit = _without(_without(fit, test), validation)  # where two tasks ask the same
    validation = _without(validation, test)
    scored = [task for task in validation if min(len(validation[task]), len(test.get(task, ()))) >= LEAST]
    if not scored:
        most = max(map(len, fit.values()), default=0)
        raise DataError(
            f"`data` {Path(data).name}: no rows can be held out to choose by and to report on (the largest task has {most} rows, "
            f"expected at least {LEAST * SHARE}). Give more rows, or `examples` instead: rule select needs one prompt an adapter."
        )
    return HeldOut(fit, {task: validation[task] for task in scored}, {task: test[task] for task in scored})


def _key(row: Row) -> bytes:
    """What is the same for rows that ask the same."""
    return hashlib.sha256(str(row.prompt).encode()).digest()


def _without(by_task: Rows, others: Rows) -> Rows:
    """The rows whose prompts no other set has."""
    seen = {_key(row) for rows in others.values() for row in rows}
    kept = {task: [row for row in rows if _key(row) not in seen] for task, rows in by_task.items()}
    return {task: rows for task, rows in kept.items() if rows}


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one prompt together, in an order that the prompts alone decide."""
    groups: dict[bytes, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    return [groups[key] for key in sorted(groups)]


def _hold_out_of(rows: Sequence[Row], size: int, sets: Sequence[Rows]) -> list[Row]:
    """Move rows into the sets; what is left stays to learn from, in its order."""
    groups, taken = _groups(rows), set[bytes]()
    for one in sets:
        found: list[Row] = []
        while len(found) < size and groups:
            found += groups.pop()
        one[rows[0].task] = found
        taken |= {_key(row) for row in found}
    return [row for row in rows if _key(row) not in taken]
