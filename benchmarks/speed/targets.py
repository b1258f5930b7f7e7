"""What the speed work set out to reach, and what stored records say of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure that was set as a goal.

    Attributes:
        text: what is compared.
        bound: the goal on the CPU, two cores, float32.
        at_least: True where more is better.
        found: median over rounds, None where no record has it.
        low: lower quartile over rounds.
        high: upper quartile.
    """

    text: str
    bound: float
    at_least: bool
    found: float | None
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where nothing was measured."""
        if self.found is None:
            return None
        return self.found >= self.bound if self.at_least else self.found <= self.bound


def figures(records: Iterable[Record]) -> list[Figure]:
    """Every goal beside what the newest records of the benchmarks say."""
    records = list(records)
    found: list[Figure] = []
    for n, bound in ((8, 8.0), (40, 20.0)):
        step = _last(records, "bench-ops", experts=n, width=2048, top_k=2, **{"pass": "step"}, least_tokens=1024)
        text = f"update forward + backward, reference implementation / ours, d = 2048, k = 2, n = {n}"
        found.append(_figure(text, bound, True, step, "literal_over_ours"))
    step = _last(records, "bench-ops", experts=40, width=2048, top_k=2, **{"pass": "step"}, least_tokens=1024)
    saved = step and step["metrics"]["saved_bytes"]
    share = saved["literal"] / saved["ours"] if saved else None
    found.append(Figure("memory a site keeps for the backward pass, reference / ours, n = 40", 20.0, True, share))
    for n, fused, eager in ((8, 1.8, 2.0), (40, 1.5, 4.0)):
        record = _last(records, "bench-step", experts=n)
        found.append(
            _figure(f"training step / one PEFT LoRA, n = {n}, compiled", fused, False, record, "times_lora", "radar")
        )
        text = f"training step / one PEFT LoRA, n = {n}, PyTorch alone"
        found.append(_figure(text, eager, False, record, "times_lora", "radar, PyTorch alone"))
    for n, bound in ((8, 1.5), (40, 3.0)):
        record = _last(records, "bench-step", experts=n)
        found.append(_figure(f"training step, PEFT X-LoRA / ours, n = {n}", bound, True, record, "over_radar", "xlora"))
    for n, fused, eager in ((8, 1.5, 1.8), (40, 1.25, 4.0)):
        record = _last(records, "bench-decode", experts=n, prompts=1)
        found.append(
            _figure(f"decode / one PEFT LoRA, batch 1, n = {n}, compiled", fused, False, record, "times_lora", "radar")
        )
        text = f"decode / one PEFT LoRA, batch 1, n = {n}, PyTorch alone"
        found.append(_figure(text, eager, False, record, "times_lora", "radar, PyTorch alone"))
    growth = _last(records, "bench-growth", route="merged")
    text = "one site with its base product, forward + backward, n = 320 / n = 5, merged route"
    found.append(_figure(text, 2.5, False, growth, "over_5", "320"))
    served = _last(records, "bench-serve", experts=8, clients=16)
    found.append(_figure("radar bundle / base, 16 requests at once", 0.6, True, served, "bundle_over_base"))
    return found


def table(found: Iterable[Figure]) -> str:
    """The goals as lines of text, those without a record left out."""
    lines = []
    for figure in found:
        if figure.found is None:
            continue
        goal = f"{'>=' if figure.at_least else '<='} {figure.bound:g}"
        spread = "" if figure.low is None else f" [{figure.low:.2f}, {figure.high:.2f}]"
        lines.append(
            f"{'reached' if figure.met else 'MISSED':8}{figure.found:8.2f}{spread:18} goal {goal:8} {figure.text}"
        )
    return "\n".join(lines)


def _figure(text: str, bound: float, at_least: bool, record: Record | None, *path: str) -> Figure:
    value: Any = record["metrics"] if record else None
    for part in path:
        value = value.get(part) if value else None
    if not value:
        return Figure(text, bound, at_least, None)
    return Figure(text, bound, at_least, value["value"], value["low"], value["high"])


def _last(records: list[Record], suite: str, least_tokens: int = 0, **facts: Any) -> Record | None:
    found = [
        r
        for r in records
        if r["suite"] == suite
        and all(r.get(k) == v for k, v in facts.items())
        and r.get("tokens", 0) >= least_tokens
        and r.get("device", "cpu") == "cpu"
    ]
    return found[-1] if found else None
