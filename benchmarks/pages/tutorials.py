"""docs/tutorials from examples: each script is run, and what it prints stands below the code: `make tutorials`."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {"first": "first_composition", "trainer": "trainer_and_trl", "explore": "explore_and_serve"}


def main() -> int:
    """Run every script, or those named, in a folder of its own, and write its page."""
    for page, script in PAGES.items():
        if not sys.argv[1:] or page in sys.argv[1:]:
            (ROOT / "docs" / "tutorials" / f"{page}.md").write_text(_run(script), encoding="utf-8")
    return 0


def cells(script: str) -> Iterator[tuple[bool, str]]:
    """Whether it is prose, and the text, of every cell (``# %%``) of a script."""
    source = (ROOT / "examples" / f"{script}.py").read_text(encoding="utf-8")
    for kind, text in re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", source, re.S | re.M):
        yield bool(kind), re.sub(r"^# ?", "", text, flags=re.M).strip() if kind else text.strip()


def _run(script: str) -> str:
    """The page: prose, code, and what the code printed."""
    parts, names = [], {"__name__": "__main__"}
    here, words, sys.argv = Path.cwd(), sys.argv, [script]
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        try:
            for prose, text in cells(script):
                parts.append(text if prose else f"```python\n{text}\n```")
                printed = io.StringIO()
                if not prose:
                    with contextlib.redirect_stdout(printed):
                        exec(compile(text, script, "exec"), names)
                if printed.getvalue():
                    parts.append(f"It prints:\n\n```text\n{printed.getvalue().rstrip()}\n```")
        finally:
            os.chdir(here)
            sys.argv = words
    parts.append(f"The whole script: [examples/{script}.py](../../examples/{script}.py). This page was made by running it (`make tutorials`).")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
