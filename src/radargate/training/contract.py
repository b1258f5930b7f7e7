"""The train contract: only gates are trained, every gate tensor learns, base and experts stay as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from radargate.composition.composing import radar_layers
from radargate.errors import TrainContractError
from radargate.training import processes

GRACE_STEPS = 3  # P has no gradient before Q has moved


def frozen_hash(model: nn.Module) -> str:
    """sha256 over every parameter that is not trained, of a sharded model over what this process holds."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(processes.local(parameter).detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def gate_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter of every gate of the active compositions."""
    found = {}
    for name, module in model.named_modules():
        if name.endswith("radar_gate"):
            found.update({f"{name}.{key}": p for key, p in module.named_parameters()})
    return found


class TrainContract(TrainerCallback):
    """Checks the contract around a training run.

    Args:
        model: a composed model.
        turns: steps until every expert has had its turn, where each is trained alone.

    Raises:
        TrainContractError: trained parameters are not exactly the gates'; a gradient is not finite, or still zero
            after three steps (of each expert that is trained alone) without a listed reason; or the base or an expert has changed.
    """

    def __init__(self, model: nn.Module, turns: int = 1) -> None:
        self.turns, self.deadline = turns, 0
        self.gates = gate_parameters(model)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        if trained != self.gates.keys():
            extra = sorted(trained ^ self.gates.keys())
            raise TrainContractError(
                f"{len(extra)} parameters are trainable without being gates or the reverse, the first is {extra[0]}."
            )
        self.before = frozen_hash(model)
        self.excused = dict(_excused(model))
        self.unmoved = set(self.gates) - self.excused.keys()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Look at the gradients of the first steps (and of the first after a resume)."""
        if optimizer is not None:
            owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if owned != {id(p) for p in self.gates.values()}:
                raise TrainContractError("the optimizer holds other parameters than the gates'.")
        if not self.deadline:
            self.deadline = max(GRACE_STEPS * self.turns, state.global_step + self.turns)
        if not self.unmoved and state.global_step > self.deadline:
            return
        for name, parameter in self.gates.items():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise TrainContractError(
                    f"the gradient of {name} is not finite at step {state.global_step + 1}. Lower `lr` and the rotation's learning rate."
                )
            if parameter.grad is not None and bool(parameter.grad.any()):
                self.unmoved.discard(name)
        if self.unmoved and state.global_step + 1 >= self.deadline:
            raise TrainContractError(
                f"{min(self.unmoved)} and {len(self.unmoved) - 1} more gate tensors have had no gradient in "
                f"{self.deadline} steps: they would not be trained."
            )

    def finish(self, model: nn.Module) -> list[str]:
        """Check that nothing frozen has changed; returns the contract's lines."""
        if frozen_hash(model) != self.before:
            raise TrainContractError("base or experts changed while the gates were trained; the result is not saved.")
        count = sum(p.numel() for p in self.gates.values())
        moved = (
            f"{len(self.unmoved)} had no gradient in so few steps"
            if self.unmoved
            else "each had a finite, non-zero gradient"
        )
        lines = [
            f"train contract: the optimizer held exactly the {len(self.gates)} gate tensors ({count:,} parameters); "
            f"{moved}; base and experts are unchanged (hash)."
        ]
        reasons: dict[str, int] = {}
        for reason in self.excused.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines += [f"  except {count} tensors: {reason}." for reason, count in reasons.items()]
        return lines


def _excused(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Gate tensors that cannot have a gradient, and why."""
    names = {id(module): name for name, module in model.named_modules()}
    for layer in radar_layers(model):
        for adapter in layer.radar_gate:
            gate, bank = layer.gate(adapter), layer.bank(adapter)
            options = gate.options
            prefix = f"{names[id(gate)]}."
            constant = getattr(options, "renormalize", "auto") == "always" and gate.site.top_k == 1
            acts = [bool(block.any()) for block in bank.B.split(list(bank.ranks))]
            idle = {key for i, moves in enumerate(acts) if not moves for key in gate.own_parameters(i)}
            if constant and hasattr(gate, "router"):
                yield f"{prefix}router.softmax_router", "renormalised top-1 weights are always 1 (renormalize='always')"
            for key, _ in gate.named_parameters(recurse=False):
                if key in idle:
                    yield prefix + key, "its expert changes nothing at that site"
                elif key.startswith("rotation_") and gate.site.d_out < 2:
                    yield prefix + key, "a single output has nothing to turn with"
                elif key.startswith("softmax_") and key != "softmax_length" and constant:
                    yield prefix + key, "renormalised top-1 weights are always 1 (renormalize='always')"
                elif (
                    key in ("rotation_up", "rotation_down")
                    and sum(acts) < 2
                    and getattr(options, "rotation_input", "input") == "experts"
                ):
                    yield (
                        prefix + key,
                        "fewer than two experts act at that site, so there is nothing to relate",
                    )
