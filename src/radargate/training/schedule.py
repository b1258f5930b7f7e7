"""Two lines for a user's own Trainer: dense start as a callback, and parameter groups with two learning rates."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from radargate.gates.base import Gate
from radargate.training.options import check_share


class DenseStart(TrainerCallback):
    """Train with every expert for the first part of the steps, then cut to top-k.

    Routing that starts sparse trains badly and erratically; see ``docs/log.md``. Whether a step is dense
    depends on its number only, so a resumed run does the same.

    Args:
        fraction: share of the optimizer steps that are dense, 0 to 1.

    Raises:
        OptionError: ``fraction`` is outside 0 to 1.
    """

    def __init__(self, fraction: float = 0.5) -> None:
        check_share(fraction)
        self.fraction = fraction

    def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Choose dense or top-k for this step."""
        set_dense(model, state.global_step < self.fraction * state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Leave the model with top-k, as it will be used."""
        set_dense(model, False)


def set_dense(model: nn.Module | None, dense: bool) -> None:
    """Let every gate use all experts (True) or its top-k (False)."""
    from radargate.composition.layer import RadarLayer

    for module in model.modules() if model is not None else ():
        if isinstance(module, RadarLayer):
            module.dense = dense


def parameter_groups(model: nn.Module, lr: float, rotation_lr: float | None = None) -> list[dict[str, Any]]:
    """Split gate parameters into softmax and rotation groups, as each gate sorts its own, with a learning rate each.

    Args:
        model: a composed model.
        lr: learning rate of everything that decides weights.
        rotation_lr: learning rate of everything else in a gate, such as what decides angles; None means ``lr``.

    Returns:
        Parameter groups for any torch optimizer; empty groups are left out.
    """
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    turning = {id(parameter) for gate in gates for parameter in gate.parameter_groups()["rotation"]}
    rotation: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (rotation if id(parameter) in turning else other).append(parameter)
    groups = [
        {"params": other, "lr": lr, "name": "softmax"},
        {"params": rotation, "lr": lr if rotation_lr is None else rotation_lr, "name": "rotation"},
    ]
    return [group for group in groups if group["params"]]
