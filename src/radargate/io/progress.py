"""Progress of long work: how much is done and how long the rest will take, as a bar on a terminal, else as a line now and then.

Library code opens a `Progress` and adds to it. Progress that is opened inside a part of other work moves that part along, so that
one bar counts for all. Without the command line nothing is drawn; lines are logged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from radargate.io.processes import is_main_process

LINES = 10  # about as many lines where there is no terminal
SHORTEST, PAUSE = 1.0, 60.0  # seconds between lines at least; after which one comes in any case
logger = logging.getLogger(__name__)
_quiet: ContextVar[bool] = ContextVar("radargate_quiet", default=False)
_bars = False  # whether to draw bars; the command line says so
_bar: Any = None  # the one on the screen


def draw_bars() -> None:
    """Draw bars from now on, where standard error is a terminal that knows its width."""
    global _bars
    _bars = False
    with contextlib.suppress(OSError, ValueError):  # ValueError: a stream that is no file
        _bars = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0 and is_main_process()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what is logged inside the block off the screen: steps of other work, which says itself how it goes."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def quiet() -> bool:
    """Whether what is logged now is to stay off the screen."""
    return _quiet.get()


def drawing_bars() -> bool:
    """Whether a command draws bars."""
    return _bars


def print_line(line: str, stream: Any) -> None:
    """Print a line at once, above the bar if there is one."""
    if _bar is not None:
        _bar.clear()
    print(line, file=stream, flush=True)
    if _bar is not None:
        _bar.refresh()


@dataclass
class _Span:
    """A stretch of some work's total that other work stands for."""

    work: Progress
    start: float
    amount: float
    used: float = 0.0  # of the amount, by parts that have ended


_span: ContextVar[_Span | None] = ContextVar("radargate_span", default=None)


class Progress:
    """Progress of a known size, in any unit that its parts' times are in proportion to; a context manager.

    Args:
        name: what is done, in a word or two.
        total: its size.
        forecast: say how long all of it takes, as soon as that is known.
    """

    def __init__(self, name: str, total: float, forecast: bool = False) -> None:
        self.name, self.total, self.forecast = name, max(total, 1e-9), forecast
        self.done = 0.0
        self._inside = _span.get()
        self._reports, self._lines, self._said = 0, 0, time.monotonic()
        self._first: tuple[float, float] | None = None  # when the first report came, and how much was done

    def __enter__(self) -> Progress:
        global _bar
        self._begun = time.monotonic()
        if self._inside is None and _bars and _bar is None:
            from tqdm import tqdm

            _bar = tqdm(
                total=self.total,
                desc=self.name,
                leave=False,
                file=sys.stderr,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}|{postfix}",
            )
        if self._inside is None:
            self._token = _span.set(
                _Span(self, 0.0, 0.0)
            )  # work that is opened in no part of this one only says what it does
        return self

    def __exit__(self, *error: object) -> None:
        global _bar
        if self._inside is not None:
            return
        _span.reset(self._token)
        if _bar is not None:
            _bar.close()
            _bar = None

    def add(self, amount: float, text: str = "") -> None:
        """Report that so much more is done."""
        self.done = min(self.done + amount, self.total)
        if self._inside is None:
            self._report(self.done, text)
        else:
            self._inside.work.reach(self._inside.start + self._inside.amount * self.done / self.total, text)

    def drop(self, amount: float) -> None:
        """Count so much no longer: an earlier run did it, and its speed says nothing of this one's."""
        self.total = max(self.total - amount, self.done, 1e-9)

    def reach(self, done: float, text: str = "") -> None:
        """Report that so much is done in all."""
        self.add(max(done - self.done, 0.0), text)

    @contextlib.contextmanager
    def part(self, amount: float) -> Iterator[None]:
        """Let work that is opened inside the block stand for so much of this."""
        start = self.done
        token = _span.set(_Span(self, start, amount))
        try:
            yield
        finally:
            _span.reset(token)
        self.done = max(self.done, min(start + amount, self.total))

    def left(self) -> float | None:
        """Seconds that the rest takes at the pace so far, the first report aside; None before the second."""
        if self._first is None or self.done <= self._first[1]:
            return None
        since, done = self._first
        return (time.monotonic() - since) / (self.done - done) * (self.total - self.done)

    def _report(self, done: float, text: str) -> None:
        self._reports += 1
        left = self.left()
        if self._first is None:
            self._first = (time.monotonic(), done)  # what came before it also holds what is done only once
        if left is not None and self.forecast:
            self.forecast = False
            logger.info("%s takes about %s in all.", self.name, duration(time.monotonic() - self._begun + left))
        words = "  ".join(part for part in (text, "" if left is None else f"{duration(left)} left") if part)
        if _bar is not None:
            _bar.set_postfix_str(words, refresh=False)
            _bar.n = done
            _bar.refresh()
        elif left is not None and self._due(done):
            logger.info("%s", words)

    def _due(self, done: float) -> bool:
        tenths, since = int(done / self.total * LINES + 1e-9), time.monotonic() - self._said
        if since < SHORTEST or (tenths <= self._lines and self._lines and since < PAUSE):
            return False
        self._lines, self._said = max(tenths, 1), time.monotonic()
        return True


@contextlib.contextmanager
def share(part: float) -> Iterator[None]:
    """Let work inside the block stand for this share of the part that it is opened in; nothing where it is in none."""
    span = _span.get()
    if span is None:
        yield
        return
    token = _span.set(_Span(span.work, span.start + span.used, span.amount * part))
    try:
        yield
    finally:
        _span.reset(token)
        span.used += span.amount * part


def duration(seconds: float) -> str:
    """Seconds as people say them: ``45s``, ``3m10s``, ``2h05m``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
