"""Whether two math answers are equal, by math-verify in a process of its own, with a time limit that holds in threads.

math-verify's own limit is an alarm signal, which works in main threads only and cannot stop arithmetic on huge numbers;
a process can always be killed.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from contextlib import suppress

from radargate.errors import DataError

LIMIT_S = 5.0
START_S = 180.0
LONGEST = 20_000  # characters that are sent, from the end


class MathChecker:
    """Checks answers one after another; safe to share between threads.

    Args:
        limit: seconds for one answer.
    """

    def __init__(self, limit: float = LIMIT_S) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str | None] = queue.Queue()

    def equal(self, gold: str, answer: str) -> bool | None:
        """Whether an answer equals the gold one; None where the checker did not finish in time, or died.

        Raises:
            DataError: the checker cannot be started.
        """
        with self._lock:
            worker = self._worker or self._start()
            assert worker.stdin is not None
            with suppress(OSError):  # a dead worker shows in the reply
                worker.stdin.write(json.dumps([gold[-LONGEST:], answer[-LONGEST:]]) + "\n")
                worker.stdin.flush()
            reply = self._reply(self.limit)
            if reply is None:
                self._stop()
                return None
            return bool(json.loads(reply))

    def close(self) -> None:
        """End the process; the next answer starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        worker = subprocess.Popen(
            [sys.executable, "-m", "radargate.evaluation.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._worker, self._replies = worker, queue.Queue()
        threading.Thread(target=_read, args=(worker, self._replies), daemon=True).start()
        if (reply := self._reply(START_S)) is None:
            self._stop()
            raise DataError(
                f"the checker of math answers did not start (expected a line within {START_S:.0f} s, found {reply}). "
                "See what this says: python -m radargate.evaluation.math_worker < /dev/null"
            )
        return worker

    def _reply(self, seconds: float) -> str | None:
        try:
            return self._replies.get(timeout=seconds)
        except queue.Empty:
            return None

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()


def _read(worker: subprocess.Popen[str], replies: queue.Queue[str | None]) -> None:
    assert worker.stdout is not None
    with suppress(OSError, ValueError):  # the pipe is closed when the worker is stopped
        for line in worker.stdout:
            replies.put(line)
    replies.put(None)


_shared = MathChecker()
atexit.register(lambda: _shared.close())


def _renew() -> None:
    """A forked child must not share the pipes of its parent's worker."""
    global _shared
    _shared = MathChecker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def equal_answers(gold: str, answer: str) -> bool | None:
    """Whether two math answers are equal, by one checker that the whole process shares; None: not decided in time."""
    return _shared.equal(gold, answer)
