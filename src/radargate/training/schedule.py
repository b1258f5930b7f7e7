"""Two lines for a user's own Trainer: dense start as a callback, and parameter groups with two rates."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from radargate.errors import OptionError


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
        if not 0.0 <= fraction <= 1.0:
            raise OptionError(f"dense_start is {fraction}, expected a share of the steps from 0 to 1.")
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
    """Split gate parameters into softmax and rotation groups, each with its own rate.

    Args:
        model: a composed model.
        lr: rate of everything that decides weights.
        rotation_lr: rate of everything that decides angles; None means ``lr``.

    Returns:
        Parameter groups for any torch optimizer; empty groups are left out.
    """
    rotation: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (rotation if "rotation_" in name.rsplit(".", 1)[-1] else other).append(parameter)
    groups = [
        {"params": other, "lr": lr, "name": "softmax"},
        {"params": rotation, "lr": lr if rotation_lr is None else rotation_lr, "name": "rotation"},
    ]
    return [group for group in groups if group["params"]]
