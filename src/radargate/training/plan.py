"""``radargate plan``: what training gates will need, from the base's config and the adapters' headers alone.

The training step is carried out on tensors that have shapes and no data (torch's meta device), while their sizes are added
up; so nothing is loaded, and every gate, rule and architecture is planned by the code that will run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor

from radargate.architectures import ARCHITECTURES
from radargate.base_models.kinds import answers_with, task_type
from radargate.base_models.loading import base_dtype, load_config, meta_base, plain_dtype, resolve_base
from radargate.composition.composing import radar_layers
from radargate.composition.config import RadarConfig, check_top_k, gate_class, preset_options
from radargate.errors import OptionError
from radargate.experts.adapters import SiteShape, base_sites, read_adapter
from radargate.experts.fit import fit
from radargate.gates.base import make_options
from radargate.training.cost import operations_seconds, training_steps
from radargate.training.live_bytes import LiveBytes
from radargate.training.options import GateTraining
from radargate.training.schedule import set_dense

# what a process holds beside a step's tensors, as a share of them: freed blocks that the C library keeps. Measured once
# with SmolLM2-135M (docs/log.md); a GPU's allocator is not measured
KEPT = {"cpu": 0.3}


@dataclass(frozen=True)
class Plan:
    """Bytes and seconds of training gates.

    Attributes:
        base_bytes: the base's parameters.
        expert_bytes: the experts' A and B.
        gate_bytes: the gates' parameters.
        optimizer_bytes: AdamW's two moments of them.
        step_bytes: the most that a step holds beside those, gradients included; compiled operations on a CPU need somewhat less.
        kept_bytes: freed memory that the C library does not give back between steps, on a CPU.
        trained_parameters: numbers that are trained.
        steps: of the optimizer, in all.
        seconds: of all steps, roughly.
        dtype: of the base.
        dtype_reason: why that one.
    """

    base_bytes: int
    expert_bytes: int
    gate_bytes: int
    optimizer_bytes: int
    step_bytes: int
    kept_bytes: int
    trained_parameters: int
    steps: int
    seconds: float
    dtype: str
    dtype_reason: str

    @property
    def peak_bytes(self) -> int:
        """Everything at once. A process takes some 0.5 GB more for Python and torch, a GPU some 0.5 GB for its context."""
        held = self.base_bytes + self.expert_bytes + self.gate_bytes + self.optimizer_bytes
        return held + self.step_bytes + self.kept_bytes

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "peak_bytes": self.peak_bytes}


def plan_training(
    base: str,
    adapters: Mapping[str, str | Path],
    options: GateTraining,
    *,
    answer_tokens: int = 64,
    dtype: str | None = None,
    device: str = "cpu",
) -> Plan:
    """Predict memory and time of `radargate.training.gates.train_gates`, reading headers only.

    Args:
        base: base model name; its config is read, none of its weights.
        adapters: name → folder or Hub id; their headers are read.
        options: as for training; a step is planned with as many and as long rows as they allow, the worst there is.
        answer_tokens: tokens of the longest answer, which decide how many logits there are.
        dtype: of the base; None follows the rule of `load_base`.
        device: ``"cpu"`` or ``"cuda"``, for the seconds.

    Raises:
        AdapterError: an adapter is refused or does not fit.
        OptionError: options that cannot work.
    """
    options = options.resolved()
    config = load_config(resolve_base(base))
    choice = base_dtype(base, dtype, device)
    whole = meta_base(base)
    if answers_with(whole) != "text":
        raise OptionError(
            f"{base} is a {type(whole).__name__}, and a plan counts steps of language models. Train it as it is."
        )
    model = whole.to(plain_dtype(choice.name, "a plan knows the sizes of plain weights"))
    base_bytes = sum(p.nbytes for p in model.parameters())
    composed = _compose_shapes(model, adapters, options)
    gates = [p for layer in radar_layers(composed) for p in layer.gate("default").parameters()]
    trained = [p for p in gates if p.requires_grad]
    batch, length = options.shape
    steps = training_steps(options.gate, options.steps, len(adapters))
    counter = _Usual()
    with torch.device("meta"), counter, _flash_attention():
        flops = _step(
            composed, config, batch, length, min(answer_tokens + 2, length), options.dense_start or 0.0, trained
        )
    return Plan(
        base_bytes=base_bytes,
        expert_bytes=sum(p.nbytes for layer in radar_layers(composed) for p in layer.bank("default").parameters()),
        gate_bytes=sum(p.nbytes for p in gates),
        optimizer_bytes=2 * sum(p.nbytes for p in trained),
        step_bytes=counter.peak,
        kept_bytes=round(KEPT.get(torch.device(device).type, 0.0) * counter.peak),
        trained_parameters=sum(p.numel() for p in trained),
        steps=steps,
        seconds=steps * operations_seconds(flops, device) * max(choice.slowdown, 1.0) if trained else 0.0,
        dtype=choice.name,
        dtype_reason=choice.reason,
    )


def _compose_shapes(model: Any, adapters: Mapping[str, str | Path], options: GateTraining) -> PeftModel:
    """The composition without any weights, as `radargate.compose` would make it with them."""
    shapes = base_sites(model)
    read = [fit(read_adapter(str(name), source), model, shapes) for name, source in adapters.items()]
    kind = gate_class(options.gate)
    chosen, _ = kind.take(preset_options(options.preset, options.gate, options.gate_options))
    make_options(kind, chosen)
    ARCHITECTURES.check(options.architecture)
    config = RadarConfig(
        task_type=task_type(model),
        architecture=options.architecture,
        architecture_options=dict(options.architecture_options),
        gate=options.gate,
        gate_options=chosen,
        top_k=check_top_k(options.top_k, len(read)),
        preset=options.preset,
        seed=options.seed,
        experts=[adapter.name for adapter in read],
        sites={site: _entry(site, shape, read) for site, shape in shapes.items() if any(site in a.sites for a in read)},
    )
    with torch.device("meta"):
        return get_peft_model(model, config)


def _entry(site: str, shape: SiteShape, read: list[Any]) -> dict[str, Any]:
    here = [(index, adapter.sites[site]) for index, adapter in enumerate(read) if site in adapter.sites]
    return {
        "experts": [index for index, _ in here],
        "ranks": [tensors.rank for _, tensors in here],
        "scales": [tensors.scale for _, tensors in here],
        "dtypes": [[tensors.A.dtype, tensors.B.dtype] for _, tensors in here],
        "shape": [shape.d_in, shape.d_out],
    }


def _step(
    model: PeftModel, config: Any, batch: int, length: int, answer: int, dense: float, trained: list[Any]
) -> float:
    """One forward and backward pass of the loss that `AnswerTrainer` takes; returns its floating-point operations."""
    from torch.utils.flop_counter import FlopCounterMode

    model.train()
    set_dense(model, dense > 0)  # the dense part of training needs the most
    ids = torch.zeros(batch, length, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids}
    if config.is_encoder_decoder:
        labels = torch.zeros(batch, answer, dtype=torch.long)
        inputs["decoder_input_ids"] = labels
    else:
        labels = torch.zeros(batch, answer - 1, dtype=torch.long)
        inputs["logits_to_keep"] = answer
    with FlopCounterMode(display=False) as counted:
        logits = model(**inputs, use_cache=False).logits
        logits = logits if config.is_encoder_decoder else logits[:, -answer:-1]
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1), reduction="sum")
        if trained:
            loss.backward()
    set_dense(model, False)
    return float(counted.get_total_flops())


class _Usual(LiveBytes):
    """Counts, and answers code that looks into a tensor: all is usual (no padding), nothing is not."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[int] = set()  # storages of what `any` has answered

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool and args[0].untyped_storage()._cdata not in self.asked
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func.overloadpacket is torch.ops.aten.any:
            self.asked.add(result.untyped_storage()._cdata)
        return result

    def _gone(self, key: int, size: int) -> None:
        super()._gone(key, size)
        self.asked.discard(key)


class _Flash(torch.autograd.Function):
    """Attention by its shapes: it keeps queries, keys, values, result and one number a query, as flash attention does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


@contextlib.contextmanager
def _flash_attention() -> Iterator[None]:
    """Without data torch would take its slowest attention, which keeps every token's weight for every other."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _Flash.apply(query, key, value)

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield
