"""Python in a process of its own that need not import torch, transformers and PEFT again, which takes seconds.

Processes are forked from one that has imported these and done nothing else; nothing of radargate is loaded there. They have
their own memory, environment, folder and exit code, and can be killed, like any that ``subprocess`` starts.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
IMPORTED = "accelerate", "peft", "torch", "transformers.trainer"
READ_AT_IMPORT = "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"


class Process:
    """``python`` with the given words, as :class:`subprocess.Popen` has it.

    Args:
        words: ``-c CODE``, ``-m MODULE`` or a script, and its arguments.
        env: environment, this process's own without it.
        cwd: folder.
        stdout: ``PIPE``, ``DEVNULL``, an open file, or None for this process's own.
        stderr: likewise.
    """

    def __init__(self, *words: Any, env: dict[str, str] | None = None, cwd: Any = None, stdout: Any = None,
                 stderr: Any = None) -> None:  # fmt: skip
        self.stdout, out = _end(stdout, 1)
        self.stderr, err = _end(stderr, 2)
        self._status, status = os.pipe()
        env = dict(env or os.environ)
        wanted = {"words": [str(w) for w in words], "env": env, "cwd": str(cwd or os.getcwd())}
        parent = _parent(tuple(env.get(name, "0") for name in READ_AT_IMPORT))
        socket.send_fds(parent, [json.dumps(wanted).encode()], [status, out, err])
        os.close(status)
        for given, end in ((stdout, out), (stderr, err)):
            if given in (PIPE, DEVNULL):
                os.close(end)
        self.pid, self.returncode, self._said = 0, None, b""
        self.pid = self._next()

    def _next(self) -> int:
        """The next number that is said of the process: its own, and its exit code."""
        while b"\n" not in self._said:
            part = os.read(self._status, 100)
            if not part:
                raise RuntimeError("the process that others are forked from has ended")
            self._said += part
        number, self._said = self._said.split(b"\n", 1)
        return int(number)

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.returncode is None and (self._said or select.select([self._status], [], [], 0)[0]):
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        if self.returncode is None:
            if not self._said and not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a fresh process", timeout or 0)
            self.returncode = self._next()
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it writes, to its end."""
        said: dict[int, str] = {}
        readers = [
            threading.Thread(target=lambda i=i, file=file: said.__setitem__(i, file.read()), daemon=True)
            for i, file in enumerate((self.stdout, self.stderr))
            if file is not None
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said.get(0, ""), said.get(1, "")

    def send_signal(self, number: int) -> None:
        """Send it a signal if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def run(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end; exit code and what was written."""
    process = Process(*words, **{"stdout": PIPE, "stderr": PIPE, **options})
    out, err = process.communicate()
    return subprocess.CompletedProcess([*words], process.returncode, out, err)


def _end(given: Any, own: int) -> tuple[Any, int]:
    """Our end of an output, and the process's."""
    if given is PIPE:
        ours, theirs = os.pipe()
        return open(ours, encoding="utf-8", errors="replace"), theirs
    if given is DEVNULL:
        return None, os.open(os.devnull, os.O_WRONLY)
    return None, own if given is None else given.fileno()


@functools.cache
def _parent(settings: tuple[str, ...]) -> socket.socket:
    """The other end of a process that others are forked from; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
        stdin=DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1", **dict(zip(READ_AT_IMPORT, settings, strict=True))},
    )  # fmt: skip
    theirs.close()
    return ours


def _serve(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork a process for every request; returns in that process only, with what is asked of it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1 << 20, 3)
        if not message:
            os._exit(0)
        if not os.fork():
            break
        _close(fds)
    # one process to wait for the other and say how it ended
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control.close()
    status, *outputs = fds
    number = os.fork()
    if not number:
        os.close(status)
        return json.loads(message), outputs
    _close(outputs)
    os.write(status, f"{number}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    os.write(status, f"{code}\n".encode())
    os._exit(0)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _become(wanted: dict[str, Any], outputs: list[int]) -> tuple[str, str]:
    """Take on environment, folder, outputs and words; what is to be run, and its kind."""
    for place, fd in enumerate(outputs, 1):
        os.dup2(fd, place)
    _close(fd for fd in outputs if fd > 2)
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(wanted["cwd"])
    kind, *rest = wanted["words"]
    if kind not in ("-c", "-m"):
        sys.path[0], sys.argv = str(Path(kind).parent), [kind, *rest]
        return "script", kind
    sys.path[0], sys.argv = wanted["cwd"], [kind if kind == "-c" else rest[0], *rest[1:]]
    return kind, rest[0]


def _run(kind: str, what: str) -> int:
    """Run it; the exit code."""
    try:
        if kind == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        elif kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(what, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end_quickly(code: int) -> None:
    """End as Python does, but leave it to the system to clear memory, of which most is shared with the other process."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for module in IMPORTED:
        __import__(module)
    gc.freeze()
    _end_quickly(_run(*_become(*_serve(socket.socket(fileno=int(sys.argv[1]))))))
