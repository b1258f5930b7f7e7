"""Where vLLM's linear layers and a bundle's sites meet: a wrapper around each layer's ``quant_method``, and one opaque operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.linear import LinearBase, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.utils.torch_utils import direct_register_custom_op

from radargate.composition.layer import RadarLayer
from radargate.errors import BundleError, OptionError, shown
from radargate.gates.call_state import NOTHING

KEY = "radargate."  # before the names of layers in vLLM's table of what a compiled graph looks up by name
NAME = "default"


class Share(NamedTuple):
    """One process's part of a linear layer under tensor parallelism.

    Attributes:
        widths: of the pieces of its output, in order.
        columns: of each piece, which columns of the whole piece it is; None for all.
        gathers: whether it has a part of the input only. Its output is then a part of a sum over processes, and each
            adds the update to columns of its own.
        wholes: widths of the whole pieces, as sites have them.
        own: the piece that a site stands at which is all of the layer.
    """

    widths: list[int]
    columns: list[Sequence[tuple[int, int]] | None]
    gathers: bool
    wholes: list[int]
    own: int


class Site:
    """One linear layer of vLLM, which may be several of the base's own side by side.

    Args:
        layers: of each piece of its output, or None where no expert adapts that piece.
        share: this process's part of the layer.
        text: what the router said of the tokens of this step, for gates that ask.
    """

    def __init__(self, layers: list[RadarLayer | None], share: Share, text: Any) -> None:
        self.layers, self.share = layers, share
        self.state = NOTHING if text is None else dataclasses.replace(NOTHING, text=text)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """y [tokens, width] plus the update of each piece, for x [tokens, d_in]."""
        share = self.share
        if share.gathers:
            x = tensor_model_parallel_all_gather(x.contiguous())
        pieces = []
        for layer, piece, columns in zip(self.layers, y.split(share.widths, -1), share.columns, strict=True):
            if layer is None:
                pieces.append(piece)
            else:
                pieces.append(layer.onto(x, piece.contiguous(), NAME, self.state, columns))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)


class Method(QuantizeMethodBase):
    """A linear layer's own method, and then the update."""

    def __init__(self, inner: Any, name: str) -> None:
        self.inner, self.name = inner, name

    def create_weights(self, layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        """As without us."""
        self.inner.create_weights(layer, *args, **kwargs)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """As without us."""
        self.inner.process_weights_after_loading(layer)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's output with the update on it."""
        return torch.ops.vllm.radargate_update(x, self.inner.apply(layer, x, bias), self.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)


def attach(model: nn.Module, layers: Mapping[str, RadarLayer], table: dict[str, Any], text: Any) -> None:
    """Wrap every linear layer of a loaded model that experts adapt.

    Args:
        model: vLLM's.
        layers: site → layer of the bundle; moved to where the model is.
        table: vLLM's ``static_forward_context``.
        text: what the router says, or None.

    Raises:
        BundleError: a site has no place in vLLM's model, or a place of another shape.
    """
    _define()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, LinearBase)}
    rename, spread = renaming(model), _spread(model)
    sites: dict[str, Site] = {}
    for site, layer in layers.items():
        name, slot = _place(rename(site), spread, linears)
        if name is None:
            raise OptionError(
                f"the bundle adapts {shown(site)}, which is no linear layer of vLLM's {type(model).__name__} (an embedding, the output "
                "layer, or experts in one tensor). Compose adapters without that target."
            )
        share = share_of(linears[name], slot)
        wanted, there = tuple(layer.entries[NAME][1]["shape"]), (linears[name].input_size, share.wholes[slot or 0])
        if wanted != there:
            raise BundleError(
                f"the bundle has experts of shape {wanted} for {shown(site)}, in vLLM's {name} there is room for {there}. The bundle "
                "belongs to another base."
            )
        sites[name] = sites.get(name) or Site([None] * len(share.widths), share, text)
        sites[name].layers[share.own if slot is None else slot] = layer
    for name, merged in sites.items():
        linear = linears[name]
        device = next((p.device for p in linear.parameters()), torch.device("cpu"))
        for piece in merged.layers:
            if piece is not None:
                piece.to(device)
        table[KEY + name] = merged
        linear.quant_method = Method(linear.quant_method, KEY + name)
        linear.requires_unquantized_input = True


def renaming(model: nn.Module) -> Callable[[str], str]:
    """How vLLM's model calls what the base calls so; merging of layers left aside."""
    mapper: Any = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return lambda site: site
    plain = dataclasses.replace(mapper, orig_to_new_stacked={})
    return lambda site: (plain.map_name(f"{site}.weight") or site).removesuffix(".weight")


def _spread(model: nn.Module) -> dict[str, tuple[str, int]]:
    """The base's name of a layer → vLLM's name of the merged one, and the slot in it."""
    packed: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
    return {part: (whole, i) for whole, parts in packed.items() if len(parts) > 1 for i, part in enumerate(parts)}


def _place(
    site: str, spread: Mapping[str, tuple[str, int]], linears: Mapping[str, Any]
) -> tuple[str | None, int | None]:
    """vLLM's layer of a site, and the slot in it; None where the site is all of it."""
    parent, _, last = site.rpartition(".")
    whole, slot = spread.get(last, (None, None))
    if (name := f"{parent}.{whole}") in linears:
        return name, slot
    return (site if site in linears else None), None


def share_of(linear: Any, slot: int | None) -> Share:
    """What of a linear layer this process has: all of it, unless vLLM runs it in several."""
    size, rank = (1, 0) if isinstance(linear, ReplicatedLinear) else (linear.tp_size, linear.tp_rank)
    if isinstance(linear, RowParallelLinear):
        whole = linear.output_size
        start, end = (2 * (whole // 2 * at // size) for at in (rank, rank + 1))
        end = whole if rank + 1 == size else end
        if size == 1:
            return Share([whole], [None], False, [whole], 0)
        return Share([start, end - start, whole - end], [None, [(start, end)], None], True, [whole], 1)
    parts, ranges, wholes = list(linear.output_partition_sizes), [], []
    for place, part in enumerate(parts):
        copies = getattr(linear, "num_kv_head_replicas", 1) if place else 1  # of keys and values where heads are few
        ranges.append((rank // copies * part, (rank // copies + 1) * part))
        wholes.append(part * size // copies)
    if slot is not None:
        return Share(parts, [None if size == 1 else [own] for own in ranges], False, wholes, 0)
    before = [sum(wholes[:place]) for place in range(len(wholes))]
    whole = [(at + start, at + end) for at, (start, end) in zip(before, ranges, strict=True)]
    return Share([sum(parts)], [None if size == 1 else whole], False, [sum(wholes)], 0)


def _update(x: Tensor, y: Tensor, name: str) -> Tensor:
    site: Site = get_forward_context().no_compile_layers[name]
    return site.add(x, y)


def _fake(x: Tensor, y: Tensor, name: str) -> Tensor:
    return torch.empty_like(y)


def _define() -> None:
    if not hasattr(torch.ops.vllm, "radargate_update"):
        direct_register_custom_op("radargate_update", _update, fake_impl=_fake)
