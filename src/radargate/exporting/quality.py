"""What a fitted LoRA loses against the composition it stands for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any, Protocol

import torch
from torch import Tensor

from radargate.composition.composing import radar_layers
from radargate.composition.layer import RadarLayer
from radargate.evaluation.metrics import paired_difference, with_interval
from radargate.evaluation.scoring import Scorer
from radargate.exporting.reading import Batches, ByTask, read, watching

# site → A [r, d_in] and B [r, d_out] of scale 1
Factors = Mapping[str, tuple[Tensor, Tensor]]


class Measuring(Protocol):
    """What `measure` asks of the options of a fit."""

    @property
    def batch_size(self) -> int:
        """Rows at a time."""
        ...

    @property
    def seed(self) -> int:
        """Of the intervals' resampling."""
        ...


def measure(
    model: Any, tokenizer: Any, factors: Factors, rows: ByTask, batches: Batches, adapter_name: str, options: Measuring
) -> dict[str, Any]:
    """Gold-answer NLL of composition, LoRA and base on the same rows, and each site's residual.

    Args:
        model: the composed model.
        tokenizer: of its base.
        factors: of the LoRA.
        rows: task → rows that it was not fitted to.
        batches: the same rows as model inputs, for the residuals.
        adapter_name: the composition's name inside the model.
        options: batch size and seed.

    Returns:
        ``nll``: system → mean with its interval, in nats a token; ``difference``: paired, of the LoRA from the others;
        ``residual``: ‖u − x Aᵀ B‖ / ‖u‖ over the rows' tokens, at each site and over sites.
    """
    scorer = Scorer(model, tokenizer, batch_size=options.batch_size)

    def scored() -> dict[str, Sequence[float]]:
        return {task: scorer.nll(task_rows) for task, task_rows in rows.items()}

    found = {"composition": scored()}
    with as_lora(model, factors):
        found["lora"] = scored()
    with model.disable_adapter():
        found["base"] = scored()
    sites = residuals(model, factors, batches, adapter_name)
    return {
        "nll": {name: with_interval(list(by_task.values()), options.seed) for name, by_task in found.items()},
        "difference": {
            f"lora - {other}": paired_difference(found["lora"], found[other], options.seed)
            for other in ("composition", "base")
        },
        "residual": {
            "mean": mean(sites.values()),
            "median": median(sites.values()),
            "highest": max(sites.values()),
            "sites": {site: {"held_out": value} for site, value in sites.items()},
        },
    }


@contextlib.contextmanager
def as_lora(model: Any, factors: Factors) -> Iterator[None]:
    """While the block runs, the composed model is its base with a LoRA of these factors, as PEFT would add it."""
    on_device: dict[str, tuple[Tensor, Tensor]] = {}

    def add(layer: RadarLayer, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if layer.site not in factors:
            return output
        x = args[0]
        if layer.site not in on_device:
            A, B = factors[layer.site]
            on_device[layer.site] = A.to(x.device), B.to(x.device)
        A, B = on_device[layer.site]
        return output + (x.to(A.dtype) @ A.T @ B).to(output.dtype)

    with model.disable_adapter():
        hooks = [layer.register_forward_hook(add) for layer in radar_layers(model)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def residuals(model: Any, factors: Factors, batches: Batches, adapter_name: str = "default") -> dict[str, float]:
    """Site → ‖u − x Aᵀ B‖ / ‖u‖ over all tokens of the batches; 0 where nothing was to be added."""
    sums: dict[str, list[float]] = {}

    def see(layer: RadarLayer, x: Tensor, u: Tensor) -> None:
        missing = u.double()
        size = float(missing.square().sum())
        if layer.site in factors:
            A, B = (part.to(x.device, torch.float64) for part in factors[layer.site])
            missing = missing - x.double() @ A.T @ B
        so_far = sums.setdefault(layer.site, [0.0, 0.0])
        so_far[0] += float(missing.square().sum())
        so_far[1] += size

    with watching(model, adapter_name, see):
        for _ in read(model, batches):
            pass
    return {site: (missed / size) ** 0.5 if size else 0.0 for site, (missed, size) in sums.items()}
