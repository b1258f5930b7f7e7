"""Where rows come from: a file, a folder of files, ``hub:NAME[:CONFIG][:SPLIT]``, ``builtin:NAME``."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from radargate.data.builtin import builtin_rows
from radargate.data.files import KINDS, SUFFIX, Placed, class_names, named_classes, read_file
from radargate.data.forms import FORMS, Form, native, with_labels
from radargate.data.rows import Row, parse_row
from radargate.data.turns import number_as_text
from radargate.errors import DataError, first_line, shown
from radargate.registry import unknown_name

MEAN = "mean"  # what records call the mean over tasks
SPLITS = ("train", "validation", "test")
_SPLIT_FILE = re.compile(r"(?:(?P<task>.+)\.)?(?P<split>train|validation|test)(-\d+-of-\d+)?" + SUFFIX.pattern)
logger = logging.getLogger(__name__)


def load_rows(
    source: str | Path, split: str, tasks: list[str] | None = None, limit: int | None = None
) -> dict[str, list[Row]]:
    """Read the rows of one split, grouped by task. Their form is found from their fields and logged in one line.

    Args:
        source: a JSON, JSON-lines, CSV or Parquet file, a folder of ``TASK.SPLIT.jsonl`` or other such files,
            ``hub:NAME[:CONFIG][:SPLIT]`` or ``builtin:NAME``; ``?FIELD=COLUMN`` behind it names a column that is called
            otherwise (see `with_columns`). A single file serves whichever split is asked for.
        split: ``train``, ``validation`` or ``test``.
        tasks: keep only these tasks.
        limit: keep the first ``limit`` rows of each task.

    Returns:
        task name → its rows, in the source's order.

    Raises:
        DataError: nothing is there, or a row fits no form; file, row and fields are named.
    """
    text, columns = _split_columns(str(source))
    said = _Said(text)
    if text.startswith("hub:"):
        rows = _hub_rows(text, split, columns, said)
    elif text.startswith("builtin:"):
        rows = builtin_rows(text.removeprefix("builtin:"), split)
    elif Path(text).is_dir():
        rows = _folder_rows(Path(text), split, columns, said)
    elif Path(text).is_file():
        rows = _file_rows(Path(text), Path(text).name.split(".")[0], columns, said)
    else:
        raise DataError(
            f"`data` {text}: no such file or folder. Give a {KINDS}, a folder of TASK.SPLIT.jsonl.gz files, "
            "hub:NAME[:CONFIG][:SPLIT] or builtin:NAME."
        )
    said.log()
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    if MEAN in by_task:
        raise DataError(
            f"{text}: a task is called {MEAN!r}, as the mean over tasks is in records. Give it another name."
        )
    if tasks:
        missing = [task for task in tasks if task not in by_task]
        if missing:
            raise DataError(f"{text}: no task {missing[0]!r} in split {split}. It has: {', '.join(by_task)}.")
        by_task = {task: by_task[task] for task in tasks}
    return {task: rows[:limit] if limit else rows for task, rows in by_task.items()}


def with_columns(source: str, columns: Mapping[str, str]) -> str:
    """A source whose columns have other names: field → column, such as ``{"prompt": "problem", "target": "solution"}``."""
    return f"{source}?{urlencode(columns)}" if columns else source


def has_split(source: str | Path, split: str) -> bool:
    """Whether a folder holds files of this split (a file or Hub source is taken as it is)."""
    path = Path(_split_columns(str(source))[0])
    return path.is_dir() and any(_matches(file, split) for file in path.iterdir())


def _split_columns(source: str) -> tuple[str, dict[str, str]]:
    text, mark, query = source.rpartition("?")
    if not mark or Path(source).exists():
        return source, {}
    return text, dict(parse_qsl(query))


class _Said:
    """What was read in which form, to be said once."""

    def __init__(self, source: str) -> None:
        self.source, self.forms, self.unused = source, Counter[Form](), dict[str, None]()

    def add(self, form: Form, raw: Mapping[str, Any]) -> None:
        self.forms[form] += 1
        self.unused.update(dict.fromkeys(field for field in raw if not form.uses(field)))

    def log(self) -> None:
        if set(self.forms) <= {FORMS[0]}:
            return
        kinds = [f"{count:,} rows as {form.name} ({', '.join(form.needs)})" for form, count in self.forms.items()]
        unused = f"; not used: {', '.join(shown(f, 30) for f in list(self.unused)[:8])}" if self.unused else ""
        logger.info(f"{self.source}: {', '.join(kinds)}{unused}")


def _matches(file: Path, split: str) -> bool:
    match = _SPLIT_FILE.fullmatch(file.name)
    return bool(match and match["split"] == split)


def _folder_rows(folder: Path, split: str, columns: Mapping[str, str], said: _Said) -> list[Row]:
    files = sorted(file for file in folder.iterdir() if _matches(file, split))
    if not files:
        present = sorted({m["split"] for f in folder.iterdir() if (m := _SPLIT_FILE.fullmatch(f.name))})
        raise DataError(
            f"{folder}: no TASK.{split}.jsonl[.gz] file. "
            + (f"Splits found: {', '.join(present)}." if present else "No file there is named TASK.SPLIT.jsonl[.gz].")
        )
    rows: list[Row] = []
    for file in files:
        match = _SPLIT_FILE.fullmatch(file.name)
        assert match is not None
        rows += _file_rows(file, match["task"] or folder.resolve().name, columns, said)
    return rows


def _file_rows(path: Path, task: str, columns: Mapping[str, str], said: _Said) -> list[Row]:
    return _rows(str(path), read_file(path), task, columns, said)


def _rows(source: str, placed: Iterable[Placed], task: str, columns: Mapping[str, str], said: _Said) -> list[Row]:
    places, found = [], []
    for number, place, raw in placed:
        where = f"{source}, {place}"
        if columns and isinstance(raw, dict):
            raw = _renamed(raw, columns, where)
        found.append(native(raw, where))
        said.add(found[-1].form, raw)
        places.append((where, number))
    if not found:
        raise DataError(f"{source}: holds no row.")
    rows = with_labels(found)
    return [parse_row(row, where, task, number) for row, (where, number) in zip(rows, places, strict=True)]


def _renamed(raw: dict[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """The row with the fields that columns of other names stand for."""
    for column in columns.values():
        if column not in raw:
            raise DataError(f"{where}: {unknown_name('column', column, list(map(str, raw)))}")
    values = {field: raw[column] for field, column in columns.items()}
    values |= {field: number_as_text(values[field]) for field in ("prompt", "target") if field in values}
    kept = {field: value for field, value in raw.items() if field not in columns.values()}
    return {**kept, **values}


def _hub_rows(source: str, split: str, columns: Mapping[str, str], said: _Said) -> list[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError("hub: sources need the datasets package: pip install 'radargate[hub]'.") from error
    parts = source.split(":")[1:]
    name, config = parts[0], parts[1] if len(parts) > 1 and parts[1] else None
    split = parts[2] if len(parts) > 2 else split
    try:
        dataset = load_dataset(name, config, split=split)
    except Exception as error:  # the library raises many kinds; all mean that the rows are not to be had
        raise DataError(f"{source}: could not be loaded ({type(error).__name__}: {first_line(error)}).") from error
    names = class_names(dataset.features or {})
    placed = ((i, f"row {i}", named_classes(dict(raw), names)) for i, raw in enumerate(dataset))
    return _rows(source, placed, config or name.rsplit("/", 1)[-1], columns, said)
