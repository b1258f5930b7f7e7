"""One self-contained HTML page: readable on a phone, printed, and by a screen reader."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence

_SHADES = 10  # steps of a heat table's colour, white to dark blue
STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #0072B2; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
h3 { margin-bottom: .3rem; }
.scroll { overflow-x: auto; } table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
caption { text-align: left; font-size: .9rem; padding: .3rem 0; }
thead th { vertical-align: bottom; } tbody th { font-weight: 400; }
tr.best td, tr.best th { font-weight: 600; }
figure { margin: 1rem 0; } .chart { width: 100%; height: auto; background: #fff; border-radius: 6px; }
.narrow { max-width: 40rem; margin-left: auto; margin-right: auto; }
/* whole pixels: a cell that stays in view is drawn by itself, and its lines would else miss the row's */
.many { font-size: 14px; line-height: 20px; } .many th, .many td { padding: 3px 6px; }
.many th:first-child { position: sticky; left: 0; background: Canvas; min-width: 6.5rem; }
caption span { display: block; position: sticky; left: 0; max-width: min(58rem, calc(100vw - 1.5rem)); }
summary { cursor: pointer; padding: .3rem 0; } nav ul { columns: 2; padding-left: 1.2rem; }
@media print { details::details-content { content-visibility: visible; } nav, .csv { display: none; } }
figcaption, .note { font-size: .9rem; opacity: .8; }
pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line); border-radius: 6px; }
.example { border-left: 4px solid var(--accent); padding-left: .8rem; margin: 1rem 0; }
@media (max-width: 40rem) { body { font-size: 15px; padding: .7rem; } th, td { padding: .3rem .4rem; }
  .many { font-size: 12px; line-height: 18px; } .many th, .many td { padding: 3px 4px; } }
"""


def _shade_style(step: int) -> str:
    share = step / (_SHADES - 1)
    colour = [round(255 + share * (dark - 255)) for dark in (0x08, 0x3D, 0x77)]
    linear = [(c / 255 / 12.92) if c < 11 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    ink = "#000" if luminance > 0.18 else "#fff"  # where black and white stand out equally, as WCAG measures it
    return (
        f"td.shade{step} {{ background: rgb({', '.join(map(str, colour))}); color: {ink}; print-color-adjust: exact; }}"
    )


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document; nothing in it is loaded from anywhere."""
    body = "\n".join(sections)
    style = STYLE + "\n".join(map(_shade_style, range(_SHADES))) if "shade" in body else STYLE
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n'
    )


def slug(title: str) -> str:
    """A title as the id that links reach it by."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def contents(titles: Sequence[str]) -> str:
    """Links to the sections of these titles."""
    links = "".join(f'<li><a href="#{slug(t)}">{html.escape(t)}</a></li>' for t in titles)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def section(title: str, *parts: str) -> str:
    """A headed part of the page."""
    return f'<section id="{slug(title)}"><h2>{html.escape(title)}</h2>\n' + "\n".join(parts) + "</section>"


def paragraph(text: str, note: bool = False) -> str:
    """Plain words."""
    return f"<p{' class=note' if note else ''}>{html.escape(text)}</p>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{html.escape(text)}</h3>"


def folded(title: str, *parts: str, unfolded: bool = False) -> str:
    """Parts that open on a click, for what is long."""
    return (
        f"<details{' open' if unfolded else ''}><summary>{html.escape(title)}</summary>\n"
        + "\n".join(parts)
        + "</details>"
    )


def download(name: str, text: str, words: str) -> str:
    """A link that saves ``text`` as the CSV file ``name``; the data is inside the page."""
    data = base64.b64encode(text.encode()).decode()
    return f'<p class="csv"><a download="{html.escape(name)}" href="data:text/csv;charset=utf-8;base64,{data}">{html.escape(words)}</a></p>'


def figure(chart: str, caption: str, narrow: bool = False) -> str:
    """A chart with its caption; ``narrow`` for charts drawn at a phone's width."""
    return f"<figure{' class=narrow' if narrow else ''}>{chart}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers_from: int = 1,
    best: Sequence[int] = (),
    caption: str = "",
    many: bool = False,
    shades: Sequence[Sequence[float | None]] = (),
) -> str:
    """A table that scrolls sideways by itself where the page is too narrow.

    Args:
        header: titles of the columns.
        rows: texts of the cells; the first of a row names it.
        numbers_from: columns from here on are numbers.
        best: rows that stand out.
        caption: what it shows, above it, and for screen readers the name of its scrolling box.
        many: smaller, and the first column stays in view while the rest scrolls.
        shades: 0 (white) to 1 (dark) behind every cell after the first; None for no colour.
    """

    def cell(row: int, column: int, text: str) -> str:
        classes = ["number"] if column >= numbers_from else []
        shade = shades[row][column - 1] if shades and column else None
        if shade is not None:
            classes.append(f"shade{round(shade * (_SHADES - 1))}")
        attributes = f' class="{" ".join(classes)}"' if classes else ""
        tag = "td" if column else "th"
        return f"<{tag}{attributes}{'' if column else ' scope=row'}>{html.escape(text)}</{tag}>"

    head = "".join(
        f"<th scope=col{' class=number' if i >= numbers_from else ''}>{html.escape(title)}</th>"
        for i, title in enumerate(header)
    )
    body = "".join(
        f"<tr{' class=best' if i in best else ''}>{''.join(cell(i, j, text) for j, text in enumerate(row))}</tr>"
        for i, row in enumerate(rows)
    )
    label = f' tabindex=0 role=region aria-label="{html.escape(caption)}"' if caption else ""
    words = f"<caption><span>{html.escape(caption)}</span></caption>" if caption else ""
    return (
        f'<div class="scroll"{label}><table{" class=many" if many else ""}>{words}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
