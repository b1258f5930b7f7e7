"""What is compared, and how much of everything. Imports no torch, so that the command line's help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field

from radargate.architectures import ARCHITECTURES
from radargate.evaluation.options import Scoring
from radargate.gates import GATES
from radargate.gates.rules import RULES
from radargate.registry import option
from radargate.training.options import DEFAULTS, GateTraining


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how much of everything.

    Attributes:
        gates: names, with options as ``NAME:option=value``, or ``("all",)``.
        rules: the same.
        architectures: names, or ``("all",)``.
        seeds: seeds of everything trained.
        training: of every gate; its gate, architecture and seed are the cells' own.
        scoring: rows and batch.
        union_lr: learning rate of the LoRA trained on the union of all tasks.
        union_steps: its steps; None takes as many rows as the adapters' own training and the gate's read together.
        unturned: score each trained gate that rotates once more with Q = 0.
    """

    gates: tuple[str, ...] = option(("all",), lambda: f"comma-separated, or all: {', '.join(GATES)}", metavar="NAMES")
    rules: tuple[str, ...] = option(
        ("all",),
        lambda: (
            f"comma-separated, or all: {', '.join(RULES)}. NAME:option=value sets an option, for gates also "
            f"{', '.join(DEFAULTS[None])}; separate several systems by spaces then"
        ),
        metavar="NAMES",
    )
    architectures: tuple[str, ...] = option(
        ("mole",), lambda: f"comma-separated, or all: {', '.join(ARCHITECTURES)}", metavar="NAMES"
    )
    seeds: int = option(1, "seeds of everything trained", least=1)
    training: GateTraining = field(default_factory=GateTraining)
    scoring: Scoring = field(default_factory=Scoring)
    union_lr: float = 1e-3
    union_steps: int | None = option(
        None,
        "steps of the LoRA trained on all rows (default: as many rows as the adapters' training, where they say, and the gate's)",
        least=1,
    )
    unturned: bool = False
