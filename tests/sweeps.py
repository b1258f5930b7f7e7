"""Long sweeps over options, in one place: `make test` takes a part of each, `make test-all` (``pytest --all``) the whole.

The part follows from the values alone, so that a value that is added to a sweep is in it by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

everything = False  # set by the option --all before the first test file is read


def pairs(*options: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Combinations in which every value of an option meets every value of each other option."""
    return part(itertools.product(*options), 2)


def part(combinations: Iterable[tuple[Any, ...]], together: int) -> list[tuple[Any, ...]]:
    """Few of the combinations that still hold every ``together`` values of different options that occur in any of them."""
    rows = list(combinations)
    if everything or not rows or len(rows[0]) <= together:
        return rows
    held = [{*itertools.combinations(enumerate(map(repr, row)), together)} for row in rows]
    missing, taken = set().union(*held), []
    while missing:
        best = max(range(len(rows)), key=lambda i: len(held[i] & missing))
        missing -= held[best]
        taken.append(best)
    return [rows[i] for i in sorted(taken)]


def each(*options: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Combinations in which every value of every option occurs."""
    columns = [list(values) for values in options]
    if everything:
        return list(itertools.product(*columns))
    return [tuple(values[i % len(values)] for values in columns) for i in range(max(map(len, columns)))]
