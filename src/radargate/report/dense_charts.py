"""Charts of many systems on a page as narrow as a phone: drawn at 360 points, told apart without colour."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radargate.report.charts import COLOURS, STYLES, svg
from radargate.report.labels import place_labels, spread

_WIDTH = 5.0  # inches: 360 points, one to one on a phone
_FONT = 8.0  # points
NO_GROUP = "no architecture"
_MARKERS = ("o", "s", "^", "v", "P", "X")


@dataclass(frozen=True)
class Mark:
    """One system on a chart.

    Attributes:
        name: its label.
        value: where its dot is.
        low: lower end of its interval.
        high: upper end.
        group: systems of a group share marker and colour; ``NO_GROUP`` comes last.
        seeds: value of each seed; small ticks, where there are several.
        hollow: draw the dot empty.
    """

    name: str
    value: float
    low: float
    high: float
    group: str
    seeds: Sequence[float] = ()
    hollow: bool = False


def _small_type(draw: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(draw)
    def wrapped(*args: Any, **options: Any) -> str:
        import matplotlib

        with matplotlib.rc_context({"font.size": _FONT, "axes.spines.top": False, "axes.spines.right": False}):
            return draw(*args, **options)

    return wrapped


def _figure(height: float, panels: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]


def _look(groups: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Marker and colour of each group, the same on every chart of a page."""
    names = sorted(set(groups), key=lambda name: (name == NO_GROUP, name))
    return {name: (_MARKERS[i % len(_MARKERS)], COLOURS[i % len(COLOURS)]) for i, name in enumerate(names)}


def _legend(figure: Any, look: Mapping[str, tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker=m, color=c, linestyle="", label=name) for name, (m, c) in look.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, handletextpad=0.2)


def _bulk(lows: np.ndarray, highs: np.ndarray) -> tuple[float, float]:
    """Limits that leave out what lies far from most, so that the rest can be told apart."""
    first, third = np.percentile(np.concatenate([lows, highs]), [25, 75])
    reach = 2.5 * (third - first)
    low, high = max(lows.min(), first - reach), min(highs.max(), third + reach)
    edge = 0.04 * (high - low) or 0.01
    return low - edge, high + edge


@_small_type
def ranking(marks: Sequence[Mark], label: str, description: str) -> str:
    """One line a system, the first on top: dot, 95 % interval, a tick a seed; values stand at the right."""
    figure, (axes,) = _figure(0.175 * len(marks) + 1.0)
    look = _look([mark.group for mark in marks])
    low, high = _bulk(np.array([m.low for m in marks]), np.array([m.high for m in marks]))
    for place, mark in enumerate(marks):
        marker, colour = look[mark.group]
        axes.text(1.02, place, f"{mark.value:.3f}", transform=axes.get_yaxis_transform(), va="center")
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", linewidth=0, zorder=0)
        if mark.value > high or mark.value < low:
            edge, arrow = (high, ">") if mark.value > high else (low, "<")
            axes.plot(edge, place, arrow, color=colour, markersize=4, clip_on=False)
            continue
        axes.plot([mark.low, mark.high], [place, place], color=colour, linewidth=1.2)
        if len(mark.seeds) > 1:
            axes.plot(mark.seeds, [place] * len(mark.seeds), "|", color="black", markersize=5, markeredgewidth=0.7)
        axes.plot(
            mark.value, place, marker, color=colour, markersize=4.5, markerfacecolor="white" if mark.hollow else colour
        )
    axes.set_yticks(range(len(marks)), [mark.name for mark in marks])
    axes.set_ylim(len(marks) - 0.5, -0.5)
    axes.set_xlim(low, high)
    axes.set_xlabel(label)
    axes.tick_params(axis="y", length=0)
    _legend(figure, look)
    return svg(figure, description)


@_small_type
def named_lines(
    lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, description: str, heavy: Sequence[str] = ()
) -> str:
    """Lines over steps, each with its name at its end, ``heavy`` ones thicker; a steep start is cut off at the top."""
    height = max(2.6, 0.14 * len(lines) + 0.9)
    figure, (axes,) = _figure(height)
    points = {name: np.array(line, dtype=float) for name, line in lines.items()}
    values = np.concatenate([line[:, 1] for line in points.values()])
    # a first loss far above all others would press every curve flat
    top = min(values.max(), np.percentile(values, 90) + 0.5 * (np.percentile(values, 90) - values.min()))
    margin = 0.03 * (top - values.min()) or 0.01
    low, high = values.min() - margin, top + margin
    axes.set_ylim(low, high)
    gap = (high - low) * _FONT * 1.12 / (72 * (height - 0.6))
    last = max(line[-1, 0] for line in points.values())
    first = min(line[0, 0] for line in points.values())
    heights = spread([float(line[-1, 1]) for line in points.values()], gap, low + gap / 2, high - gap / 2)
    for place, ((name, line), label) in enumerate(zip(points.items(), heights, strict=True)):
        colour, style = COLOURS[place % len(COLOURS)], STYLES[(place + place // len(COLOURS)) % len(STYLES)]
        axes.plot(line[:, 0], line[:, 1], color=colour, linestyle=style, linewidth=2.2 if name in heavy else 1.1)
        reach = last + 0.08 * (last - first or 1)
        axes.plot([line[-1, 0], reach], [min(line[-1, 1], high), label], color=colour, linewidth=0.6, clip_on=False)
        axes.text(reach, label, f" {name}", color="black", va="center")
    axes.set_xlim(first, last)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return svg(figure, description)


@_small_type
def costs(
    costs: Mapping[str, float],
    panels: Mapping[str, Sequence[Mark]],
    x: str,
    description: str,
    named_first: Sequence[str] = (),
) -> str:
    """A panel a metric over one cost (log scale, with a place for none); names where there is room for them.

    Args:
        costs: of each system; at least one is not zero.
        panels: label of a metric → its marks.
        x: what the cost is.
        description: for screen readers.
        named_first: systems that get the free places for names before the others.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter

    figure, all_axes = _figure(2.9 * len(panels) + 0.6, len(panels))
    look = _look([mark.group for marks in panels.values() for mark in marks])
    paid = [cost for cost in costs.values() if cost > 0]
    reach = max(max(paid) / min(paid), 1.5)
    none = min(paid) / reach**0.3
    places = {name: cost if cost > 0 else none for name, cost in costs.items()}
    for axes, (label, marks) in zip(all_axes, panels.items(), strict=True):
        axes.set_xscale("log")
        axes.set_ylim(*_bulk(np.array([m.value for m in marks]), np.array([m.value for m in marks])))
        axes.set_ylabel(label)
        axes.grid(color="#dddddd", linewidth=0.5)
        for mark in marks:
            marker, colour = look[mark.group]
            fill = "white" if mark.hollow else colour
            axes.plot(places[mark.name], mark.value, marker, color=colour, markersize=4, markerfacecolor=fill)
    low, high = min(places.values()), max(places.values())
    all_axes[-1].set_xlim(low / reach**0.08, high * reach**0.08)
    ticks = _log_ticks(min(paid), max(paid), reach**0.18)
    if low == none:
        ticks = [none, *ticks]
    all_axes[-1].xaxis.set_major_locator(FixedLocator(ticks))
    all_axes[-1].xaxis.set_minor_locator(FixedLocator([]))
    all_axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda v, _: "0" if v == none else _short(v)))
    all_axes[-1].set_xlabel(x)
    _legend(figure, look)
    figure.draw_without_rendering()  # names go where the finished layout has room
    for axes, marks in zip(all_axes, panels.values(), strict=True):
        _name(axes, places, marks, named_first)
    return svg(figure, description)


def _name(axes: Any, places: Mapping[str, float], marks: Sequence[Mark], named_first: Sequence[str]) -> None:
    inside = [m for m in marks if axes.get_ylim()[0] <= m.value <= axes.get_ylim()[1]]
    order = sorted(inside, key=lambda m: named_first.index(m.name) if m.name in named_first else len(named_first))
    scale = axes.figure.dpi / 72
    points = [tuple(axes.transData.transform((places[m.name], m.value)) / scale) for m in order]
    box = axes.get_window_extent()
    frame = (box.x0 / scale, box.y0 / scale, box.x1 / scale, box.y1 / scale)
    size = _FONT - 1.5
    corners = place_labels(points, [(0.6 * size * len(m.name), size * 1.1) for m in order], frame, 2.5)
    for mark, point, corner in zip(order, points, corners, strict=True):
        if corner is not None:
            shift = (corner[0] - point[0], corner[1] - point[1] + 1)
            axes.annotate(
                mark.name, (places[mark.name], mark.value), xytext=shift, textcoords="offset points", fontsize=size
            )


def _log_ticks(low: float, high: float, apart: float) -> list[float]:
    """Round numbers between two, the roundest first, at least a factor ``apart`` from each other."""
    found: list[float] = []
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1,), (2, 5), (3, 7), (1.5, 4, 6, 8), np.arange(1, 10, 0.5), np.arange(1, 10, 0.1)):
        if len(found) >= 3:
            break
        for value in (float(step) * 10.0**decade for decade in decades for step in steps):
            if low <= value <= high and all(max(value / t, t / value) >= apart for t in found):
                found.append(value)
    return sorted(found)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
