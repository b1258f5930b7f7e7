"""How experts and gates are trained: each option once. Imports no torch, so that the command line's help is quick."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radargate.architectures import ARCHITECTURES
from radargate.data.options import Batching
from radargate.errors import OptionError
from radargate.gates import GATES
from radargate.gates.rules import RULES
from radargate.registry import option

# rates for the printed form are the paper's own (Sec. 5.2); the others come from validation rows of well-trained experts,
# dense start from a study of real sites (docs/log.md)
DEFAULTS: dict[str | None, dict[str, float]] = {
    None: {"lr": 5e-3, "rotation_lr": 5e-3, "dense_start": 0.5},
    "paper": {"lr": 1e-4, "rotation_lr": 1e-4, "dense_start": 0.0},
}
# what leads on our records (docs/log.md): stretch, and a router of whole prompts that starts as rule `select` does
AUTO, ROUTED = "auto", {"router": "prompt", "router_start": "select"}


@dataclass(frozen=True, kw_only=True)
class Training(Batching):
    """What every training has."""

    steps: int = option(100, "optimizer steps", least=1)
    lr: float | None = option(None, "learning rate", above=0)
    seed: int = option(0, "seed of initial values and row order")

    def common(self) -> dict[str, Any]:
        """The options that every training has, and their values here."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Training)}


@dataclass(frozen=True)
class ExpertOptions(Training):
    """How experts are trained."""

    lr: float = option(1e-3, "learning rate", above=0)
    rank: int = option(8, "LoRA rank", least=1)
    alpha: int = option(32, "LoRA alpha", least=1)
    dropout: float = option(0.0, "LoRA dropout")
    rslora: bool = option(False, "scale by alpha / sqrt(rank) instead of alpha / rank")
    target_modules: tuple[str, ...] | None = option(
        None,
        "comma-separated module names, or all-linear (default: PEFT's choice for the model)",
        metavar="NAMES",
    )
    save_dtype: str = option("float32", "of the saved adapters", choices=("float32", "bfloat16", "float16"))


@dataclass(frozen=True)
class GateTraining(Training):
    """How gates are trained. None takes the preset's value."""

    architecture: str = option("mole", lambda: f"one of {', '.join(ARCHITECTURES)}", metavar="NAME")
    architecture_options: dict[str, Any] = option(
        {},
        "an option of the architecture, such as convert=true (may be repeated)",
        flag="architecture-option",
        example="convert=true",
    )
    gate: str = option(
        AUTO,
        lambda: (
            f"one of {', '.join([*GATES, *RULES])} (default: stretch with {' and '.join(f'{k}={v}' for k, v in ROUTED.items())}; "
            "with `preset` paper radar)"
        ),
        metavar="NAME",
    )
    top_k: int | None = option(2, "experts kept per token", least=1)
    preset: str | None = option(
        None,
        "the gate as the paper prints it: unscaled relation, top-1 renormalised too, no dense start, one learning rate of 1e-4",
        choices=("paper",),
    )
    gate_options: dict[str, Any] = option(
        {}, "an option of the gate, such as rotation_rank=4 (may be repeated)", flag="option"
    )
    steps: int = option(120, "optimizer steps", least=1)
    lr: float | None = option(None, "learning rate of the weights' parameters (default 5e-3)", above=0)
    rotation_lr: float | None = option(
        None,
        "learning rate of the rotation parameters (default 5e-3; `preset` paper needs a much higher one)",
        above=0,
    )
    dense_start: float | None = option(
        None, "share of the steps with all experts before the cut to top-k (default 0.5)", metavar="SHARE"
    )
    head: str | None = option(
        None, "expert whose trained head (modules_to_save) is kept, where adapters bring different ones", metavar="NAME"
    )
    save_every: int = option(20, "steps between checkpoints", least=1)

    def resolved(self) -> GateTraining:
        """The same with the gate and the preset's values filled in.

        Raises:
            OptionError: ``dense_start`` is no share of the steps.
        """
        defaults = DEFAULTS.get(self.preset, DEFAULTS[None])
        filled: dict[str, Any] = {key: value for key, value in defaults.items() if getattr(self, key) is None}
        if self.gate == AUTO and self.preset == "paper":
            filled["gate"] = "radar"
        elif self.gate == AUTO:
            filled |= {"gate": "stretch", "gate_options": {**ROUTED, **self.gate_options}}
        resolved = dataclasses.replace(self, **filled)
        check_share(resolved.dense_start)
        return resolved

    def shared(self) -> dict[str, Any]:
        """What all cells of a comparison have in common; cell ids hash it, so keys and values stay as they are."""
        own = ("architecture", "gate", "seed", "gate_options")
        shared = {key: value for key, value in dataclasses.asdict(self).items() if key not in own}
        return shared if self.head else {key: value for key, value in shared.items() if key != "head"}

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of weights and of rotations, once `resolved`."""
        assert self.lr is not None and self.rotation_lr is not None
        return self.lr, self.rotation_lr


def check_share(dense_start: float | None) -> None:
    """Raise `OptionError` where a dense start is no share of the steps."""
    if dense_start is None or not 0.0 <= dense_start <= 1.0:
        raise OptionError(f"dense_start is {dense_start}, expected a share of the steps from 0 to 1.")


def one_rate(lr: float) -> dict[str, float]:
    """The options that train all of a gate at one learning rate."""
    return {"lr": lr, "rotation_lr": lr}


def rates_in_words(options: Mapping[str, Any]) -> str:
    """The learning rates among a record's options."""
    return f"{options['lr']:g} (rotation {options['rotation_lr']:g})"
