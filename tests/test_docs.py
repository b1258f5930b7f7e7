"""What the pages say is true: numbers come from records, generated parts are up to date, commands and examples run."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

import docs_site
import fresh
import make_pages
import reference
import templates
import test_words
import tutorials
from radargate.cli.entry import build_parser
from radargate.composition.config import gate_class
from radargate.gates import GATES
from radargate.gates.rules import RULES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", *test_words.PAGES]
MOST_WORDS = {"README.md": 700, "docs/results.md": 900, "docs/choosing.md": 400}
# no results: versions, sizes of models, levels of tests, names, and what a command is given
NOT_MEASURED = "|".join((
    r"95 %|p < 0\.05|float64|Q = 0|^## \d\.", r"SmolLM2|270M|135M|Python 3\.10|2505\.23184|Apache-2\.0",
    r"15 minutes|with 100 to choose by a difference of 0\.1", r"^\*Write 7 \+ 18 in German\*|20 prompts|50 rows|of rank 1\b",
))  # fmt: skip
COMMANDS = [shlex.split(line, comments=True) for line in README.split("## Five commands")[1].split("```")[1].splitlines()[1:]]  # fmt: skip


def test_pages_are_up_to_date():
    """Where this fails: `make pages` writes them anew."""
    made = make_pages.pages()
    for name, text in made.items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, name
    there = {f"docs/results/{file.name}" for file in (ROOT / "docs" / "results").iterdir()}
    assert there == {name for name in made if name.startswith("docs/results/")}


@pytest.mark.parametrize("page", MOST_WORDS)
def test_a_page_is_short(page):
    text = re.sub(r"<!--.*?-->|```.*?```|<img[^>]*>|\]\([^)]*\)", "", (ROOT / page).read_text(), flags=re.S)
    words = [word for word in text.split() if re.search(r"\w", word)]  # bars of tables are none
    assert len(words) <= MOST_WORDS[page], len(words)


@pytest.mark.parametrize("page", templates.TARGETS)
def test_every_number_of_a_page_comes_from_a_record(page):
    text = (templates.TEMPLATES / page).read_text(encoding="utf-8")
    for known in (r"\{\{.*?\}\}|\{%.*?%\}", r"```.*?```", r"^    .*$", r"`[^`]*`", r"\]\([^)]*\)", NOT_MEASURED):
        text = re.sub(known, "", text, flags=re.S | re.M if known.startswith(r"\{") or "```" in known else re.M)
    assert not re.findall(r".*\d.*", text), "a number that no record fills"


def test_readme_shows_what_the_quickstart_prints():
    block = re.search(r"```text\n(.*?)```", README, re.S)[1]
    assert re.fullmatch(r"Accuracy.*:\n(  \d\.\d\d  .+\n){5}Report: .+\n", block)


@pytest.mark.real
def test_the_readmes_python_runs_as_it_stands(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert "..." not in re.sub(r"#.*", "", code), "no line is left out"
    result = fresh.run("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() and (tmp_path / "bundle" / "record.json").is_file()


@pytest.fixture(scope="module")
def shell(zoo, tmp_path_factory):
    """A folder where the README's commands find BASE, adapters, rows and a bundle."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "BASE").symlink_to(zoo["llama"]["base"])
    for name, adapter in zoo["llama"]["adapters"].items():
        shutil.copytree(adapter, folder / "adapters" / name)
    rows = [{"prompt": f"{i}+1=", "target": str(i + 1), "task": "sums"} for i in range(60)]
    for name, some in {"rows": rows[:50], "unseen": rows[50:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def typed(words: list[str], folder: Path) -> list[str]:
    """What a shell hands on."""
    assert words[0] == "radargate"
    found = [sorted(map(str, folder.glob(word))) if "*" in word else [word] for word in words[1:]]
    return ["-m", "radargate.cli", *(word for each in found for word in each)]


def test_the_readmes_five_commands_run(shell):
    """Those that take longer are cut short here, and whole with --all."""
    short = {
        "choose": "choose BASE adapters/*/ --example law=a --example math=b --example code=c --out chosen",
        "train": "train BASE adapters/*/ --data rows.jsonl --out trained --steps 2 --batch-size 2",
        "eval": "eval trained --data unseen.jsonl --out scores.jsonl --limit 2 --max-new-tokens 2",
    }
    assert [words[1] for words in COMMANDS] == ["doctor", "choose", "train", "eval", "generate"]
    for words in COMMANDS:
        given = ["radargate", *short[words[1]].split()] if words[1] in short else words
        assert given[: len(words)] == words or words[1] == "choose", "the short form begins as the whole one"
        result = fresh.run(*typed(given, shell), cwd=shell)
        assert result.returncode == 0, f"{words}: {result.stderr}"
        assert result.stdout.strip() or (shell / words[-1]).exists()


@pytest.mark.whole
@pytest.mark.parametrize("words", [words for words in COMMANDS if words[1] in ("choose", "train")], ids=lambda w: w[1])
def test_the_readmes_longer_commands_run_whole(words, shell, tmp_path):
    result = fresh.run(*typed([*words[:-1], str(tmp_path / words[-1])], shell), cwd=shell)
    assert result.returncode == 0, result.stderr


def printed_commands():
    """Page and command of every ``radargate …`` line in a block that a reader would type from."""
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("radargate ") and "…" not in line:
                    words = shlex.split(line, comments=True)
                    yield f"{page}: {' '.join(words)[:60]}", words[1:]


@pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in printed_commands()])
def test_every_printed_command_parses(words):
    typed = list(itertools.takewhile(lambda word: word not in ("|", ">", "&"), words))
    parser = build_parser(typed)
    known = parser.parse_known_args if words[0] in ("run", "vllm") else parser.parse_args  # those hand flags on
    assert known(typed)


@pytest.mark.parametrize("page", [*PAGES, "docs/log.md"])
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    made = {str((ROOT / "docs" / name).resolve()) for name in (*reference.PAGES_BELOW, *docs_site.AT_ROOT.values())}
    for target in re.findall(r"""(?:\]\(|src=")([^)"#\s]+)""", (ROOT / page).read_text()):
        if not re.match(r"[a-z]+:", target):
            there = folder / target
            assert there.exists() or str(there.resolve()) in made, f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace("`pico.py` of Pico", "")
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", text))
    assert {
        name for name in named if not ((ROOT / name).exists() or (ROOT / "src" / "radargate" / name).exists())
    } == set()


def test_every_option_of_every_gate_and_rule_is_explained():
    pages = [ROOT / "docs" / "readings.md", *(ROOT / "docs" / "concepts").glob("*.md")]
    text = "".join(page.read_text() for page in pages)
    for name in (*GATES, *RULES):
        for field in fields(gate_class(name).Options):
            assert f"`{field.name}`" in text, f"neither docs/readings.md nor docs/concepts explains {field.name}"


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


@pytest.mark.parametrize(("page", "script"), tutorials.PAGES.items())
def test_a_tutorial_holds_its_script(page, script):
    """Where this fails: `make tutorials` runs the scripts and writes the pages."""
    text = (ROOT / "docs" / "tutorials" / f"{page}.md").read_text(encoding="utf-8")
    for prose, cell in tutorials.cells(script):
        assert (cell if prose else f"```python\n{cell}\n```") in text
    assert "It prints:" in text


@pytest.mark.parametrize("example", [*tutorials.PAGES.values(), "own_gate", "image_classifier", "speech"])
def test_examples_run(example, zoo, tmp_path):
    tiny = zoo["llama"]
    result = fresh.run(ROOT / "examples" / f"{example}.py", tiny["base"], *tiny["adapters"].values(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.real
@pytest.mark.whole
@pytest.mark.parametrize("script", tutorials.PAGES.values())
def test_a_tutorial_runs_as_it_stands(script, tmp_path):
    result = fresh.run(ROOT / "examples" / f"{script}.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
