"""What the pages say is true: numbers come from records, generated parts are up to date, examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import results_table

ROOT = Path(__file__).parents[1]


def test_the_results_page_and_the_readmes_table_are_what_the_records_give():
    assert (ROOT / "docs" / "results.md").read_text() == results_table.page()
    assert results_table.quickstart_block() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert (folder / target).exists(), f"{page} links to {target}"


def test_every_option_of_every_gate_and_rule_is_in_the_method_page():
    from dataclasses import fields

    from radargate.config import gate_class
    from radargate.gates import GATES
    from radargate.rules import RULES

    text = (ROOT / "docs" / "method.md").read_text()
    for name in (*GATES, *RULES):
        for field in fields(gate_class(name).Options):
            assert f"`{field.name}`" in text, f"docs/method.md does not explain {field.name}"


@pytest.mark.parametrize("example", ["own_adapters", "trl_sft", "own_gate"])
def test_examples_run(example, zoo, tmp_path):
    tiny = zoo["llama"]
    words = [
        str(tiny["base"]),
        *([str(tmp_path / "out")] if example == "trl_sft" else []),
        *map(str, tiny["adapters"].values()),
    ]
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{example}.py", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
