"""The README's picture: questions and answers, each token in the colour of the adapter that acts on it.

``python benchmarks/pages/token_picture.py`` traces the shipped adapters anew; `make pages` draws what was traced.
"""

from __future__ import annotations

import html
import sys
from typing import Any

from radargate.io.records import append_records, make_record, read_records
from radargate.report.charts import COLOURS
from sources import RESULTS

FILE = RESULTS / "token_picture" / "records.jsonl"
QUESTIONS = ("Write in words, with the right plural: 7 mouse", "How many metres are 7 kilometres?", "What is 18 + 19?")
EXAMPLES = 20  # training prompts of each task, for `select`
INK = dict.fromkeys(COLOURS[3:6], "#000")  # on light colours
WIDE, LINE, LETTER = 720, 42, 14.4  # of the picture, in its own units


def main() -> int:
    """Trace the questions and store who acted on each token."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.unlink(missing_ok=True)
    append_records(FILE, [make_record("token-trace", question, {}, **traced) for question, traced in trace().items()])
    return 0


def trace() -> dict[str, dict[str, Any]]:
    """Question → its tokens, the adapter of each, and where the answer begins; without the chat template's own tokens."""
    import radargate
    from radargate.data.sources import load_rows

    experts = radargate.shipped_experts()
    rows = {name: load_rows(f"builtin:{name}", "train", limit=EXAMPLES) for name in experts}
    examples = {name: [row.prompt for task in tasks.values() for row in task] for name, tasks in rows.items()}
    model = radargate.compose("smollm2-135m", experts, gate="select", scope="text", examples=examples)
    found = {}
    for question in QUESTIONS:
        seen = radargate.trace(model, question, max_new_tokens=12, leave_one_out=False, pairs=False)
        weights = sum(site.dense_weights() for site in seen.sites())
        acting = [seen.experts[int(each.argmax())] for each in weights]
        text = "".join(seen.tokens[: seen.prompt_length])
        ends = [len("".join(seen.tokens[: i + 1])) for i in range(seen.prompt_length)]
        begin = text.rindex(question)
        kept = [i for i, end in enumerate(ends) if begin < end <= begin + len(question)]
        answer = [i for i in range(seen.prompt_length, len(seen.tokens)) if not seen.tokens[i].startswith("<|")]
        found[question] = {
            "tokens": [seen.tokens[i] for i in (*kept, *answer)],
            "adapters": [acting[i] for i in (*kept, *answer)],
            "answer_at": len(kept),
            "experts": list(seen.experts),
        }
    return found


def picture() -> str:
    """The SVG, from the records."""
    records = read_records(FILE)
    experts = records[0]["experts"]
    colour = dict(zip(experts, COLOURS, strict=False))
    parts, y = [], 12.0
    for record in records:
        x = 10.0
        for place, (token, adapter) in enumerate(zip(record["tokens"], record["adapters"], strict=True)):
            if place == record["answer_at"]:
                parts.append(f'<text x="{x + 14}" y="{y + 24}" fill="#555">→</text>')
                x += 42
            wide = max(len(token), 1) * LETTER
            if x + wide > WIDE - 10:
                x, y = 10.0, y + LINE
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="34" fill="{colour[adapter]}"/>')
            shown = html.escape(token.strip())
            if shown:
                inset = LETTER * (len(token) - len(token.lstrip()))
                parts.append(
                    f'<text x="{x + inset:.1f}" y="{y + 24}" textLength="{len(token.strip()) * LETTER:.1f}" '
                    f'fill="{INK.get(colour[adapter], "#fff")}">{shown}</text>'
                )
            x += wide + 1
        y += LINE + 8
    x = 10.0
    for name in experts:
        parts.append(f'<rect x="{x:.1f}" y="{y + 4}" width="18" height="18" fill="{colour[name]}"/>')
        parts.append(
            f'<text x="{x + 24:.1f}" y="{y + 20}" font-size="18" fill="#333" font-family="system-ui, sans-serif">{name}</text>'
        )
        x += 36 + len(name) * 10.5
    label = "Questions and answers; the colour of each token is the adapter that acts on it"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {y + 34:.0f}" role="img" aria-label="{label}" font-family="ui-monospace, monospace" '
        f'font-size="23"><rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    sys.exit(main())
