"""Make every page that holds numbers, and its pictures, from records: `make pages`."""

from __future__ import annotations

import sys

import adapters_page
import claims
import experiment_pages
import records_page
import scale_page
import speed_tables
import templates
import token_picture
from radargate.io.records import read_records
from radargate.paper.skills.page import report_of
from sources import RESULTS, ROOT, sources


def main() -> int:
    """Write the pages; what is no longer made is removed."""
    made = pages()
    for stale in set((ROOT / "docs" / "results").glob("*")) - {ROOT / name for name in made}:
        stale.unlink()
    for name, text in made.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(text, encoding="utf-8")
    return 0


def pages() -> dict[str, str]:
    """File, below the repository → its text, from records and templates."""
    found = sources()
    docs = {
        "adapters.md": adapters_page.page(),
        "scale.md": scale_page.page(),
        "speed.md": speed_tables.page(),
        "results/records.html": records_page.records_page(),
        "tokens.svg": token_picture.picture(),
        **speed_tables.pictures(),
        **experiment_pages.pages(found),
        **claims.figures(found),
        **_skills(),
    }
    return {f"docs/{name}": text for name, text in docs.items()} | templates.filled(found)


def _skills() -> dict[str, str]:
    """The report of the experiment on composed skills, as the command writes it."""
    file = RESULTS / "skills" / "records.jsonl"
    return {"results/skills.md": report_of(read_records(file))[0]} if file.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
