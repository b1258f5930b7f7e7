"""Several processes (``torchrun``, ``accelerate launch``) that train one gate: who does what, and a sharded base."""

from __future__ import annotations

from typing import Any, cast

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from radargate.composition.composing import radar_layers
from radargate.errors import OptionError
from radargate.io.processes import is_main_process, process_count


def share_of(batch_size: int) -> int:
    """Rows of each step that one process takes.

    Raises:
        OptionError: the rows cannot be shared out evenly.
    """
    if batch_size % process_count():
        raise OptionError(
            f"batch_size is {batch_size} rows a step, which {process_count()} processes cannot share evenly. Use a multiple of {process_count()}."
        )
    return batch_size // process_count()


def agreed(value: str, device: str | None) -> str:
    """What the first process found, in all of them."""
    if process_count() == 1:
        return value
    PartialState(cpu=device == "cpu")  # connects the processes
    return broadcast_object_list([value])[0]


def wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def shard(model: PeftModel) -> None:
    """Share out every frozen weight (base and experts) among the processes; gates stay whole in each.

    A layer of the base is put together while it is used, forward and backward (FSDP2). Gradients of the gates are
    averaged by DDP, which is told to leave the shards alone. The processes must be connected already.

    Source: torch.distributed.fsdp.fully_shard.
    """
    base = cast(nn.Module, model.get_base_model())
    trained = {p for p in model.parameters() if p.requires_grad}
    stacks = [m for m in base.modules() if isinstance(m, nn.ModuleList) and radar_layers(m)]
    outermost = [m for m in stacks if not any(m is not o and m in set(o.modules()) for o in stacks)]
    for stack in outermost:
        for layer in stack:
            fully_shard(layer, ignored_params=trained)
    # the tuner around the base: PEFT calls the base's forward itself, where hooks would not run
    fully_shard(cast(nn.Module, model.base_model), ignored_params=trained)
    shards = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, shards)


def local(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def gather_experts(model: PeftModel) -> None:
    """Put the experts of a sharded model together again in the main process, to be saved; all processes must call it."""
    for layer in radar_layers(model):
        for bank in layer.radar_bank.values():
            for name, parameter in list(bank.named_parameters(recurse=False)):
                if isinstance(parameter, DTensor):
                    whole: Any = parameter.full_tensor()
                    if is_main_process():
                        setattr(bank, name, nn.Parameter(whole.cpu(), requires_grad=False))
