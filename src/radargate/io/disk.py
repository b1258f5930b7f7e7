"""What to say when results cannot be written: a full disk, a spent quota, a folder that may not be written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from radargate.errors import OutOfMemoryError, RadarGateError, StorageError, first_line, out_of_memory

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows has no such locks)
    fcntl = None  # type: ignore[assignment]

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
HELD = ".in-use"
OUT, AGAIN = "choose another `out`", "run the command again"
# libraries written in Rust (safetensors, tokenizers) and pip report the system's error as text only
_IN_TEXT = re.compile(r"\(os error (\d+)\)|OSError: \[Errno (\d+)\]")


@contextlib.contextmanager
def writing(what: str, folder: str | Path, otherwise: str = OUT, again: str = AGAIN) -> Iterator[None]:
    """Turn a failure to write into one clear `StorageError`; any other exception passes as it is.

    Args:
        what: what is being written, such as ``"the bundle"``.
        folder: where.
        otherwise: what to do instead of making room, such as ``"choose another `out`"``.
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


def flush(path: Path) -> None:
    """Bring a file to disk, or a folder with every file in it, so that what is renamed later survives a power cut."""
    for part in (*(f for f in sorted(path.iterdir()) if f.is_file()), path) if path.is_dir() else (path,):
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(file: str | Path, what: str) -> None:
    """Raise `StorageError` now, not after an hour's work, where a result file could not be written."""
    file = Path(file)
    with writing(what, file):
        existed = file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        open(file, "ab").close()
        if not existed:
            file.unlink()


@contextlib.contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Hold an output folder for this process, so that no second run writes into it.

    The system lets go of it when the process ends, however it ends. Where the folder cannot be made or locked nothing is
    held: what is written there then says so itself.

    Args:
        folder: where results go; made if it is not there, and removed again if nothing came to stand in it.

    Raises:
        StorageError: another process, or another thread of this one, holds it.
    """
    folder = Path(folder)
    made, handle = not folder.exists(), None
    with contextlib.suppress(OSError):
        for _ in range(0 if fcntl is None else 100):
            with contextlib.suppress(
                FileExistsError, FileNotFoundError
            ):  # its holder has just removed the empty folder
                folder.mkdir(parents=True, exist_ok=True)
                handle = _hold(folder / HELD)
                break
        for left in folder.glob(".*.tmp") if handle is not None else ():
            if left.is_file():  # half a file that a killed run was writing, of no use to anybody
                left.unlink()
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                (folder / HELD).unlink()  # while it is held, so that nobody waits for a file that is gone
            os.close(handle)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which an empty folder alone allows


def _hold(file: Path) -> int:
    """Lock a file, and give its handle."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            number = os.read(handle, 20).decode(errors="replace")
            os.close(handle)
            raise StorageError(
                f"{file.parent} is being written by another run{f' (process {number})' if number else ''}. Wait until it has "
                f"ended, or {OUT}."
            ) from error
        except OSError:
            os.close(handle)
            raise
        if _still_there(handle, file):
            with contextlib.suppress(OSError):  # a full disk has room for the lock, if not for who holds it
                os.ftruncate(handle, 0)  # of who was killed holding it
                os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)


def _still_there(handle: int, file: Path) -> bool:
    """Whether a locked file is the one that stands there, and not one that its holder has just removed."""
    try:
        return os.fstat(handle).st_ino == file.stat().st_ino
    except OSError:
        return False


@contextlib.contextmanager
def enough_memory(what: str, lower: str) -> Iterator[None]:
    """Turn running out of memory into one clear `OutOfMemoryError`; any other exception passes as it is.

    Args:
        what: what is being done, such as ``"training"``.
        lower: what to lower, such as ``"`batch_size` (now 8)"``.

    Raises:
        OutOfMemoryError: memory ran out.
    """
    try:
        yield
    except RadarGateError:
        raise
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{what} needs more memory than there is ({first_line(error)[:120]}). Lower {lower}; radargate plan predicts "
            "what a setting needs."
        ) from error


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
