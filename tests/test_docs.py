"""What the pages say is true: numbers come from records, generated parts are up to date, examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fresh
import make_pages
import reference
from radargate.gates import GATES
from radargate.gates.rules import RULES

ROOT = Path(__file__).parents[1]


def test_pages_are_up_to_date():
    """Where this fails: `make pages` writes them anew."""
    made = make_pages.pages()
    for name, text in made.items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, name
    there = {f"docs/results/{file.name}" for file in (ROOT / "docs" / "results").iterdir()}
    assert there == {name for name in made if name.startswith("docs/results/")}


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("One. Two.", "One."),
        ("Goes on\n    over lines, v1.5 included. Source: Eq. 1.", "Goes on over lines, v1.5 included."),
        ("No stop\n\nSecond paragraph.", "No stop"),
    ],
)
def test_the_first_sentence_of_a_docstring(docstring, sentence):
    assert reference.first_sentence(docstring) == sentence


def test_the_readme_is_read_in_three_minutes():
    words = re.sub(r"<!--.*?-->|```.*?```|<img[^>]*>", "", (ROOT / "README.md").read_text(), flags=re.S).split()
    words = [word for word in words if re.search(r"\w", word)]  # bars of tables are none
    assert len(words) <= 700, len(words)


@pytest.mark.real
def test_the_readmes_python_runs_as_it_stands(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert "..." not in re.sub(r"#.*", "", code), "no line is left out"
    result = fresh.run("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() and (tmp_path / "bundle" / "record.json").is_file()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"""(?:\]\(|src=")([^)"#]+)""", (ROOT / page).read_text()):
        made = target.removeprefix("../") in reference.pages()  # of the site alone
        if not target.startswith("http") and not made:
            assert (folder / target).exists(), f"{page} links to {target}"


def test_every_option_of_every_gate_and_rule_is_explained():
    from dataclasses import fields

    from radargate.composition.config import gate_class

    pages = [ROOT / "docs" / "readings.md", *(ROOT / "docs" / "concepts").glob("*.md")]
    text = "".join(page.read_text() for page in pages)
    for name in (*GATES, *RULES):
        for field in fields(gate_class(name).Options):
            assert f"`{field.name}`" in text, f"no page of concepts explains {field.name}"


@pytest.mark.parametrize("example", ["own_gate", "image_classifier", "speech"])
def test_examples_run(example, zoo, tmp_path):
    tiny = zoo["llama"]
    words = [
        str(tiny["base"]),
        *([str(tmp_path / "out")] if example == "trl_sft" else []),
        *map(str, tiny["adapters"].values()),
    ]
    result = fresh.run(ROOT / "examples" / f"{example}.py", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
