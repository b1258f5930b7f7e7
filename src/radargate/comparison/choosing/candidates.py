"""What can win on given adapters, the simplest first: base, each adapter, rules, gates, one LoRA on all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from radargate.comparison.cells import UNION, Cell, all_cells
from radargate.comparison.choosing.options import Choosing
from radargate.composition.config import gate_class

RULES = ("uniform", "select", "select:by=centroid")
_ROUTED = "router=prompt,router_start=select"
GATES = ("cat", "stretch", f"stretch:{_ROUTED}", "radar", f"radar:{_ROUTED}")
ONE_LORA_RULES, ONE_LORA_GATES = ("uniform", "ties", "dare", "knots", "tsv", "iso"), ("cat",)


def candidates(adapters: Sequence[str], options: Choosing, examples: Mapping[str, Any]) -> list[Cell]:
    """The systems that are tried, the simplest first; of two that are level the earlier is taken.

    Args:
        adapters: their names.
        options: what may be chosen.
        examples: prompts of each adapter; none where the user gave none.

    Raises:
        OptionError: one adapter only.
    """
    one = options.serve_as_one_lora
    cells, _ = all_cells(
        adapters,
        gates=ONE_LORA_GATES if one else GATES,
        rules=ONE_LORA_RULES if one else RULES,
        architectures=("mole",),
        seeds=1,
        union_steps=1 if options.union else None,
    )
    order = [
        *(cell for cell in cells if cell.kind == "base"),
        *(cell for cell in cells if cell.kind == "expert"),
        *(cell for cell in cells if cell.system == UNION),
        *(cell for cell in cells if cell.kind == "rule" and cell.system != UNION),
        *(cell for cell in cells if cell.kind == "gate"),
    ]
    return [replace(_given(cell, examples), label=cell.label.removesuffix(" (mole)")) for cell in order]


def at_steps(cell: Cell, steps: int) -> Cell:
    """A cell as it is trained for so many steps: the LoRA on all rows has them among its options."""
    return replace(cell, options={"steps": steps}) if cell.system == UNION else cell


def _given(cell: Cell, examples: Mapping[str, Any]) -> Cell:
    """A cell with the user's example prompts, where it asks for some."""
    if cell.kind in ("base", "expert") or cell.system == UNION or not examples:
        return cell
    own = dict(cell.options)
    return (
        replace(cell, options={**own, "examples": dict(examples)})
        if gate_class(cell.system).reads_own_rows(own)
        else cell
    )
