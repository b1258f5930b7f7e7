"""Result records: one JSON object per result, with where it came from. Knows nothing of torch."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from radargate.errors import RadarGateError, shown
from radargate.io.disk import writing

SCHEMA = 1
_PACKAGES = ("radargate", "torch", "transformers", "peft", "accelerate", "safetensors", "trl", "lm-eval")


def make_record(suite: str, case: str, metrics: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """Build one result record with its provenance.

    Args:
        suite: the family of results, such as ``"eval"``.
        case: what was measured, unique within a run.
        metrics: numbers and their units or intervals.
        **facts: anything else that identifies the result (seed, data hash, options).

    Returns:
        A JSON-clean dict with schema, commit, dirty flag, versions, machine, date, and a hash of ``facts``.
    """
    facts = json.loads(json.dumps(facts, default=str))
    return {
        "schema": SCHEMA,
        "suite": suite,
        "case": case,
        "metrics": json.loads(json.dumps(metrics, default=str)),
        **facts,
        "config_hash": content_hash({"suite": suite, "case": case, **facts}),
        **provenance(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _vectors() -> str | None:
    """The vector instructions that PyTorch computes with here (``AVX2``, ``AVX512`` …), None where it is not loaded."""
    torch = sys.modules.get("torch")
    return torch.backends.cpu.get_cpu_capability() if torch else None


@functools.cache
def provenance() -> dict[str, Any]:
    """Commit, dirty flag, package versions and machine of this process."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit, dirty = _git_state()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": versions,
        "python": platform.python_version(),
        "machine": {
            "system": platform.system(),
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "vectors": _vectors(),
        },
    }


def content_hash(value: Any) -> str:
    """Short sha256 of a JSON-clean value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def append_records(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records to a JSON-lines file, creating its folder: all of them or, on a full disk, none.

    A last line that an earlier crash cut off is removed first.

    Raises:
        StorageError: the file cannot be written.
    """
    path = Path(path)
    payload = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    with writing("the records", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():  # and not a pipe or device, which has no last line
            _mend_last_line(path)
        _append_whole(path, payload)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file of records.

    A last line without its newline that is no whole record was cut off by a crash or a full disk: it counts
    as never written, and the next `append_records` removes it.

    Raises:
        RadarGateError: a line is not a JSON record or has a newer schema; file and line are named.
    """
    lines, torn = _lines(Path(path))
    records = []
    for number, line in enumerate(lines[:-1] if torn else lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"found {type(record).__name__}, expected an object")
            if not isinstance(record.get("schema", 0), int):
                raise ValueError(f"its schema is {shown(record['schema'], 20)}, expected a number")
        except (ValueError, RecursionError) as error:
            raise RadarGateError(
                f"{path}, line {number}: not a JSON record ({error}). Remove that line, or choose another file."
            ) from error
        if record.get("schema", 0) > SCHEMA:
            raise RadarGateError(
                f"{path}, line {number}: schema {record['schema']} is newer than {SCHEMA}; update radargate."
            )
        records.append(record)
    return records


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write a file under a temporary name, flush it to disk, and rename it into place."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    payload = data.encode() if isinstance(data, str) else data
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)


def _lines(path: Path) -> tuple[list[bytes], bool]:
    """A file's lines, and whether the last one was cut off. Text may hold any other line separator of Unicode."""
    lines = path.read_bytes().split(b"\n")
    if not lines[-1]:
        return lines[:-1], False
    try:
        return lines, not isinstance(json.loads(lines[-1]), dict)
    except (ValueError, RecursionError):
        return lines, True


def _mend_last_line(path: Path) -> None:
    """Make a file end with a whole line: drop one that was cut off, finish one that only lacks its newline."""
    lines, torn = _lines(path)
    if torn:
        with open(path, "r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines[:-1]))
    elif lines and not path.read_bytes().endswith(b"\n"):
        _append_whole(path, b"\n")


def _append_whole(path: str | Path, payload: bytes) -> None:
    """Append all of ``payload`` or nothing, flushed to disk."""
    with open(path, "ab", buffering=0) as file:
        start, written = os.fstat(file.fileno()).st_size, 0
        try:
            while written < len(payload):
                written += file.write(payload[written:])
            os.fsync(file.fileno())
        except OSError:
            # another process may have appended meanwhile: its lines stay, and ours end without a newline
            if written and os.fstat(file.fileno()).st_size == start + written:
                file.truncate(start)
            raise


def _git_state() -> tuple[str | None, bool | None]:
    here = Path(__file__).resolve().parent
    if not any((folder / ".git").exists() for folder in here.parents):
        return None, None  # installed from a wheel

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
