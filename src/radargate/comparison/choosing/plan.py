"""How far each system is tried within the time there is: all a little, the better half further, the best to the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from radargate.comparison.cells import Cell
from radargate.errors import OptionError

# training steps of the last round, rows a task to choose by, rows a task to report on; the largest that fits is taken
SIZES = ((480, 200, 300), (240, 100, 150), (240, 40, 60), (120, 25, 40), (60, 15, 30), (30, 10, 20), (16, 6, 12))
OVER = 2  # times the minutes that there are: more than that is not begun
FINALISTS = 4  # at most, scored on the rows that nothing saw


@dataclass(frozen=True)
class Round:
    """One round of successive halving: so many of the trained systems, trained for so many steps."""

    kept: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        rounds: of the systems that are trained.
        validation: rows a task that systems are chosen by.
        test: rows a task that the last ones are scored on.
        left_out: labels of systems that the time does not allow to train.
        seconds: predicted for all of it.
    """

    rounds: tuple[Round, ...]
    validation: int
    test: int
    left_out: tuple[str, ...]
    seconds: float

    def record(self) -> dict[str, Any]:
        """For the folder's records."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Plan:
        """The plan that a folder's run began with."""
        rounds = tuple(Round(**each) for each in record["rounds"])
        return cls(**{**record, "rounds": rounds, "left_out": tuple(record["left_out"])})


def rounds_of(trained: int, steps: int) -> tuple[Round, ...]:
    """All for a quarter of the steps, the better half for half of them, the better half of these for all."""
    if not trained:
        return ()
    half = math.ceil(trained / 2)
    found = (Round(trained, steps // 4), Round(half, steps // 2), Round(math.ceil(half / 2), steps))
    return tuple({one.kept: one for one in found}.values())  # of rounds that drop nobody the last


def plan_for(
    cells: Sequence[Cell], seconds: float, cost: Callable[[Cell, int, int], float], row: Callable[[int], float]
) -> Plan:
    """The largest plan that fits; where none does the smallest, without the dearest of the trained systems.

    Args:
        cells: all systems, the simplest first.
        seconds: that there are.
        cost: predicted seconds of one cell, from its training steps and the rows a task it is scored on.
        row: predicted seconds of scoring a system on so many test rows a task.

    Raises:
        OptionError: even the smallest plan takes far longer.
    """
    plain, trained = [c for c in cells if not c.trained], [c for c in cells if c.trained]
    for kept in range(len(trained), -1, -1):
        some = trained[:kept]
        for steps, validation, test in SIZES if kept == len(trained) else SIZES[-1:]:
            rounds = rounds_of(kept, steps)
            whole = sum(cost(cell, 0, validation) for cell in plain) + FINALISTS * row(test)
            # who goes on is not known: the mean stands for each
            whole += sum(r.kept / kept * sum(cost(c, r.steps, validation) for c in some) for r in rounds)
            plan = Plan(rounds, validation, test, tuple(cell.label for cell in trained[kept:]), whole)
            if whole <= seconds:
                return plan
    if plan.seconds > OVER * seconds:
        raise OptionError(
            f"{len(plain)} systems that are not trained, on the fewest rows, are predicted to take {plan.seconds / 60:.0f} minutes, and `minutes` "
            f"is {seconds / 60:g}. Give more `minutes`, or fewer adapters or tasks."
        )
    return plan
