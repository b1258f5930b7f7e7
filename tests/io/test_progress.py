"""Progress: time left by the pace so far, parts of work inside work, lines and bars."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from radargate.io import progress
from radargate.io.progress import Progress, duration, share


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    return Clock(monkeypatch)


def test_time_left_follows_the_sizes_of_steps_and_not_their_number(clock):
    sizes = [10, 20, 5, 40, 25]
    with Progress("work", sum(sizes)) as work:
        clock.now += 1000  # what is done only once, before the first report, is no part of the pace
        work.add(sizes[0])
        assert work.left() is None
        for number, size in enumerate(sizes[1:], 2):
            clock.now += 3 * size
            work.add(size)
            assert work.left() == pytest.approx(3 * sum(sizes[number:]))


def test_work_inside_a_part_moves_the_whole_along(clock):
    with Progress("whole", 100) as whole:
        with whole.part(40):
            with share(0.5), Progress("first half", 4) as inner:
                inner.add(2)
                assert whole.done == pytest.approx(10)
                inner.add(2)
            with share(0.5), Progress("second half", 10) as inner:
                inner.add(5)
                assert whole.done == pytest.approx(30)
        assert whole.done == 40  # an ended part counts whole, whatever its work has said
        with Progress("beside", 10) as beside:
            beside.add(10)
        assert whole.done == 40
        with whole.part(60), Progress("outer", 2) as outer, outer.part(1), Progress("inner", 4) as inner:
            inner.add(2)
            assert whole.done == pytest.approx(40 + 60 / 4)


def test_lines_come_from_the_second_report_on_and_then_now_and_then(clock, caplog):
    caplog.set_level(logging.INFO, "radargate")
    with Progress("counting", 200, forecast=True) as work:
        for number in range(1, 201):
            clock.now += 1
            work.add(1, f"{number}/200")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == ["counting takes about 3m20s in all.", "2/200  3m18s left"]
    assert len(lines) <= 2 + progress.LINES + 200 / progress.PAUSE and lines[-1] == "200/200  0s left"


def test_a_slow_pace_still_says_something_each_minute(clock, caplog):
    caplog.set_level(logging.INFO, "radargate")
    with Progress("crawling", 10_000) as work:
        for _ in range(5):
            clock.now += 90
            work.add(1, "a step")
    assert len(caplog.records) == 4


def test_duration_reads_as_people_say_it():
    assert [duration(s) for s in (0.4, 45, 190, 7500)] == ["0s", "45s", "3m10s", "2h05m"]


SCRIPT = """
import sys
from radargate.io import progress
progress.draw_bars()
with progress.Progress("training", 4) as work:
    for step in range(1, 5):
        work.add(1, f"step {step}/4")
        progress.print_line(f"a line at step {step}", sys.stderr)
"""


def test_a_terminal_gets_one_bar_with_lines_above_it_and_a_file_gets_lines():
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    subprocess.run([sys.executable, "-c", SCRIPT], stderr=terminal, check=True)
    os.close(terminal)
    shown = b""
    while chunk := _read(main):
        shown += chunk
    text = shown.decode()
    assert "training" in text and "step 4/4" in text and "100%" in text
    for step in range(1, 5):  # each begins where the bar was wiped away
        assert f"\ra line at step {step}\r\n" in text
    result = subprocess.run([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True, check=True)
    assert result.stderr == "".join(f"a line at step {step}\n" for step in range(1, 5))


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:  # Linux: the other side is closed
        return b""
