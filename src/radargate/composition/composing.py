"""Compose, save and load: from adapters on disk to one model, and back."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from radargate.architectures import ARCHITECTURES
from radargate.base_models.kinds import task_type
from radargate.base_models.loading import base_name, fingerprint, load_base
from radargate.base_models.offload import without_map
from radargate.composition import model as _registered  # noqa: F401  (PEFT must know RADAR before any bundle is read)
from radargate.composition.bundle import bundle_folder, check_files, check_fingerprint, read_lock
from radargate.composition.config import (
    DEFAULT_TOP_K,
    RadarConfig,
    check_composition_name,
    check_top_k,
    check_works_under,
    gate_class,
    preset_options,
)
from radargate.composition.heads import bundle_labels, fill_head, freeze_heads, restore_heads
from radargate.composition.layer import RadarLayer, banks_come_later
from radargate.composition.peft_model import pass_through_tuner
from radargate.errors import AdapterError, BundleError, RadarGateError, shown
from radargate.experts.adapters import Adapter, base_sites, read_adapter
from radargate.experts.bank import ExpertBank, SiteBank, check_equal_ranks, header_ranks, load_bank
from radargate.experts.files import WeightsFile, weights_file
from radargate.experts.heads import Head, check_head, choose_head, wanted_base
from radargate.gates.base import make_options
from radargate.io.places import place_of, recall, remember


def compose(
    base: str | PreTrainedModel | PeftModel | nn.Module,
    adapters: Mapping[str, str | Path | Adapter] | Sequence[str | Path] | None = None,
    *,
    architecture: str = "mole",
    architecture_options: Mapping[str, Any] | None = None,
    gate: str = "radar",
    top_k: int | None = DEFAULT_TOP_K,
    preset: str | None = None,
    seed: int = 0,
    allow_inactive: bool = False,
    head: str | None = None,
    adapter_name: str = "default",
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    **gate_options: Any,
) -> PeftModel:
    """Compose trained LoRA adapters into one model whose gates alone are trainable.

    Args:
        base: a model of any class, or its name or path. A PeftModel's own LoRAs join the experts; it is unloaded.
        adapters: name → folder or Hub id (or just folders, named by their last part).
        architecture: how experts share A and B; see `radargate.architectures.ARCHITECTURES`.
        architecture_options: its options.
        gate: gate or rule; see `radargate.gates.GATES` and `radargate.gates.rules.RULES`.
        top_k: experts kept per token, at most 2 by default (fewer where a site has fewer); None keeps all.
        preset: ``"paper"`` for the printed form of the gate.
        seed: of the gates' initial values.
        allow_inactive: accept an expert that changes nothing.
        head: the expert whose trained head (``modules_to_save``) is kept, where adapters bring different ones.
        adapter_name: the composition's name inside the PeftModel.
        dtype: of the base, where it is loaded here.
        device: of the base, where it is loaded here.
        **gate_options: options of the gate.

    Returns:
        A `peft.PeftModel`; train it, ``save_pretrained`` it, generate with it.

    Raises:
        AdapterError: an adapter is refused; adapter, fault and remedy are named.
        InactiveExpertError: an adapter matches no site or changes nothing.
        OptionError: an option or combination that cannot work.
        UnknownNameError: no such gate or architecture; the nearest are named.
    """
    check_composition_name(adapter_name)
    arrangement = ARCHITECTURES.get(architecture)
    arrangement_options = make_options(arrangement, dict(architecture_options or {}))
    kind = gate_class(gate)
    options, given = kind.take(preset_options(preset, gate, gate_options))
    made = make_options(kind, options)
    check_works_under(gate, architecture)
    arrangement.check(arrangement_options, gate, kind.weighs_codes(made))
    named = _named(adapters)
    with tempfile.TemporaryDirectory() as work:
        if isinstance(base, PeftModel):
            named = {**_own_adapters(base, Path(work)), **named}
            restore_heads(base)
            base = base.unload()
        if named:
            check_top_k(top_k, len(named))
            given = kind.check_given(given, [str(name) for name in named])
        kind.check(made, [str(name) for name in named], architecture)
        if kind.needs_equal_ranks(made) and architecture == "mole":  # hydra can make ranks equal; checked there later
            check_equal_ranks(gate, header_ranks(named))
        read = {str(name): read_adapter(str(name), source) for name, source in named.items()}
        kept = choose_head(list(read.values()), head)
        model = load_base(cast("str | PreTrainedModel", base), dtype, device, **wanted_base(list(read.values()), kept))
        bank = arrangement.arrange(load_bank(read, model, allow_inactive=allow_inactive), arrangement_options)
        bank = kind.arrange(bank, made, seed)
    if kept is not None:
        check_head(kept, model)
    chosen = {
        "architecture": architecture,
        "architecture_options": dict(architecture_options or {}),
        "gate": gate,
        "gate_options": options,
        "top_k": top_k and min(top_k, len(bank.names)),
        "preset": preset,
        "seed": seed,
    }
    return compose_bank(model, bank, chosen, adapter_name, given, kept)


def load_for(
    base: Any, adapters: Mapping[str, Adapter], head: str | None, dtype: Any = None, device: str | None = None
) -> PreTrainedModel:
    """Load the base that these adapters want: a checkpoint without the head that they bring gets one."""
    read = list(adapters.values())
    return load_base(base, dtype, device, **wanted_base(read, choose_head(read, head)))


def compose_bank(
    model: PreTrainedModel,
    bank: ExpertBank,
    chosen: Mapping[str, Any],
    adapter_name: str = "default",
    given: Any = None,
    head: Head | None = None,
) -> PeftModel:
    """Compose experts that are in memory already; ``chosen`` are fields of `RadarConfig`, ``given`` data of the gate, ``head`` what it keeps."""
    shapes = base_sites(model)
    config = RadarConfig(
        base_model_name_or_path=getattr(model, "name_or_path", None) or None,
        task_type=task_type(model),
        experts=list(bank.names),
        expert_configs=bank.configs,
        expert_facts=bank.facts,
        sites={name: _entry(site, shapes[name]) for name, site in bank.sites.items()},
        base_fingerprint=fingerprint(model, without=head.modules if head else ()),
        modules_to_save=list(head.modules) if head else None,
        **chosen,
    )
    kind = gate_class(config.gate)
    options = make_options(kind, config.gate_options)
    given = None if given is None else kind.read_given(given, model, options)
    composed = get_peft_model(model, config, adapter_name=adapter_name)
    radar_config(composed, adapter_name).base_model_name_or_path = base_name(model)  # PEFT put this machine's path
    _fill(composed, bank, adapter_name)
    fill_head(composed, head, adapter_name)
    for layer in radar_layers(composed):
        there = layer.bank(adapter_name)
        layer.gate(adapter_name).prepare(there.A.detach(), there.B.detach(), there.scales)
        if given is not None:
            layer.gate(adapter_name).receive(given)
            if (router := layer.gate(adapter_name)._modules.get("router")) is not None:
                kind.start_router(router, given, config.experts, options)
    return _finish(composed)


def load(
    base: str | PreTrainedModel | nn.Module | None,
    bundle: str | Path,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    adapter_name: str = "default",
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    trainable: bool = False,
    allow_other_base: bool = False,
) -> PeftModel:
    """Load a saved composition.

    Args:
        base: the base model or its name; None takes the one the bundle names.
        bundle: a folder written by ``save_pretrained``, or a Hub id.
        adapters: where the experts of a bundle with gates only are now; None takes the places it names.
        adapter_name: the composition's name inside the PeftModel.
        dtype: of the base, where it is loaded here.
        device: of the base, where it is loaded here.
        trainable: leave the gates trainable.
        allow_other_base: accept a base whose fingerprint is not the bundle's.

    Raises:
        BundleError: the bundle is incomplete or altered, or belongs to another base, or its experts changed.
    """
    check_composition_name(adapter_name)
    folder = bundle_folder(bundle)
    lock = read_lock(folder)
    config = read_config(folder)
    if base is None:
        known = lock.get("base", {})
        base = place_of(known.get("name"), known.get("fingerprint")) or config.base_model_name_or_path
        if not base:
            raise BundleError(f"{bundle} names no base model; give one.")
    header = WeightsFile(weights_file(folder)).tensors if config.modules_to_save else {}
    labels = bundle_labels(folder, config.modules_to_save, header)
    model = load_base(
        base, dtype, device, task=str(config.task_type or ""), labels=labels, site=next(iter(config.sites), None)
    )
    if not allow_other_base:
        check_fingerprint(bundle, config.base_fingerprint, model, config.modules_to_save)
    remember(config.base_fingerprint, base if isinstance(base, str) else "")
    bank = _experts_of(config, adapters, model) if config.gate_only else None
    token = banks_come_later.set(bank is not None)
    try:
        with warnings.catch_warnings(), without_map(model):
            warnings.filterwarnings("ignore", message=".*missing adapter keys.*")
            composed = PeftModel.from_pretrained(model, str(folder), adapter_name=adapter_name, is_trainable=trainable)
    finally:
        banks_come_later.reset(token)
    radar_config(composed, adapter_name).base_model_name_or_path = base_name(model)
    if bank is not None:
        _fill(composed, bank, adapter_name)
    return _finish(composed)


def read_config(folder: Path) -> RadarConfig:
    """The checked configuration of a bundle's folder; its weights' header is checked too.

    Raises:
        BundleError: a file is missing, damaged or of another kind, or a field has a value that cannot be.
    """
    check_files(folder)
    try:
        config = RadarConfig.from_pretrained(str(folder))
    except RadarGateError:
        raise
    except Exception as error:  # PEFT raises what it likes for fields that it cannot take
        raise BundleError(
            f"{folder / 'adapter_config.json'} cannot be read ({type(error).__name__}: {shown(str(error))}). It is damaged or from a "
            "newer version; download the bundle again, or update radargate."
        ) from error
    if not config.experts:
        raise BundleError(
            f"{folder / 'adapter_config.json'} names no experts. It is damaged; download the bundle again."
        )
    return config


def radar_layers(model: torch.nn.Module) -> list[RadarLayer]:
    """Every layer of a composition, in the base model's order."""
    return [module for module in model.modules() if isinstance(module, RadarLayer)]


def radar_config(model: Any, adapter_name: str = "default") -> RadarConfig:
    """The configuration of a composition."""
    return cast(RadarConfig, model.peft_config[adapter_name])


def expert_bank(model: PeftModel, adapter_name: str = "default") -> ExpertBank:
    """The experts inside a composed model, for `radargate.experts.bank.write_expert`."""
    config = radar_config(model, adapter_name)
    sites = {}
    for layer in radar_layers(model):
        if adapter_name not in layer.entries:
            continue
        entry, bank = layer.entries[adapter_name][1], layer.bank(adapter_name)
        sites[layer.site] = SiteBank(
            bank.A.detach(),
            bank.B.detach(),
            tuple(entry["experts"]),
            tuple(entry["ranks"]),
            tuple(entry["scales"]),
            tuple(tuple(pair) for pair in entry["dtypes"]),
        )
    return ExpertBank(tuple(config.experts), sites, config.expert_configs, config.expert_facts)


def _fill(model: PeftModel, bank: ExpertBank, adapter_name: str) -> None:
    """Copy experts into the layers built for them."""
    for layer in radar_layers(model):
        if adapter_name not in layer.entries:
            continue  # a layer of another composition
        here, there = bank.sites[layer.site], layer.bank(adapter_name)
        there.A.data = here.A.to(there.A.device)
        there.B.data = here.B.to(there.B.device)


def _experts_of(config: RadarConfig, adapters: Mapping[str, str | Path] | None, model: PreTrainedModel) -> ExpertBank:
    """Find the experts of a bundle with gates only, and check that they are the very ones."""
    # by the list of names: PEFT sorts the keys of tables when it writes a config
    expected = config.adapter_facts()
    sources: dict[str, str | Path] = {}
    for name, facts in expected.items():
        place = (adapters or {}).get(name) or facts.get("source") or recall(facts.get("sha256"))
        if place is None:
            raise BundleError(
                f"this bundle holds gates only, and nobody knows here where expert {name!r} lies. Give its place with adapters={{...}}."
            )
        sources[name] = place
    bank = load_bank(sources, model, allow_inactive=True)
    for name, facts in bank.facts.items():
        if facts["sha256"] != expected[name].get("sha256"):
            raise BundleError(
                f"expert {name!r} at {sources[name]} is not the one these gates were trained with (another sha256). "
                "Give its place with adapters={...}."
            )
    arrangement, kind = ARCHITECTURES.get(config.architecture), gate_class(config.gate)
    bank = arrangement.arrange(bank, make_options(arrangement, config.architecture_options))
    return kind.arrange(bank, make_options(kind, config.gate_options), config.seed)


def _finish(model: PeftModel) -> PeftModel:
    """Let calls carry ``experts=``, and generation work where training prepared inputs differently."""
    freeze_heads(model)
    pass_through_tuner(model)
    model.special_peft_forward_args = {*model.special_peft_forward_args, "experts"}
    return model


def _entry(site: SiteBank, shape: Any) -> dict[str, Any]:
    return {
        "experts": list(site.experts),
        "ranks": list(site.ranks),
        "scales": list(site.scales),
        "dtypes": [list(pair) for pair in site.dtypes],
        "shape": [shape.d_in, shape.d_out],
    }


def _named(
    adapters: Mapping[str, str | Path | Adapter] | Sequence[str | Path] | None,
) -> dict[str, str | Path | Adapter]:
    if adapters is None:
        return {}
    if isinstance(adapters, Mapping):
        return dict(adapters)
    named: dict[str, str | Path | Adapter] = {}
    for source in adapters:
        name = Path(source).name
        if name in named:
            raise AdapterError(f"two adapters are called {name!r}; name them, as NAME=PATH or in a dict.")
        named[name] = source
    return named


def _own_adapters(model: PeftModel, work: Path) -> dict[str, str | Path]:
    """Write a PeftModel's LoRAs to a folder, so that they pass the same checks as any other."""
    found: dict[str, str | Path] = {}
    for name, config in copy.copy(model.peft_config).items():
        if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
            raise AdapterError(f"adapter {name!r} of the given PeftModel is {config.peft_type}, expected LoRA.")
        model.save_pretrained(str(work / "own"), selected_adapters=[name], save_embedding_layers=False)
        found[name] = work / "own" / ("" if name == "default" else name)
    return found
