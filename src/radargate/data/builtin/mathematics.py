"""Sums of two numbers, and the next term of a sequence. Python's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

from radargate.data.rows import Row


def addition() -> Iterator[tuple[str, Row]]:
    """``37 + 45`` → ``82``; a + b and b + a share a key."""
    for a in range(2, 100):
        for b in range(a, 100):
            first, second = (a, b) if (a + b) % 2 else (b, a)
            yield f"{a}+{b}", Row(f"What is {first} + {second}?", str(a + b))


def sequences() -> Iterator[tuple[str, Row]]:
    """``4, 7, 10, 13`` → ``16``."""
    for start in range(1, 191):
        for step in range(2, 22):
            shown = ", ".join(str(start + i * step) for i in range(4))
            yield f"{start},{step}", Row(f"What comes next: {shown}?", str(start + 4 * step))
