"""Which of two elements is heavier, and conversions of units. Libraries: periodictable, pint."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from radargate.data.rows import Row

UNITS = (
    ("kilometre", "metre"),
    ("metre", "centimetre"),
    ("centimetre", "millimetre"),
    ("kilogram", "gram"),
    ("tonne", "kilogram"),
    ("litre", "millilitre"),
    ("hour", "minute"),
    ("minute", "second"),
    ("day", "hour"),
    ("week", "day"),
)


def heavier_element() -> Iterator[tuple[str, Row]]:
    """``iron or gold`` → ``gold``."""
    import periodictable

    known = [e for e in periodictable.elements if 1 <= e.number <= 92]
    for first, second in itertools.combinations(known, 2):
        pair = (first, second) if (first.number * 7 + second.number) % 2 else (second, first)
        choices = tuple(e.name for e in pair)
        index = 0 if pair[0].mass > pair[1].mass else 1
        prompt = f"Which element has the heavier atoms: {choices[0]} or {choices[1]}?"
        yield f"{first.number}-{second.number}", Row(prompt, choices[index], choices, index)


def units() -> Iterator[tuple[str, Row]]:
    """``3 hours`` in minutes → ``180``."""
    import pint

    registry: pint.UnitRegistry = pint.UnitRegistry()
    for big, small in UNITS:
        for count in range(1, 301):
            answer = registry.Quantity(count, big).to(small).magnitude
            plural = big if count == 1 else f"{big}s"
            verb = "is" if count == 1 else "are"
            yield f"{count} {big}", Row(f"How many {small}s {verb} {count} {plural}?", f"{answer:.0f}")
