"""How rows become batches. Imports no torch, so that the command line's help is quick."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from radargate.registry import option


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How many rows are read at a time, and how long they may be."""

    batch_size: int = option(8, "rows a step", least=1)
    max_length: int = option(512, "rows longer than this are dropped whole and counted", metavar="TOKENS", least=1)

    def batching(self) -> dict[str, Any]:
        """These options by name, for other options that have them too."""
        return {field.name: getattr(self, field.name) for field in fields(Batching)}

    def within(self, positions: int | None) -> Batching:
        """The same, for a model that reads so many tokens at most."""
        return self if positions is None else replace(self, max_length=min(self.max_length, positions))

    def fits(self, tokens: int) -> bool:
        """Whether a row of so many tokens is kept."""
        return tokens <= self.max_length

    @property
    def too_long(self) -> str:
        """What is said of rows that are dropped."""
        return f"longer than `max_length` {self.max_length} tokens"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and tokens of the longest row, of the largest batch there can be."""
        return self.batch_size, self.max_length

    @property
    def lower(self) -> str:
        """What to lower where memory runs out."""
        return f"`batch_size` (now {self.batch_size}) or `max_length` (now {self.max_length})"
