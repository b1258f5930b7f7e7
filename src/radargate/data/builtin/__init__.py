"""Built-in tasks: real facts from well-kept libraries and plain rules, in five categories, made from a seed.

Each task lists all its items under keys; a hash of the key decides the split, so that rows which share a key never
stand in two splits and no data file is needed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator

from radargate.data.builtin.skills import SKILLS, skill_rows
from radargate.data.rows import Row
from radargate.errors import DataError
from radargate.registry import Registry, unknown_name

CATEGORIES: dict[str, tuple[str, ...]] = {
    "language": ("counted_nouns", "ordinals"),
    "mathematics": ("addition", "sequences"),
    "reasoning": ("weekdays", "ordering"),
    "translation": ("number_words", "dates"),
    "science": ("heavier_element", "units"),
}
TASKS = Registry(
    "built-in task",
    {task: f"radargate.data.builtin.{category}:{task}" for category, tasks in CATEGORIES.items() for task in tasks},
)
TEST_ROWS, VALIDATION_ROWS, TRAIN_ROWS = 300, 200, 3_000


def builtin_tasks(name: str) -> tuple[str, ...]:
    """The tasks behind ``builtin:NAME``: a task, a category, ``all``, or ``skills``, which ``all`` leaves out.

    Raises:
        DataError: no such name; the nearest are given.
    """
    if name == "all":
        return tuple(TASKS)
    if name in CATEGORIES:
        return CATEGORIES[name]
    if name == "skills":
        return SKILLS
    if name in TASKS:
        return (name,)
    raise DataError(unknown_name("built-in task or category", name, ["all", "skills", *CATEGORIES, *TASKS]))


def category_of(task: str) -> str:
    """The category a built-in task belongs to."""
    return next(category for category, tasks in CATEGORIES.items() if task in tasks)


def builtin_rows(name: str, split: str) -> list[Row]:
    """Rows of ``builtin:NAME`` in one split, the same on every machine.

    Raises:
        DataError: no such name, or a library that a task needs is missing.
    """
    rows: list[Row] = []
    for task in builtin_tasks(name):
        rows += skill_rows(task, split) if task in SKILLS else _split_rows(task)[split]
    return rows


@functools.cache
def _split_rows(task: str) -> dict[str, list[Row]]:
    try:
        items: Iterator[tuple[str, Row]] = TASKS.get(task)()
        by_key: dict[str, list[Row]] = {}
        for key, row in items:
            by_key.setdefault(key, []).append(row)
    except ImportError as error:
        raise DataError(f"builtin:{task} needs the package {error.name}: pip install 'radargate[builtin]'.") from error
    keys = sorted(by_key, key=lambda key: hashlib.sha256(f"{task}|{key}".encode()).digest())
    splits: dict[str, list[Row]] = {"test": [], "validation": [], "train": []}
    sizes = (("test", TEST_ROWS), ("validation", VALIDATION_ROWS), ("train", TRAIN_ROWS))
    position = 0
    for split, size in sizes:
        while position < len(keys) and len(splits[split]) < size:
            for row in by_key[keys[position]]:
                number = len(splits[split])
                splits[split].append(
                    Row(row.prompt, row.target, row.choices, row.answer_index, task, f"{task}/{split}/{number:04d}")
                )
            position += 1
    return splits
