"""Where labels go so that none lies on another."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places on a line, at least ``gap`` apart and near those wanted, between ``low`` and ``high`` where they fit.

    Args:
        wanted: places in any order and unit.
        gap: smallest distance, in the same unit.
        low: lowest place.
        high: highest place.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [min(max(wanted[i], low), high) for i in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if places and places[-1] > high:  # push back down from the top
        places[-1] = high
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    found = [0.0] * len(wanted)
    for i, place in zip(order, places, strict=True):
        found[i] = place
    return found


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], frame: Box, marker: float
) -> list[tuple[float, float] | None]:
    """Lower left corners for labels beside points, first come first served; None where no place is free.

    Args:
        points: (x, y) of every point, the most important first.
        sizes: (width, height) of every label; a width of 0 asks for no label.
        frame: (left, bottom, right, top) that labels stay within.
        marker: half the size of a point's mark.
    """
    taken: list[Box] = [(x - marker, y - marker, x + marker, y + marker) for x, y in points]
    corners: list[tuple[float, float] | None] = []
    for own, ((x, y), (width, height)) in enumerate(zip(points, sizes, strict=True)):
        corner = None
        for left, bottom in _candidates(x, y, width, height, marker) if width else ():
            box = (left, bottom, left + width, bottom + height)
            inside = frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]
            if inside and not any(_overlap(box, other) for i, other in enumerate(taken) if i != own):
                corner = (left, bottom)
                taken.append(box)
                break
        corners.append(corner)
    return corners


def _candidates(x: float, y: float, width: float, height: float, marker: float) -> list[tuple[float, float]]:
    near = marker + 1.5
    return [
        (x + near, y - height / 2),
        (x - near - width, y - height / 2),
        (x - width / 2, y + near),
        (x - width / 2, y - near - height),
        *((x + sx, y + sy) for sx in (near, -near - width) for sy in (near, -near - height)),
    ]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
