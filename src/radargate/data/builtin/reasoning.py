"""Weekdays to come and gone, and who is the tallest of three. Python's calendar, and a rule."""

from __future__ import annotations

import calendar
import itertools
from collections.abc import Iterator

from radargate.data.rows import Row

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Henry", "Ines", "Jonas", "Lena", "Max")


def weekdays() -> Iterator[tuple[str, Row]]:
    """``Today is Monday. Which day is it in 17 days?`` → ``Thursday``."""
    days = tuple(calendar.day_name)
    for today, distance, ahead in itertools.product(range(7), range(1, 261), (True, False)):
        index = (today + distance if ahead else today - distance) % 7
        unit = "day" if distance == 1 else "days"
        question = f"is it in {distance} {unit}" if ahead else f"was it {distance} {unit} ago"
        yield (
            f"{today} {distance} {ahead}",
            Row(f"Today is {days[today]}. Which day {question}?", days[index], days, index),
        )


def ordering() -> Iterator[tuple[str, Row]]:
    """``Anna is taller than Ben. Ben is taller than Clara. Who is the shortest?`` → ``Clara``."""
    for a, b, c in itertools.permutations(NAMES, 3):
        facts = (f"{a} is taller than {b}.", f"{b} is taller than {c}.")
        choices = tuple(sorted((a, b, c)))
        # each triple has one of the two orders of its facts and both questions, under one key
        shown = " ".join(facts if (NAMES.index(a) + NAMES.index(c)) % 2 else facts[::-1])
        for word, answer in (("tallest", a), ("shortest", c)):
            yield f"{a} {b} {c}", Row(f"{shown} Who is the {word}?", answer, choices, choices.index(answer))
