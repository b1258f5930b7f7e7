"""Training losses of a comparison's systems, as curves and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from radargate.comparison.results import System
from radargate.report.table import Column, Row, Table, number, text


def curve_rows(system: System) -> list[tuple[float, float]]:
    """Training loss over steps, averaged over the seeds that have the step."""
    by_step: dict[float, list[float]] = {}
    for cell in system.cells:
        for step, loss in cell["metrics"].get("curve") or ():
            by_step.setdefault(step, []).append(loss)
    return [(step, float(np.mean(losses))) for step, losses in sorted(by_step.items())]


def curves_of(systems: Iterable[System]) -> dict[str, list[tuple[float, float]]]:
    """Label → training loss over steps, of the systems that have one."""
    return {system.label: curve for system in systems if (curve := curve_rows(system))}


def curves_table(name: str, caption: str, curves: Sequence[tuple[Row, Sequence[tuple[float, float]]]]) -> Table:
    """Loss at the start, after a quarter, half, three quarters, and at the end; the CSV has every step.

    Args:
        name: of the CSV file.
        caption: of the table.
        curves: what names each, its system last, and the losses.
    """
    rows, marks = [], []
    for names, curve in curves:
        rows += [{**names, "step": step, "loss": loss} for step, loss in curve]
        smooth = smoothed(curve)
        at = [smooth[round(share * (len(smooth) - 1))][1] for share in (0, 0.25, 0.5, 0.75, 1)]
        marks.append({**names, **{f"part{i}": loss for i, loss in enumerate(at)}})
    titles = ("start", "a quarter", "half", "three quarters", "end")
    columns = [
        *(Column(key, text(key)) for key in (curves[0][0] if curves else ("system",))),
        *(Column(title, number(f"part{i}")) for i, title in enumerate(titles)),
    ]
    return Table(name, f"{caption} (smoothed as in the chart; the CSV has every step)", rows, columns, shown=marks)


def smoothed(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A moving mean over a tenth of the steps, centred, narrower at the ends."""
    half = len(curve) // 20
    losses = np.array([loss for _, loss in curve])
    return [(step, float(losses[max(0, i - half) : i + half + 1].mean())) for i, (step, _) in enumerate(curve)]
