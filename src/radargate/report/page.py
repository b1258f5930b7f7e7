"""One self-contained HTML page: readable on a phone, printed, and by a screen reader."""

from __future__ import annotations

import html
from collections.abc import Sequence

STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #0072B2; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.best td { font-weight: 600; }
figure { margin: 1rem 0; } .chart { width: 100%; height: auto; background: #fff; border-radius: 6px; }
figcaption, .note { font-size: .9rem; opacity: .8; }
pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line); border-radius: 6px; }
.example { border-left: 4px solid var(--accent); padding-left: .8rem; margin: 1rem 0; }
@media (max-width: 40rem) { body { font-size: 15px; padding: .7rem; } th, td { padding: .3rem .4rem; } }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document; nothing in it is loaded from anywhere."""
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n'
    )


def section(title: str, *parts: str) -> str:
    """A headed part of the page."""
    return f"<section><h2>{html.escape(title)}</h2>\n" + "\n".join(parts) + "</section>"


def paragraph(text: str, note: bool = False) -> str:
    """Plain words."""
    return f"<p{' class=note' if note else ''}>{html.escape(text)}</p>"


def figure(chart: str, caption: str) -> str:
    """A chart with its caption."""
    return f"<figure>{chart}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int = 1, best: Sequence[int] = ()
) -> str:
    """A table; columns from ``numbers_from`` on are numbers, rows in ``best`` stand out."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if i >= numbers_from else ''}>{html.escape(v)}</{tag}>"
            for i, v in enumerate(values)
        )

    head = f"<thead><tr>{cells('th', header)}</tr></thead>"
    body = "".join(f"<tr{' class=best' if i in best else ''}>{cells('td', row)}</tr>" for i, row in enumerate(rows))
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'
