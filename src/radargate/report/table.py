"""A table once, in three forms: HTML for the page, CSV for other tools, Markdown for docs and terminals."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from radargate.report import page

Row = Mapping[str, Any]
NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A column people read: its title, and how a row's values become its text.

    Attributes:
        title: of the column.
        text: row → what the cell says.
        shade: row → 0 (white) to 1 (dark) behind the cell; None for no colour.
    """

    title: str
    text: Callable[[Row], str]
    shade: Callable[[Row], float | None] = field(default=lambda row: None)


@dataclass(frozen=True)
class Table:
    """Rows of exact values, and the columns people read them in.

    Attributes:
        name: of its CSV file, without the suffix.
        caption: what it shows.
        rows: dicts with the same keys; the CSV file has these, unrounded.
        columns: of the page and Markdown; the first names the row.
        numbers_from: columns from here on are numbers.
        best: rows that stand out.
        shown: rows that people read, where the CSV has more.
    """

    name: str
    caption: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    numbers_from: int = 1
    best: Sequence[int] = ()
    shown: Sequence[Row] | None = None

    def texts(self) -> list[list[str]]:
        """The cells as people read them."""
        return [[column.text(row) for column in self.columns] for row in self._read()]

    def html(self) -> str:
        """The table and the link to its CSV file."""
        return self.alone() + self.link()

    def alone(self) -> str:
        """The table alone."""
        shades = [[column.shade(row) for column in self.columns[1:]] for row in self._read()]
        return page.table(
            [c.title for c in self.columns],
            self.texts(),
            numbers_from=self.numbers_from,
            best=self.best,
            caption=self.caption,
            many=True,
            shades=shades,
        )

    def link(self) -> str:
        """The link that saves the CSV file."""
        return page.download(f"{self.name}.csv", self.csv(), f"{self.name}.csv ({len(self.rows)} rows)")

    def csv(self) -> str:
        """Exact values; an empty cell is a value that is not there."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """A Markdown table, without caption."""
        return markdown([c.title for c in self.columns], self.texts())

    def _read(self) -> Sequence[Row]:
        return self.rows if self.shown is None else self.shown


def facts_table(name: str, caption: str, facts: Mapping[str, Any]) -> Table:
    """Two columns: what, and its value."""
    rows = [{"what": what, "value": value or NOTHING} for what, value in facts.items()]
    return Table(name, caption, rows, [Column("what", text("what")), Column("value", text("value"))], numbers_from=9)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def text(key: str) -> Callable[[Row], str]:
    """The value as it is."""
    return lambda row: NOTHING if row[key] is None else str(row[key])


def number(key: str, digits: int = 3, sign: bool = False) -> Callable[[Row], str]:
    """A rounded number, with commas between thousands."""
    return lambda row: NOTHING if row[key] is None else f"{row[key]:{'+' if sign else ''},.{digits}f}"


def interval(key: str, digits: int = 3, sign: bool = False) -> Callable[[Row], str]:
    """``low to high`` from the values ``<key>_low`` and ``<key>_high``."""
    low, high = number(f"{key}_low", digits, sign), number(f"{key}_high", digits, sign)
    return lambda row: f"{low(row)} to {high(row)}"


def with_interval(key: str) -> Callable[[Row], str]:
    """A number and, where the row has one, its interval."""
    value, spread = number(key), interval(key)
    return lambda row: value(row) if row.get(f"{key}_low") is None else f"{value(row)} ({spread(row)})"


def score_and_interval(metric: Mapping[str, float]) -> tuple[str, str]:
    """Two cells of a score in a record: its value, and its interval."""
    return f"{metric['value']:.3f}", f"{metric['low']:.3f} to {metric['high']:.3f}"


def probability(key: str) -> Callable[[Row], str]:
    """A p-value to four places."""
    return lambda row: NOTHING if row[key] is None else "< 0.0001" if row[key] < 0.0001 else f"{row[key]:.4f}"
