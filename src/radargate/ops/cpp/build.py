"""The C++ sources beside this file, compiled once for this machine and kept in the cache folder.

They use no header of Python or PyTorch: a build takes seconds, needs only a C++ compiler, and outlives both.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from radargate.io.cache import cache_folder

SOURCES = ("slots.cpp", "site.h", "codes.h", "mix.h", "shrink.h", "call.h", "vectors.h", "elementary.h")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC", "-shared")
# the first that the compiler accepts: older ones know no -march=native on some machines, Apple's no OpenMP
EXTRAS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
ENTRY_POINTS = ("radargate_rotation_codes", "radargate_mix", "radargate_shrink", "radargate_site")
BUILD_SECONDS = 300
logger = logging.getLogger(__name__)


@functools.cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """As `load`, found once in a process, whatever ``RADARGATE_FUSED`` says."""
    try:
        folder = _private_folder(cache_folder() / "compiled")
        target = folder / f"slots-{_fingerprint()}.so"
        if not target.exists():
            with _locked(folder / "build.lock"):
                if not target.exists():
                    compile_to(target, os.environ.get("CXX", ""))
        if not _ours(target):
            return None, f"{target} can be written by others"
        loaded = ctypes.CDLL(str(target))
        for name in ENTRY_POINTS:
            function = getattr(loaded, name)
            function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p]
        return loaded, "compiled C++"
    except (OSError, AttributeError, subprocess.SubprocessError, _NoBuild) as problem:
        return None, str(problem).splitlines()[0] if str(problem) else type(problem).__name__


def compile_to(target: Path, requested: str = "") -> None:
    """Compile the sources into ``target``, which appears whole or not at all."""
    compiler = _compiler(requested)
    logger.info("compiling radargate's C++ operations once, into %s", target)
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".building")
    os.close(handle)
    try:
        for extra in EXTRAS:
            command = [*compiler, *FLAGS, *extra, str(Path(__file__).with_name(SOURCES[0])), "-o", temporary]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
            if done.returncode == 0:
                os.chmod(temporary, 0o700)
                os.replace(temporary, target)
                return
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise _NoBuild(f"{compiler[0]} failed: {lines[0].strip()}")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


class _NoBuild(Exception):
    """Why there is no library."""


def _compiler(requested: str) -> list[str]:
    if requested:
        command = shlex.split(requested)
        if command and shutil.which(command[0]):
            return command
        raise _NoBuild(f"CXX={requested} is no program")
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise _NoBuild("no C++ compiler found")


def _fingerprint() -> str:
    """Of the sources, the flags and the processor: a cache folder may be shared by unlike machines."""
    digest = hashlib.sha256(repr((FLAGS, EXTRAS, platform.system(), platform.machine(), _processor())).encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    known = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(known)}))


def _private_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _ours(folder):
        raise _NoBuild(f"{folder} can be written by others")
    return folder


def _ours(path: Path) -> bool:
    """Whether nobody else could have put code there."""
    if not hasattr(os, "getuid"):
        return True
    status = path.stat()
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # no such locks here: both may build, the last one's file stays
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
