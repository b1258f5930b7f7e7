"""Raw rows of one file: JSON, JSON lines, CSV, TSV and Parquet, each plain or packed with gzip or Zstandard."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from radargate.errors import DataError, first_line

MAX_LINE = 16 << 20  # characters; one row of a task has thousands
MAX_RATIO, FREE_BYTES = 200, 64 << 20  # JSON lines shrink ten- to fiftyfold, a bomb a thousandfold
SUFFIX = re.compile(r"\.(?P<kind>jsonl|json|csv|tsv|parquet)(?P<packed>\.gz|\.zst)?$")
KINDS = ".json, .jsonl, .csv, .tsv or .parquet file, plain, .gz or .zst"
STRUCTURED = ("choices", "answer_index", "messages", "conversations", "history")  # JSON in a table's cell
BROKEN = (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error, OSError)

Placed = tuple[int, str, Any]  # number, "line 3" or "row 3", and the row


def read_file(path: Path) -> Iterator[Placed]:
    """Rows of a file as they stand there, with their places.

    Raises:
        DataError: the file cannot be read, or a row; file and row are named.
    """
    found = SUFFIX.search(path.name)
    if not found:
        raise DataError(f"{path}: expected a .jsonl file, or another {KINDS}.")
    read = {"jsonl": _json_lines, "json": _json, "csv": _table, "tsv": _table, "parquet": _parquet}[found["kind"]]
    try:
        with _opened(path, found["packed"]) as file:
            yield from read(file, path)
    except BROKEN as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise DataError(f"{path}: cannot be read as {_expected(error, found['kind'])}.") from error


def _expected(error: Exception, kind: str) -> str:
    start = error.object[:2] if isinstance(error, UnicodeDecodeError) else b""
    if start in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-8: it is UTF-16. Save it as UTF-8"
    words = {"jsonl": "UTF-8 JSON lines", "json": "UTF-8 JSON", "parquet": "Parquet"}.get(kind, "a UTF-8 table")
    return f"{words} ({first_line(error)})"


@contextlib.contextmanager
def _opened(path: Path, packed: str | None) -> Iterator[IO[bytes]]:
    if packed == ".zst":
        with _pyarrow(path).input_stream(str(path), compression="zstd") as file:
            yield file
    else:
        with open(path, "rb") as file, contextlib.nullcontext(gzip.open(file) if packed else file) as rows:
            yield cast("IO[bytes]", rows)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: reading it needs the pyarrow package: pip install 'radargate[hub]'.") from error
    return pyarrow


def _lines(file: Iterable[str] | IO[str], path: Path) -> Iterator[str]:
    """Lines of bounded length from a file that does not unfold without end."""
    most, read = _most(path), 0
    while line := file.readline(MAX_LINE + 1):  # type: ignore[union-attr]
        read += len(line)
        if len(line) > MAX_LINE:
            raise DataError(f"{path}: holds a line of more than {MAX_LINE:,} characters. Give one row a line.")
        if read > most:
            raise _unfolds(path)
        yield line


def _most(path: Path) -> int:
    return path.stat().st_size * MAX_RATIO + FREE_BYTES


def _unfolds(path: Path) -> DataError:
    return DataError(
        f"{path}: unfolds to more than {MAX_RATIO} times its size, as no rows do. Unpack it where you trust it."
    )


def _whole(file: IO[bytes], path: Path) -> bytes:
    content = file.read(_most(path) + 1)
    if len(content) > _most(path):
        raise _unfolds(path)
    return content


def _text(file: IO[bytes], newline: str | None = None) -> IO[str]:
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)  # a mark at the start is no text


def _json_lines(file: IO[bytes], path: Path) -> Iterator[Placed]:
    for number, line in enumerate(_lines(_text(file), path), 1):
        if line.strip():
            yield number, f"line {number}", _decoded(line, f"{path}, line {number}")


def _json(file: IO[bytes], path: Path) -> Iterator[Placed]:
    """A list of rows, an object that holds one, or JSON lines under another name."""
    text = _whole(file, path).decode("utf-8-sig")
    try:
        value = json.loads(text, object_pairs_hook=_object) if text.strip() else []
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _json_lines(io.BytesIO(text.encode()), path)
            return
        raise DataError(f"{path}: not valid JSON ({error}).") from error
    rows = value if isinstance(value, list) else _rows_within(value, path)
    yield from ((number, f"row {number}", row) for number, row in enumerate(rows, 1))


def _rows_within(value: Any, path: Path) -> list[Any]:
    """The rows in an object such as ``{"data": [...]}``; an object without any is a row itself."""
    if not isinstance(value, dict):
        raise DataError(f"{path}: found {type(value).__name__}, expected a list of rows.")
    lists = {name: rows for name, rows in value.items() if isinstance(rows, list) and name in ("data", "rows")}
    if len(lists) == 1:
        return next(iter(lists.values()))
    return [value]


def _decoded(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}).") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _check_once([name for name, _ in pairs])
    return found


def _check_once(names: list[str]) -> None:
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"field {twice!r} stands twice")


def _table(file: IO[bytes], path: Path) -> Iterator[Placed]:
    """Rows of a table whose first line names the columns; cells stay the texts they are, empty ones are null."""
    lines = _lines(_text(file, newline=""), path)
    first = next(lines, "")
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(_again(first, lines), delimiter=max(",;\t", key=first.count), strict=True)
    number = 0
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_once(names)
        for cells in filter(None, reader):
            number += 1
            if len(cells) != len(names):
                raise ValueError(f"{len(cells)} cells, expected {len(names)}: {', '.join(names)}")
            yield number, f"row {number}", {n: _cell(n, c) for n, c in zip(names, cells, strict=True) if n}
    except (csv.Error, ValueError) as error:
        if isinstance(error, (DataError, UnicodeDecodeError)):
            raise
        raise DataError(f"{path}, {f'row {number}' if number else 'first line'}: {error}.") from error


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _cell(name: str, text: str) -> Any:
    if name in STRUCTURED and text:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text or None


def _parquet(file: IO[bytes], path: Path) -> Iterator[Placed]:
    pyarrow = _pyarrow(path)
    try:
        packed = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(_whole(file, path)))
        groups = (packed.metadata.row_group(i) for i in range(packed.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > _most(path):
            raise _unfolds(path)
        _check_once(packed.schema_arrow.names)
        names, number = _features(packed.schema_arrow), 0
        for batch in packed.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, f"row {number}", named_classes(row, names)
    except (pyarrow.ArrowException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as Parquet ({first_line(error)}).") from error


def _features(schema: Any) -> dict[str, Any]:
    """What the datasets library wrote about the columns, above all the names of classes."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        from datasets import Features
    except ImportError:
        return {}
    return class_names(Features.from_arrow_schema(schema))


def class_names(features: Any) -> dict[str, list[str]]:
    """Column → names of its classes, of those columns that hold numbers of classes."""
    return {column: list(kind.names) for column, kind in features.items() if getattr(kind, "names", None)}


def named_classes(row: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """The row with names in place of numbers of classes."""
    known = {c: names[c][row[c]] for c in names if isinstance(row.get(c), int) and 0 <= row[c] < len(names[c])}
    return {**row, **known}
