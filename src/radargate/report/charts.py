"""Charts as inline SVG: text stays text, colours are safe for colour-blind readers, and each has a description."""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

# Okabe & Ito's palette, told apart by every kind of colour vision; line styles tell them apart in black and white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


GREY = "0.55"  # of systems that are there for comparison

WIDTH = 4.6  # inches: on a phone the letters then keep their size; pages draw charts no wider than 34rem
LABEL = 26  # letters of a system's name in one line
LEGEND = 52  # letters of a line of names above a chart, each with its piece of line


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Any, description: str) -> str:
    """A figure as an SVG element that scales with the page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to groups, and two charts would share their ids
    return text.replace("<svg", f'<svg class="chart" role="img" aria-label="{html.escape(description)}"', 1)


def intervals(
    rows: Sequence[tuple[str, Mapping[str, float]]],
    label: str,
    description: str,
    highlight: Sequence[str] = (),
    zero: bool = False,
) -> str:
    """One line a system: value and 95 % interval. Systems in ``highlight`` are coloured, all others grey.

    ``zero`` draws a line there, for differences.
    """
    names = [textwrap.fill(name, LABEL, break_long_words=False) for name, _ in rows]
    lines = max(name.count("\n") + 1 for name in names)
    figure, axes = _figure(WIDTH, (0.12 + 0.18 * lines) * len(rows) + 0.8)
    for place, (name, metric) in enumerate(reversed(rows)):
        colour = COLOURS[0] if name.replace("\n", " ") in highlight or not highlight else GREY
        axes.plot([metric["low"], metric["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(metric["value"], place, "o", color=colour)
        axes.annotate(f"{metric['value']:.2f}", (metric["high"], place), xytext=(6, -4), textcoords="offset points")
    if zero:
        axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), names[::-1])
    axes.set_xlabel(label)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure, description)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, description: str, logarithmic: bool = False
) -> str:
    """Lines over steps, or over anything else; ``logarithmic`` on both axes."""
    columns = max(1, min(len(lines), LEGEND // (max(map(len, lines)) + 7)))
    figure, axes = _figure(WIDTH, 2.7 + 0.2 * math.ceil(len(lines) / columns))
    for place, (name, points) in enumerate(lines.items()):
        axes.plot(
            *zip(*points, strict=True), label=name, color=COLOURS[place % 7], linestyle=STYLES[place % 7], linewidth=2
        )
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)  # above the lines, where it hides none
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure, description)


def series(
    lines: Mapping[str, Mapping[str, Sequence[float]]], x: str, y: str, description: str, references: Sequence[str] = ()
) -> str:
    """A few places a line (name of the place → value, low, high), evenly apart, each with its interval.

    Names in ``references`` come last and in grey, so that the others keep their colours with and without them.
    """
    lines = dict(sorted(lines.items(), key=lambda line: line[0] in references))
    columns = max(1, min(len(lines), LEGEND // (max(map(len, lines)) + 7)))
    figure, axes = _figure(WIDTH, 2.9 + 0.2 * math.ceil(len(lines) / columns))
    ticks = list(dict.fromkeys(place for each in lines.values() for place in each))
    for number, (name, each) in enumerate(lines.items()):
        aside = 0.03 * (number - (len(lines) - 1) / 2)  # so that intervals do not hide each other
        at = [ticks.index(place) + aside for place in each]
        value, low, high = zip(*each.values(), strict=True)
        grey = name in references
        colour, shape = (GREY, "s") if grey else (COLOURS[number % 7], "o")
        axes.plot(
            at,
            value,
            label=name,
            color=colour,
            linestyle=STYLES[number % 7],
            linewidth=1.2 if grey else 2,
            marker=shape,
            markersize=4,
        )
        axes.vlines(at, low, high, color=colour, linewidth=1, alpha=0.55)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xticks(range(len(ticks)), ticks)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure, description)


def heat_map(values: Mapping[str, Mapping[str, float]], label: str, description: str) -> str:
    """Rows by columns, the number in every cell."""
    rows, columns = list(values), list(next(iter(values.values())))
    table = [[values[r][c] for c in columns] for r in rows]
    figure, axes = _figure(WIDTH, 0.3 * len(rows) + 1.3)
    axes.imshow(table, cmap="cividis", aspect="auto", vmin=0.0)
    top = max(max(line) for line in table)
    for i, line in enumerate(table):
        for j, value in enumerate(line):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 * top else "white")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(label)
    return svg(figure, description)


def moves(points: Sequence[tuple[str, Sequence[float], Sequence[float]]], description: str) -> str:
    """Named points in a plane, each with an arrow from its first place (hollow) to its second (filled)."""
    figure, axes = _figure(WIDTH, WIDTH * 0.8)
    for place, (_, before, after) in enumerate(points):
        colour = COLOURS[place % 7]
        (x, y), (to_x, to_y) = ((*point, 0.0)[:2] for point in (before, after))
        axes.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "->", "color": colour})
        axes.plot(x, y, "o", color=colour, fillstyle="none")
        axes.plot(to_x, to_y, "o", color=colour)
    axes.margins(0.2)
    axes.set_xlabel("first principal axis")
    axes.set_ylabel("second principal axis")
    axes.spines[["top", "right"]].set_visible(False)
    figure.canvas.draw()  # from here on places on the page are known
    scale, below = 72 / figure.dpi, -math.inf
    ends = [(name, (*after, 0.0)[:2]) for name, _, after in points]
    for name, end in sorted(ends, key=lambda each: each[1][1]):
        height = axes.transData.transform(end)[1] * scale
        below = max(height - 3, below + 11)  # a line of text above the one below
        axes.annotate(name, end, xytext=(7, below - height), textcoords="offset points", fontsize=9)
    return svg(figure, description)
