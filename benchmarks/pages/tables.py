"""Markdown tables and the numbers in them."""

from __future__ import annotations

from collections.abc import Sequence


def cell(metric: dict[str, float]) -> str:
    """Value and interval."""
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def delta(d: dict[str, float]) -> str:
    """Signed difference and interval."""
    return f"{d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
