"""Plain words: the field's terms, and sentences that can be read, in README, docs, help and messages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import reference

ROOT = Path(__file__).parents[1]
# ours, where the field has a word of its own
OLD = {
    r"told apart": "significant",
    r"(?<!learning )(?<!win )(?<!sampling )(?<!tokenization )\brates?\b": "learning rate",
    r"gate numbers|numbers to train|as many numbers|times the numbers": "parameters",
    r"literal form": "reference implementation",
    r"\banew\b": "again",
    r"\bis said\b|are said\b": "is logged, is reported",
    r"\berrands?\b": "task",
    r"\bown expert must be told\b": "oracle",
    r"printed form": "the paper's form",
    r"rotation rate": "learning rate of the rotation",
    r"tasks that count": "tasks where an expert helps",
    r"learned tasks": "training tasks",
    r"\bturned by\b|\bturning\b": "rotated, rotation",
}
HAND_WRITTEN = ("README.md", "docs/results.md", "docs/choosing.md")
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if page.name != "log.md" and "templates" not in page.parts
)


def prose(text: str) -> str:
    """Without code, links' targets and quoted names."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"^    .*$", "", text, flags=re.M)
    return re.sub(r"\]\([^)]*\)|`[^`\n]*`", "", text)


def old_words(text: str) -> list[str]:
    flat = re.sub(r"\s+", " ", text.lower())
    return [f"{found[0]!r}: {better}" for old, better in OLD.items() for found in re.finditer(old, flat)]


@pytest.mark.parametrize("page", PAGES)
def test_pages_speak_the_fields_words(page):
    assert old_words(prose((ROOT / page).read_text(encoding="utf-8"))) == []


def test_help_speaks_the_fields_words():
    assert old_words(reference.commands()) == []


def test_messages_speak_the_fields_words():
    found = {}
    for file in (ROOT / "src" / "radargate").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        said = [node for node in ast.walk(tree) if isinstance(node, (ast.Raise, ast.Call)) and _speaks(node)]
        texts = {
            n.value for call in said for n in ast.walk(call) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        }
        if words := [word for text in texts for word in old_words(prose(text))]:
            found[file.name] = words
    assert found == {}


def _speaks(node: ast.AST) -> bool:
    """Whether it raises, logs or prints."""
    if isinstance(node, ast.Raise):
        return True
    name = ast.unparse(node.func)  # type: ignore[attr-defined]
    return name == "print" or name.startswith("logger.")


@pytest.mark.parametrize("page", HAND_WRITTEN)
def test_sentences_are_short(page):
    text = prose((ROOT / page).read_text(encoding="utf-8"))
    text = re.sub(r"^(\||#|!\[|\*n = ).*$", "", text, flags=re.M)  # tables, headings, pictures, what stands under them
    text = re.sub(r"^Each experiment has its page.*$", "", text, flags=re.M)
    sentences = [part for part in re.split(r"[.:;?!](?:\*\*)?\s|\n\n|\n- ", text) if re.search(r"\w", part)]
    lengths = [len(re.findall(r"\w[\w'.-]*", part)) for part in sentences]
    assert sum(lengths) / len(lengths) <= 25, sum(lengths) / len(lengths)
