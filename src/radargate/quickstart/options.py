"""How much the quickstart does. Imports no torch, so that the command line's help is quick."""

from __future__ import annotations

from dataclasses import dataclass

from radargate.registry import option


@dataclass(frozen=True)
class Quickstart:
    """How much of everything the quickstart does; the defaults take minutes on 2 cores."""

    steps: int = option(60, "training steps of each gate", least=1)
    batch_size: int = 8
    limit: int = option(15, "scoring rows a task", metavar="ROWS", least=1)
    max_new_tokens: int = 16
    seed: int = option(0, "seed of initial values and row order")
