"""What mkdocs is told beside mkdocs.yml: pages made from the code and from files at the root, and links that leave the docs."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "benchmarks")]

import reference

AT_ROOT = {"README.md": "index.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}
EXPERIMENTS = "Experiments"  # the heading of the navigation that lists one page each
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """List every experiment's page where mkdocs.yml has only a heading."""
    for entry in config.nav:
        for part in next(iter(entry.values())) if isinstance(next(iter(entry.values())), list) else ():
            if isinstance(part, dict) and EXPERIMENTS in part:
                part[EXPERIMENTS] += [f"results/{file.name}" for file in sorted((ROOT / "docs" / "results").glob("*.md"))]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not files below docs."""
    made = {name: (ROOT / file).read_text(encoding="utf-8") for file, name in AT_ROOT.items()} | reference.pages()
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links lead to pages of the site; those to other files of the repository become plain words."""
    here = page.file.src_uri
    at_root = next((file for file, name in AT_ROOT.items() if name == here), None)
    folder = "" if at_root else posixpath.dirname(f"docs/{here}")
    return _LINK.sub(lambda found: _led(found, folder, here), markdown)


def _led(found: re.Match[str], folder: str, here: str) -> str:
    picture, words, target, part = found.groups()
    if re.match(r"[a-z]+:", target):
        return found[0]
    path = posixpath.normpath(posixpath.join(folder, target))
    name = AT_ROOT.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if name is None:
        return words
    link = posixpath.relpath(name, posixpath.dirname(here) or ".")
    return f"{picture}[{words}]({link}{part or ''})"
