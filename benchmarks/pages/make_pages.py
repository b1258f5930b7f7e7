"""Make every page that holds numbers, and its pictures, from records: `make pages`."""

from __future__ import annotations

import sys

import adapters_page
import claims
import experiment_pages
import records_page
import scale_page
import skills_page
import speed_tables
import templates
import trace_picture
from radargate.io.records import read_records
from radargate.paper.skills.page import report_of
from sources import ROOT, sources


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
        "skills.md": skills_page.page(),
        "speed.md": speed_tables.page(),
        "trace.svg": trace_picture.picture(),
        "results/select-of-forty.md": experiment_pages.forty(),
        "results/records.html": records_page.records_page(),
        **speed_tables.pictures(),
        **experiment_pages.pages(found),
        **claims.figures(found),
        **_skills(),
    }
    return {f"docs/{name}": text for name, text in docs.items()} | templates.filled(found)


def _skills() -> dict[str, str]:
    """The report of the experiment on composed skills, as the command writes it, and its figure."""
    report = report_of(read_records(skills_page.RECORDS))[0]
    return {"results/skills.md": report, "results/claim-skills.svg": skills_page.chart()}


if __name__ == "__main__":
    sys.exit(main())
