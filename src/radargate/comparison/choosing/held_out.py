"""Three sets of rows: to learn from, to choose by, and to report on what nothing saw."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from radargate.data.rows import Row, rows_hash
from radargate.data.sources import has_split, load_rows
from radargate.errors import DataError

SHARE = 5  # a fifth of the rows is held out for choosing, and one for reporting
LEAST = 2  # rows of a task in each set
ENOUGH = 10  # rows to choose by in all: with fewer than six nothing could be significant
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

    def hash(self) -> str:
        """Of all rows, and of which set each is in."""
        return rows_hash(
            row for part in (self.fit, self.validation, self.test) for rows in part.values() for row in rows
        )


def hold_out(data: str, tasks: list[str] | None = None, examples: Iterable[str] = ()) -> HeldOut:
    """Read rows, and hold some out where the source has no splits of its own.

    Args:
        data: where they are.
        tasks: only these.
        examples: prompts that are no longer unseen.

    Raises:
        DataError: too few can be held out to choose by.
    """
    train, parts = load_rows(data, "train", tasks), {}
    for split in ("test", "validation"):
        given = data.startswith("builtin:") or has_split(data, split)
        found = load_rows(data, split) if given else Rows()
        parts[split] = {task: rows for task, rows in found.items() if tasks is None or task in tasks}
    known = Rows({"": [Row(prompt, "x") for prompt in examples]})
    test = _enough(_without(parts["test"], known))
    validation = _enough(_without(_without(parts["validation"], test), known))
    fit = _without(_without(train, test), validation)
    for task, rows in fit.items():
        missing = [found for found in (validation, test) if task not in found]
        share = math.ceil(len(rows) / SHARE)
        if missing and share >= LEAST:
            fit[task] = _hold_out_of(rows, share, missing)
    fit = _without(_without(fit, test), validation)  # where two tasks ask the same
    validation, test = _enough(_without(_without(validation, test), known)), _enough(_without(test, known))
    scored = [task for task in validation if task in test]
    left = [task for task in train if task not in scored]
    count = sum(len(validation[task]) for task in scored)
    if count < ENOUGH:
        different = sum(len(_groups(rows)) for rows in train.values())
        raise DataError(
            f"`data` {Path(data).name}: {count} rows can be held out to choose by, expected at least {ENOUGH} (of {different} different "
            f"prompts; {ENOUGH * SHARE} or more are wanted). Give more rows, or `examples` instead: rule select needs one prompt an adapter."
        )
    if left:
        logger.warning(
            f"{', '.join(left)}: too few different prompts to hold some out; learned from at most, and not scored."
        )
    return HeldOut(fit, {task: validation[task] for task in scored}, {task: test[task] for task in scored})


def _enough(by_task: Rows) -> Rows:
    return {task: rows for task, rows in by_task.items() if len(rows) >= LEAST}


def _key(row: Row) -> bytes:
    """What is the same for rows that ask the same."""
    return hashlib.sha256(repr((str(row.prompt), row.choices)).encode()).digest()


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
