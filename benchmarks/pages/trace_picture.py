"""The README's picture: tokens of a text, coloured by the adapter that adds most at each.

`python benchmarks/pages/trace_picture.py` traces the text and writes the record; `make pages` draws from the record.
"""

from __future__ import annotations

import html
from typing import Any

from radargate.io.records import append_records, make_record, read_records
from sources import RESULTS

RECORD = RESULTS / "trace" / "records.jsonl"
TEXTS = (
    "How many metres are 3 kilometres?",
    "Translate into German: May 12",
    "What is 47 + 9? Write the answer in words.",
    "Today is Friday. Which day is it in 18 days?",
    "How many grams are 5 kilograms? And translate into Italian: March 3",
)
OPTIONS = {"gate": "stretch", "router": "text", "router_start": "select"}
PROMPTS = 20  # of each adapter's own training rows, which say to the router what the adapter is for
# Okabe and Ito's colours; letters are black on all of them, in light pages and in dark ones
COLOURS = ("#56B4E9", "#E69F00", "#CC79A7", "#3FBF93", "#F0E442")
LETTER, LINE, LEFT, GAP = 9.6, 40, 8, 2  # pixels: a letter's width, a line's height


def main() -> None:
    """Compose, trace every text, and replace the record."""
    import torch

    import radargate
    from radargate.data.sources import load_rows

    adapters = radargate.shipped_experts()
    examples = {}
    for name in adapters:
        tasks = load_rows(f"builtin:{name}", split="train").values()
        examples[name] = [row.prompt for rows in tasks for row in rows[: PROMPTS // len(tasks)]]
    model = radargate.compose("smollm2-135m", adapters, examples=examples, dtype=torch.float32, **OPTIONS)
    lines = []
    for text in TEXTS:
        trace = radargate.trace(model, text, chat=False, pairs=False, leave_one_out=False)
        added = torch.zeros(len(trace.tokens), len(trace.experts))
        for site in map(trace.site, trace.site_names):
            sizes = site.contributions.float() / site.base[:, None].float()  # beside the layer's own output
            added.scatter_add_(1, site.indices.long(), sizes)
        share = added / added.sum(-1, keepdim=True)
        lines.append({"tokens": trace.tokens, "shares": [[round(v, 3) for v in row] for row in share.tolist()]})
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.unlink(missing_ok=True)
    facts = {"experts": list(adapters), "options": OPTIONS, "prompts": PROMPTS, "lines": lines}
    append_records(RECORD, [make_record("trace", "README", {"tokens": sum(len(x["tokens"]) for x in lines)}, **facts)])


def picture() -> str:
    """The SVG: a line a text, each token on its adapter's colour, the stronger the more that adapter adds."""
    record = read_records(RECORD)[-1]
    names, lines = record["experts"], record["lines"]
    used = sorted({_first(shares) for line in lines for shares in line["shares"]})
    width = max([2 * LEFT + _width("".join(line["tokens"])) + GAP * len(line["tokens"]) for line in lines] + [560])
    parts, top = [], 10.0
    for line in lines:
        left = float(LEFT)
        for token, shares in zip(line["tokens"], line["shares"], strict=True):
            best = _first(shares)
            title = ", ".join(
                f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True) if share >= 0.005
            )
            parts.append(_box(left, top, token, COLOURS[best], 0.35 + 0.65 * shares[best], title))
            left += _width(token) + GAP
        top += LINE
    left = float(LEFT)
    for index in used:
        parts.append(_box(left, top + 4, f" {names[index]} ", COLOURS[index], 1, names[index]))
        left += _width(names[index]) + 2 * LETTER + 10
    about = "Each token of five prompts on the colour of the adapter that adds most to the layers' outputs there"
    style = "font: 16px ui-monospace, monospace; white-space: pre"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{about}" viewBox="0 0 {width:.0f} {top + LINE:.0f}" '
        f'width="{width:.0f}" style="{style}">\n<title>{about}</title>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _box(left: float, top: float, text: str, colour: str, strength: float, title: str) -> str:
    # white below the colour, so that black letters can be read on a dark page too
    where = f'x="{left:.1f}" y="{top:.1f}" width="{_width(text):.1f}" height="26" rx="3"'
    return (
        f'<g><title>{html.escape(title)}</title><rect {where} fill="#fff"/><rect {where} fill="{colour}" fill-opacity="{strength:.2f}"/>'
        f'<text x="{left:.1f}" y="{top + 18:.1f}" textLength="{_width(text):.1f}" xml:space="preserve">{html.escape(text)}</text></g>'
    )


def _width(text: str) -> float:
    return LETTER * len(text)


def _first(shares: list[Any]) -> int:
    return max(range(len(shares)), key=shares.__getitem__)


if __name__ == "__main__":
    main()
