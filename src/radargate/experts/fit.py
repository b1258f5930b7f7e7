"""Whether an adapter fits a base model: every layer, its shape, what the config names, and copies of the base's own tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from torch import Tensor, nn

from radargate.base_models.offload import real_tensor
from radargate.errors import AdapterError, InactiveExpertError, shown
from radargate.experts.adapters import Adapter, SiteShape, base_sites
from radargate.experts.names import PREFIX, exactly

_EXPERT = re.compile(r"\.experts\.\d+\.")


def fit(
    adapter: Adapter, base: nn.Module, shapes: Mapping[str, SiteShape] | None = None, *, partial: bool = False
) -> Adapter:
    """The adapter by the base's own names of layers, if it fits.

    Args:
        adapter: as `read_adapter` read it.
        base: the base model, with or without weights.
        shapes: `base_sites` of it, where they are known.
        partial: accept a file that lacks layers which its config names.

    Raises:
        InactiveExpertError: no tensor belongs to any layer.
        AdapterError: some do not, layers are missing, or a copy of a base tensor differs; names and shapes are given.
    """
    shapes = base_sites(base) if shapes is None else shapes
    adapter = _by_base_names(adapter, base, shapes)
    _check_layers(adapter, shapes, getattr(base, "base_model_prefix", ""))
    for site, tensors in adapter.sites.items():
        shape, found = shapes[site], (tensors.A.shape[1], tensors.B.shape[0])
        if found != (shape.d_in, shape.d_out):
            raise AdapterError(
                f"adapter {adapter.name!r}: at {site} it maps {found[0]} to {found[1]}, the base model's layer maps "
                f"{shape.d_in} to {shape.d_out}. It was made for a model of another size; choose that one."
            )
    if not partial:
        adapter = _check_whole(adapter, base, shapes)
    return _without_copies(_as_written(adapter), base)


def _by_base_names(adapter: Adapter, base: nn.Module, shapes: Mapping[str, SiteShape]) -> Adapter:
    """Layers renamed as PEFT renames them for this class of base, where its own names have changed."""
    unknown = [site for site in adapter.sites if site not in shapes]
    if not unknown:
        return adapter
    renamed = {site: _converted(site, base) if site in unknown else site for site in adapter.sites}
    moved = [site for site in unknown if renamed[site] in shapes]
    if len(set(renamed.values())) < len(renamed) or not moved:
        return adapter
    sites = {renamed[site]: tensors for site, tensors in adapter.sites.items()}
    note = f"{len(moved)} layers by the base's names of today ({shown(moved[0])} → {shown(renamed[moved[0]])})"
    return replace(adapter, sites=sites, notes=(*adapter.notes, note))


def _converted(site: str, base: nn.Module) -> str:
    name = f"{PREFIX}{site}.lora_A.weight"
    try:
        found = convert_peft_adapter_state_dict_for_transformers(base, LoraConfig(), {name: torch.empty(1, 1)})
    except Exception:  # a class of base that PEFT cannot convert for
        return site
    return next(iter(found), name).removeprefix(PREFIX).removesuffix(".lora_A.weight")


def _check_layers(adapter: Adapter, shapes: Mapping[str, SiteShape], base_prefix: str) -> None:
    unknown = [site for site in adapter.sites if site not in shapes]
    if not unknown:
        return
    if any(_EXPERT.search(site) for site in unknown):
        raise AdapterError(
            f"adapter {adapter.name!r} adapts single experts of a mixture-of-experts base ({shown(unknown[0])}), and in this base all "
            "experts of a layer are one parameter, which no LoRA of linear layers reaches. Train it on the attention layers."
        )
    bare = base_prefix and all(site.removeprefix(f"{base_prefix}.") in shapes for site in unknown)
    if bare:
        raise InactiveExpertError(
            f"adapter {adapter.name!r} adapts {shown(unknown[0])}, and the base is a bare backbone without the head that the adapter was "
            "trained with. Give the whole checkpoint."
        )
    below = next((site.removesuffix(f".{unknown[0]}") for site in shapes if site.endswith(f".{unknown[0]}")), None)
    if len(unknown) == len(adapter.sites) and below is not None:
        raise InactiveExpertError(
            f"adapter {adapter.name!r} was made for a part of the base model: its layers stand below {shown(below)} there. Give "
            f"that part as the base, base.get_submodule({shown(below)!r})."
        )
    if len(unknown) == len(adapter.sites):
        raise InactiveExpertError(
            f"adapter {adapter.name!r} matches no linear layer of the base model (it adapts {shown(unknown[0])}, …). "
            "It was made for another model type; choose the base it was trained on."
        )
    raise AdapterError(
        f"adapter {adapter.name!r}: {len(unknown)} of {len(adapter.sites)} sites are not linear layers of the "
        f"base model, the first is {shown(unknown[0])}. It was made for another model; choose that one."
    )


def _check_whole(adapter: Adapter, base: nn.Module, shapes: Mapping[str, SiteShape]) -> Adapter:
    """Raise `AdapterError` where the config names layers of the base that the file has no tensors for."""
    usual = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(
        getattr(getattr(base, "config", None), "model_type", ""), ()
    )
    named = adapter.plain.named(list(shapes), _head_names(base), usual)
    if adapter.plain.by_pattern:  # which may well name kinds of modules that nobody trained
        kinds = {site.rpartition(".")[2] for site in adapter.sites}
        others = sorted({site.rpartition(".")[2] for site in named} - kinds)
        named = [site for site in named if site.rpartition(".")[2] in kinds]
        if others:
            note = f"no tensors of {shown(', '.join(others), 100)}, which the pattern in its config names too"
            adapter = replace(adapter, notes=(*adapter.notes, note))
    missing = [site for site in named if site not in adapter.sites]
    if missing:
        raise AdapterError(
            f"adapter {adapter.name!r}: {len(missing)} of the {len(named)} layers that its config names are missing from its file, "
            f"the first is {shown(missing[0])}. They were lost when it was saved or sent: save it again from the whole model, or "
            "accept what is there with `allow_inactive`."
        )
    return adapter


def _as_written(adapter: Adapter) -> Adapter:
    """The adapter with a config that names its layers as they are called now, where names were read otherwise than they stand."""
    if not adapter.notes:
        return adapter
    ranks, alphas = {}, {}
    for site, tensors in adapter.sites.items():
        key = exactly(site)
        alpha = tensors.scale * (tensors.rank**0.5 if adapter.plain.rslora else tensors.rank)
        ranks[key], alphas[key] = tensors.rank, float(f"{alpha:.12g}")
    ranks = {key: rank for key, rank in ranks.items() if rank != adapter.plain.rank}
    alphas = {key: alpha for key, alpha in alphas.items() if alpha != adapter.plain.alpha}
    free = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    named = {"target_modules": list(adapter.sites), "rank_pattern": ranks, "alpha_pattern": alphas}
    return replace(adapter, config={**adapter.config, **free, **named})


def _head_names(base: Any) -> set[str]:
    """Layers that PEFT leaves out of ``all-linear``: what makes the output."""
    head = getattr(base, "get_output_embeddings", lambda: None)()
    return {
        name for name, module in base.named_modules() if module is head or name in ("score", "classifier", "qa_outputs")
    }


def _without_copies(adapter: Adapter, base: nn.Module) -> Adapter:
    """The adapter without the base's own tensors that PEFT saved beside it, each compared with the base's where that has weights.

    Raises:
        AdapterError: one differs, or the base has none of that name.
    """
    if not adapter.copies:
        return adapter
    own = {name.replace("base_layer.", ""): name for name in base.state_dict(keep_vars=True)}
    for name, info in adapter.copies.items():
        plain = name.replace("base_layer.", "")
        module, _, last = plain.rpartition(".")
        place = own.get(plain) or own.get(f"{_converted(module, base)}.{last}")
        if place is None:
            raise AdapterError(
                f"adapter {adapter.name!r}: its file holds {shown(name)}, expected only lora_A and lora_B weights of linear layers, "
                "and the base has no tensor of that name to compare it with. Save it again with PEFT."
            )
        there = real_tensor(base, place)
        if not there.is_floating_point():  # quantised
            continue
        if tuple(there.shape) != info.shape:
            raise AdapterError(
                f"adapter {adapter.name!r} brings its own {shown(name)} of shape {info.shape}, the base's has {tuple(there.shape)}. "
                "Tokens were added when it was trained: resize the base's embeddings as then, or save the adapter again with "
                "save_embedding_layers=False if the new tokens were not trained."
            )
        if not there.is_meta and not _same(adapter.tensor(name), there):
            raise AdapterError(
                f"adapter {adapter.name!r} brings its own {shown(name)}, which differs from the base's: it was trained, or belongs to "
                "another base. A composition keeps the base's. Save it again with save_embedding_layers=False if it was not trained."
            )
    note = f"{len(adapter.copies)} copies of the base's own tensors left out ({', '.join(shown(n, 60) for n in adapter.copies)})"
    return replace(adapter, copies={}, notes=(*adapter.notes, note))


def _same(copy: Tensor, own: Tensor) -> bool:
    """Whether two tensors are equal in the dtype of either: one may have been rounded when it was loaded or saved."""
    own = own.detach().cpu()
    return torch.equal(copy.to(own.dtype), own) or torch.equal(copy, own.to(copy.dtype))
