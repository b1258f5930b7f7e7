"""What to say when results cannot be written: a full disk, a spent quota, a folder that may not be written."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from radargate.errors import RadarGateError, StorageError

FULL = "the disk is full"
REASONS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: "your disk quota is used up",
    errno.EFBIG: "the file would be larger than this system allows (ulimit -f)",
    errno.EROFS: "that file system is read-only",
    errno.EACCES: "you have no permission to write there",
    errno.EPERM: "you have no permission to write there",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
}
OUT, AGAIN = "choose another --out", "run the command again"
# libraries written in Rust (safetensors, tokenizers) and pip report the system's error as text only
_IN_TEXT = re.compile(r"\(os error (\d+)\)|OSError: \[Errno (\d+)\]")


@contextlib.contextmanager
def writing(what: str, folder: str | Path, otherwise: str = OUT, again: str = AGAIN) -> Iterator[None]:
    """Turn a failure to write into one clear `StorageError`; any other exception passes as it is.

    Args:
        what: what is being written, such as ``"the bundle"``.
        folder: where.
        otherwise: what to do instead of making room, such as ``"choose another --out"``.
        again: what to do once there is room.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except RadarGateError:
        raise
    except Exception as error:
        reason = write_fault(error)
        if reason is None:
            raise
        raise StorageError(message(what, folder, reason, otherwise, again)) from error


def message(what: str, folder: str | Path, reason: str, otherwise: str = OUT, again: str = AGAIN) -> str:
    """One line: what could not be written, where, why, and what to do."""
    if reason == FULL:
        with contextlib.suppress(OSError):
            reason += f" ({shutil.disk_usage(_existing(Path(folder))).free / 1e6:,.0f} MB free)"
        return f"{what} could not be written to {folder}: {reason}. Free some space there and {again}, or {otherwise}."
    return f"{what} could not be written to {folder}: {reason}. {otherwise[0].upper()}{otherwise[1:]}."


def write_fault(error: BaseException) -> str | None:
    """Why nothing could be written, in words; None where an exception has another cause."""
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        reason = REASONS.get(number) if number else text_fault(str(seen))
        if reason:
            return reason
        seen = seen.__cause__
    return None


def text_fault(text: str) -> str | None:
    """The same for what a library or another program printed."""
    for rust, python in _IN_TEXT.findall(text):
        if reason := REASONS.get(int(rust or python)):
            return reason
    return None


def check_writable(file: str | Path, what: str) -> None:
    """Raise `StorageError` now, not after an hour's work, where a result file could not be written."""
    file = Path(file)
    with writing(what, file):
        existed = file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        open(file, "ab").close()
        if not existed:
            file.unlink()


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
