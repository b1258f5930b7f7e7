"""How rows are scored. Imports no torch, so that the command line's help is quick."""

from __future__ import annotations

from dataclasses import dataclass

from radargate.registry import option


@dataclass(frozen=True)
class Scoring:
    """How rows are scored."""

    split: str = option("test", "rows to score", choices=("train", "validation", "test"))
    limit: int | None = option(None, "scored rows a task, the first ones (default all)", metavar="ROWS", least=1)
    batch_size: int = option(16, "rows a batch", least=1)
    max_new_tokens: int = option(
        32,
        "tokens of a free answer (default 32; lm-eval tasks: each task's own; with the paper preset 512)",
        metavar="N",
        least=1,
    )
    seed: int = 0
