"""docs/results/records.html: every record as one table to sort and filter, in one file that loads nothing."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from radargate.io.records import read_records
from radargate.report import page
from sources import RESULTS

COLUMNS = (
    ("experiment", "folder of the records"),
    ("suite", "what was run"),
    ("system", "what was scored, or the case"),
    ("task", ""),
    ("seed", ""),
    ("rows", "scored"),
    ("accuracy", "share of right answers"),
    ("from", "lower end of its 95 % interval over rows"),
    ("to", "upper end"),
    ("NLL", "of the right answer, nats a token"),
    ("from", "lower end of its 95 % interval over rows"),
    ("to", "upper end"),
    ("other values", "as the record names them"),
    ("date", ""),
    ("commit", ""),
)
NUMBERS = range(4, 12)
OTHER = 6  # values of a record that are no scores, at most
SHOWN = 200  # rows at first, and more for each click


def records_page() -> str:
    """The whole file."""
    rows = [row for file in sorted(RESULTS.rglob("*.jsonl")) for row in _rows(file)]
    texts = [
        sorted({str(row[place]) for row in rows}) if place not in NUMBERS else None for place in range(len(COLUMNS))
    ]
    places = [{text: i for i, text in enumerate(found)} if found else None for found in texts]
    packed = [[known[str(v)] if known else v for v, known in zip(row, places, strict=True)] for row in rows]
    data = json.dumps({"texts": texts, "rows": packed, "shown": SHOWN}, ensure_ascii=True, separators=(",", ":"))
    heads = "".join(
        f'<th scope="col"{" class=number" if place in NUMBERS else ""} title="{html.escape(words)}"><button data-column="{place}">{html.escape(title)}</button></th>'
        for place, (title, words) in enumerate(COLUMNS)
    )
    options = "".join(f"<option>{html.escape(name)}</option>" for name in texts[0] or ())
    part = Path(__file__).parent
    body = f"""<p>Every record behind the published numbers. Click a heading to sort; NLL: lower is better. Intervals are over rows.</p>
<form class="filters"><label>Experiment <select id="experiment"><option value="">all</option>{options}</select></label>
<label>Words <input id="words" type="search" placeholder="radar sst2"></label> <output id="count"></output></form>
<div class="scroll"><table class="many"><thead><tr>{heads}</tr></thead><tbody id="rows"></tbody></table></div>
<p><button id="more">Show more</button></p>
<style>{(part / "records.css").read_text()}</style>
<script type="application/json" id="data">{data.replace("<", chr(92) + "u003c")}</script>
<script>{(part / "records.js").read_text()}</script>"""
    return page.page("Every record", [body])


def _rows(file: Path) -> Iterator[list[Any]]:
    name = file.parent.name.replace("_", "-")
    for record in read_records(file):
        if record["suite"] in ("experiment", "compare"):
            continue  # plans: they hold no result
        metrics = record.get("metrics") or {}
        cell = record.get("cell") or {}
        yield [
            name,
            record["suite"],
            cell.get("label") or record.get("system") or record.get("case", ""),
            record.get("task", ""),
            cell.get("seed", (record.get("options") or {}).get("seed")),
            metrics.get("n"),
            *_score(metrics.get("acc")),
            *_score(metrics.get("nll")),
            "" if record["suite"] == "eval" else "; ".join(_others(metrics)),
            str(record.get("date", ""))[:10],
            str(record.get("commit") or "")[:8],
        ]


def _score(metric: Any) -> list[float | None]:
    if not isinstance(metric, Mapping):
        return [None, None, None]
    return [round(float(metric[key]), 4) if metric.get(key) is not None else None for key in ("value", "low", "high")]


def _others(metrics: Mapping[str, Any]) -> list[str]:
    """Plain numbers, those inside of a metric too."""
    found = []
    for name, value in metrics.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, each in inner:
            if isinstance(each, (int, float)) and not isinstance(each, bool):
                found.append(f"{name} {key} {each:.4g}".replace("  ", " "))
    return found[:OTHER]
