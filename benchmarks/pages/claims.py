"""The figures of docs/results.md: each claim's systems, or its differences over experiments."""

from __future__ import annotations

from collections.abc import Sequence

from experiment_pages import drawn, interval_chart
from radargate.report import charts
from sources import Source

STARTED = "stretch router=prompt router_start=select"
ROUTED = ("oracle", "union LoRA on all rows", STARTED, "select", "radar", "stretch", "uniform", "base")
CUT = ("oracle", "select", STARTED, "radar router=prompt router_start=select", "radar", "stretch", "uniform")
CONTROLS = ("lora", "multiplicative", "signed", "vector", "mlp")
ROTATION = (
    "learnable",
    "routed",
    "ablation",
    "forms",
    "samples",
    "modules",
    "crowded",
    "generalization",
    "three-seeds",
)


def figures(found: dict[str, Source]) -> dict[str, str]:
    """File, below docs → SVG."""
    rivals, wide = found["routed-rivals"], found["generalization"]
    made = {
        "select": interval_chart(
            rivals, "acc", "Accuracy of single choices and of mixtures on five routed tasks", ROUTED
        ),
        "cut": interval_chart(found["routed-cut"], "nll", "NLL where no prompt says which task it belongs to", CUT),
        "rotation": _differences(
            [(name, found[name], "radar", "stretch") for name in ROTATION],
            "NLL of radar − NLL of stretch, nats a token",
            "What rotation adds to stretch in each experiment",
        ),
        "controls": _differences(
            [
                (f"{name}: {control}", found[name], "radar", control)
                for name in ("ablation", "forms", "modules")
                for control in CONTROLS
                if found[name].label(control) in found[name].results.systems
            ],
            "NLL of radar − NLL of the control, nats a token",
            "Radar against controls that do not rotate",
        ),
        "union": _differences(
            [
                (drawn(name), rivals, name, "select")
                for name in (
                    "union LoRA on all rows",
                    STARTED,
                    "radar",
                    "stretch",
                )
            ],
            "accuracy − accuracy of select",
            "How far each system is from select",
            "acc",
        ),
        "benchmarks": interval_chart(wide, "acc", "Accuracy on benchmarks that nothing was trained on", ()),
    }
    return {f"results/claim-{name}.svg": svg for name, svg in made.items()}


def _differences(rows: Sequence[tuple[str, Source, str, str]], unit: str, description: str, metric: str = "nll") -> str:
    """A line a comparison: difference and interval; coloured where it is significant over rows (Holm over the lines)."""
    from radargate.evaluation.resampling import holm

    tests = [source.test(first, second, metric) for _, source, first, second in rows]
    shown = [
        (name, {"value": t.difference, "low": t.low, "high": t.high}) for (name, *_), t in zip(rows, tests, strict=True)
    ]
    sure = [name for (name, _), p in zip(shown, holm([t.p for t in tests]), strict=True) if p < 0.05]
    return charts.intervals(shown, unit, description, sure or ["none"], zero=True)
