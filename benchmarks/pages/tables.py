"""Numbers in Markdown tables."""

from __future__ import annotations

from radargate.report.table import markdown

__all__ = ["cell", "delta", "markdown"]


def cell(metric: dict[str, float]) -> str:
    """Value and interval."""
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def delta(d: dict[str, float]) -> str:
    """Signed difference and interval."""
    return f"{d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
