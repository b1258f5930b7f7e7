"""Where rows come from: ``FILE.jsonl[.gz]``, a folder of them, ``hub:NAME[:CONFIG][:SPLIT]``, ``builtin:NAME``."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from radargate.data.builtin import builtin_rows
from radargate.data.rows import Row, parse_row
from radargate.errors import DataError

SPLITS = ("train", "validation", "test")
MAX_LINE = 16 << 20  # characters; one row of a task has thousands
MAX_RATIO, FREE_BYTES = 200, 64 << 20  # JSON lines shrink ten- to fiftyfold, a bomb a thousandfold
_SPLIT_FILE = re.compile(r"(?P<task>.+)\.(?P<split>train|validation|test)\.jsonl(\.gz)?")


def load_rows(
    source: str | Path, split: str, tasks: list[str] | None = None, limit: int | None = None
) -> dict[str, list[Row]]:
    """Read the rows of one split, grouped by task.

    Args:
        source: a JSON-lines file, a folder of ``TASK.SPLIT.jsonl[.gz]`` files, ``hub:NAME[:CONFIG][:SPLIT]``
            or ``builtin:NAME``. A single file serves whichever split is asked for.
        split: ``train``, ``validation`` or ``test``.
        tasks: keep only these tasks.
        limit: keep the first ``limit`` rows of each task.

    Returns:
        task name → its rows, in the source's order.

    Raises:
        DataError: nothing is there, or a row does not fit; file, line and field are named.
    """
    text = str(source)
    if text.startswith("hub:"):
        rows = _hub_rows(text, split)
    elif text.startswith("builtin:"):
        rows = builtin_rows(text.removeprefix("builtin:"), split)
    elif Path(text).is_dir():
        rows = _folder_rows(Path(text), split)
    elif Path(text).is_file():
        rows = _file_rows(Path(text), task=Path(text).name.split(".")[0])
    else:
        raise DataError(
            f"`data` {text}: no such file or folder. Give a .jsonl or .jsonl.gz file, a folder of "
            "TASK.SPLIT.jsonl.gz files, hub:NAME[:CONFIG][:SPLIT] or builtin:NAME."
        )
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    if tasks:
        missing = [task for task in tasks if task not in by_task]
        if missing:
            raise DataError(f"{text}: no task {missing[0]!r} in split {split}. It has: {', '.join(by_task)}.")
        by_task = {task: by_task[task] for task in tasks}
    return {task: rows[:limit] if limit else rows for task, rows in by_task.items()}


def has_split(source: str | Path, split: str) -> bool:
    """Whether a folder holds files of this split (a file or Hub source is taken as it is)."""
    path = Path(source)
    return path.is_dir() and any(_matches(file, split) for file in path.iterdir())


def _matches(file: Path, split: str) -> bool:
    match = _SPLIT_FILE.fullmatch(file.name)
    return bool(match and match["split"] == split)


def _folder_rows(folder: Path, split: str) -> list[Row]:
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
        rows += _file_rows(file, match["task"])
    return rows


def _file_rows(path: Path, task: str) -> list[Row]:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"{path}: expected a .jsonl or .jsonl.gz file.")
    opener = gzip.open if path.name.endswith(".gz") else open
    rows: list[Row] = []
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(_lines(file, path), 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    raw = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{where}: not valid JSON ({error}).") from error
                rows.append(parse_row(raw, where, task, number))
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 JSON lines ({error}).") from error
    if not rows:
        raise DataError(f"{path}: holds no row.")
    return rows


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """Lines of bounded length from a file that does not unfold without end."""
    most = path.stat().st_size * MAX_RATIO + FREE_BYTES
    read = 0
    while line := file.readline(MAX_LINE + 1):
        read += len(line)
        if len(line) > MAX_LINE:
            raise DataError(f"{path}: holds a line of more than {MAX_LINE:,} characters. Give one row a line.")
        if read > most:
            raise DataError(
                f"{path}: unfolds to more than {MAX_RATIO} times its size, as no rows do. Unpack it where you trust it."
            )
        yield line


def _hub_rows(source: str, split: str) -> list[Row]:
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
        raise DataError(f"{source}: could not be loaded ({type(error).__name__}: {error}).") from error
    task = config or name.rsplit("/", 1)[-1]
    rows = [parse_row(dict(raw), f"{source}, row {i}", task, i) for i, raw in enumerate(dataset)]
    if not rows:
        raise DataError(f"{source}: holds no row.")
    return rows
