"""The configuration of a composition, saved as ``adapter_config.json`` of its bundle."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig

from radargate.architectures import ARCHITECTURES
from radargate.composition.bundle import write_lock
from radargate.composition.card import write_card
from radargate.composition.heads import kept_modules
from radargate.composition.registration import RADAR
from radargate.errors import BundleError, OptionError, shown
from radargate.experts.bank import check_equal_ranks
from radargate.experts.files import DTYPES, MAX_RANK
from radargate.gates import GATES
from radargate.gates.base import make_options
from radargate.gates.rules import RULES
from radargate.io.disk import writing
from radargate.io.places import place_of, public_name, remember

PRESETS: dict[str, dict[str, Any]] = {
    # the printed form: unscaled relation, kept weights that sum to 1 for every k (Eq. 1), top-k from the first step. Bundles
    # hold the options that a preset meant when they were made, and load with these
    "paper": {"angle_norm": "none", "renormalize": "always"},
}

DEFAULT_TOP_K = 2
_DAMAGED = "The file is damaged or is not a RadarGate bundle. Download it again, or run compose again."


@dataclass
class RadarConfig(PeftConfig):
    """What a composition is made of.

    `radargate.compose` fills it; the site table says which experts stand at which linear layer, so that layers can
    be built before any weight is read.
    """

    architecture: str = field(default="mole", metadata={"help": "How experts share A and B."})
    architecture_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the architecture."}
    )
    gate: str = field(default="radar", metadata={"help": "Gate or rule that weighs and turns experts."})
    gate_options: dict[str, Any] = field(default_factory=dict, metadata={"help": "Options of the gate."})
    top_k: int | None = field(default=DEFAULT_TOP_K, metadata={"help": "Experts kept per token; None keeps all."})
    preset: str | None = field(default=None, metadata={"help": "'paper' for the printed form."})
    seed: int = field(default=0, metadata={"help": "Seed of the gates' initial values."})
    experts: list[str] = field(default_factory=list, metadata={"help": "Names of the experts, in order."})
    expert_configs: dict[str, Any] = field(default_factory=dict, metadata={"help": "Their adapter configs."})
    expert_facts: dict[str, Any] = field(default_factory=dict, metadata={"help": "Their sources and hashes."})
    sites: dict[str, Any] = field(default_factory=dict, metadata={"help": "Site → experts, ranks, scales, dtypes."})
    base_fingerprint: str | None = field(default=None, metadata={"help": "Of the base the gates belong to."})
    gate_only: bool = field(
        default=False, metadata={"help": "Save gates without experts; sources and hashes name them."}
    )
    modules_to_save: Any = field(
        default=None, metadata={"help": "Modules of the base that the experts' head replaces."}
    )
    target_modules: Any = field(default=None, metadata={"help": "Unused: the site table decides."})

    def __post_init__(self) -> None:
        """Check names and options."""
        super().__post_init__()
        self.peft_type = RADAR
        self.base_model_name_or_path = place_of(self.base_model_name_or_path, self.base_fingerprint)
        self.modules_to_save = kept_modules(self.modules_to_save, self.task_type)
        if not self.experts:
            return  # PEFT builds empty configs while it reads files
        check_table(self)
        arrangement = ARCHITECTURES.get(self.architecture)
        arrangement_options = make_options(arrangement, self.architecture_options)
        if self.preset is not None and self.preset not in PRESETS:
            raise OptionError(f"preset is {self.preset!r}, expected one of: {', '.join(PRESETS)}.")
        kind = gate_class(self.gate)
        made = make_options(kind, self.gate_options)
        check_works_under(self.gate, self.architecture)
        arrangement.check(arrangement_options, self.gate, kind.weighs_codes(made))
        kind.check(made, list(self.adapter_facts()), self.architecture)
        if kind.needs_equal_ranks(made):
            check_equal_ranks(
                self.gate,
                {
                    site: dict(zip((self.experts[i] for i in entry["experts"]), entry["ranks"], strict=True))
                    for site, entry in self.sites.items()
                },
            )
        if self.top_k is not None and not 1 <= self.top_k <= len(self.experts):
            raise OptionError(f"top_k is {self.top_k}, expected 1 to {len(self.experts)}, the number of experts.")

    def adapter_facts(self) -> dict[str, dict[str, Any]]:
        """Name → facts of every adapter it was composed from, in order, also of those merged into one expert."""
        # by the list of names: PEFT sorts the keys of tables when it writes a config
        found: dict[str, dict[str, Any]] = {}
        for name in self.experts:
            facts = self.expert_facts.get(name, {})
            found.update({f["name"]: f for f in facts["merged_from"]} if "merged_from" in facts else {name: facts})
        return found

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the config, then the lock file and model card (PEFT calls this after the weights are written).

        Raises:
            StorageError: the folder cannot be written; no half-written config is left there.
        """
        folder = Path(save_directory)
        with writing("the bundle", folder, "choose another folder"):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".config-") as work:
                PeftConfig.save_pretrained(public := self.public(), work, **kwargs)
                os.replace(Path(work) / "adapter_config.json", folder / "adapter_config.json")
            write_lock(folder, public)
            write_card(folder, public, self)

    def public(self) -> RadarConfig:
        """A copy without folders of this machine, which notes for itself where they are."""
        copy = dataclasses.replace(self)
        remember(self.base_fingerprint, self.base_model_name_or_path or "")
        copy.base_model_name_or_path = public_name(self.base_model_name_or_path)
        copy.expert_facts = {name: _public_facts(facts) for name, facts in self.expert_facts.items()}
        copy.expert_configs = {
            name: {**told, "base_model_name_or_path": public_name(told.get("base_model_name_or_path"))}
            for name, told in self.expert_configs.items()
        }
        return copy


def _public_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """What is known of an expert, by name, hash and, where it came from there, Hub id."""
    source, kept = str(facts.get("source", "")), dict(facts)
    if Path(source).is_absolute() or Path(source).is_dir():
        remember(facts.get("sha256"), source)
        kept.pop("source", None)
    if "merged_from" in facts:
        kept["merged_from"] = [_public_facts(each) for each in facts["merged_from"]]
    return kept


def check_table(config: RadarConfig) -> None:
    """Check the kinds of all fields and the site table, which may come from a stranger's file.

    Raises:
        BundleError: a field, or the entry of a site, is none that a composition could have written.
    """
    kinds: dict[str, Any] = {
        "architecture": str,
        "architecture_options": dict,
        "gate": str,
        "gate_options": dict,
        "top_k": (int, type(None)),
        "preset": (str, type(None)),
        "seed": int,
        "experts": list,
        "expert_configs": dict,
        "expert_facts": dict,
        "sites": dict,
        "base_fingerprint": (str, type(None)),
        "base_model_name_or_path": (str, type(None)),
        "gate_only": bool,
        "modules_to_save": list,
    }
    for name, kind in kinds.items():
        value = getattr(config, name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise BundleError(f"the bundle's config has {name} = {shown(value, 60)}. {_DAMAGED}")
    names = config.experts
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise BundleError(f"the bundle's config has experts = {shown(names, 60)}, expected different names. {_DAMAGED}")
    for facts in config.expert_facts.values():
        merged = facts.get("merged_from", []) if isinstance(facts, dict) else None
        if not isinstance(merged, list) or not all(
            isinstance(f, dict) and isinstance(f.get("name"), str) for f in merged
        ):
            raise BundleError(f"the bundle's config has expert_facts = {shown(facts, 60)}. {_DAMAGED}")
    for site, entry in config.sites.items():
        if fault := _entry_fault(entry, len(names)):
            raise BundleError(f"the bundle's config says of site {shown(site)}: {fault}. {_DAMAGED}")


def _entry_fault(entry: Any, experts: int) -> str | None:
    """Why an entry of the site table cannot be, in words."""
    if not isinstance(entry, dict):
        return shown(entry, 60)
    found: dict[str, Any] = {key: entry.get(key) for key in ("experts", "ranks", "scales", "dtypes", "shape")}
    for key, value in found.items():
        if not isinstance(value, (list, tuple)):
            return f"{key} = {shown(value, 60)}"
    here, ranks, scales, dtypes, shape = (list(value) for value in found.values())

    def whole(value: Any, low: int, high: int) -> bool:
        return type(value) is int and low <= value <= high

    if not here or not all(whole(i, 0, experts - 1) for i in here) or sorted(set(here)) != here:
        return f"experts = {shown(here, 60)} of {experts}"
    if len(ranks) != len(here) or not all(whole(r, 1, MAX_RANK) for r in ranks):
        return f"ranks = {shown(ranks, 60)}"
    if len(scales) != len(here) or not all(type(s) in (int, float) and abs(s) < math.inf for s in scales):
        return f"scales = {shown(scales, 60)}"
    pairs = [tuple(pair) if isinstance(pair, (list, tuple)) else () for pair in dtypes]
    if len(pairs) != len(here) or not all(len(p) == 2 and all(d in list(DTYPES) for d in p) for p in pairs):
        return f"dtypes = {shown(dtypes, 60)}"
    if len(shape) != 2 or not all(whole(side, 1, 1 << 31) for side in shape):
        return f"shape = {shown(shape, 60)}"
    return None


def gate_class(name: str) -> Any:
    """The class of a gate or rule.

    Raises:
        UnknownNameError: neither has that name.
    """
    if name in RULES:
        return RULES.get(name)
    return GATES.get(name)


def check_composition_name(name: str) -> None:
    """Raise `OptionError` where PyTorch cannot call a module so."""
    if not isinstance(name, str) or not name or "." in name:
        raise OptionError(
            f"adapter_name is {shown(repr(name), 40)}, expected a text without a dot, as PyTorch wants of a module's name. Choose "
            "another name for the composition."
        )


def check_top_k(top_k: int | None, adapters: int) -> int | None:
    """The experts that are kept a token: ``top_k``, or one where the default meets a single adapter; None keeps all.

    Raises:
        OptionError: there are fewer adapters.
    """
    if top_k is not None and not 1 <= top_k <= max(adapters, DEFAULT_TOP_K):
        raise OptionError(f"top_k is {top_k}, expected 1 to {adapters}, the number of adapters.")
    return top_k and min(top_k, adapters)


def check_works_under(gate: str, architecture: str) -> None:
    """Raise `OptionError` where a gate or rule has no meaning under an architecture; the message says why."""
    kind = gate_class(gate)
    if kind.architectures is not None and architecture not in kind.architectures:
        raise OptionError(
            f"{gate!r} does not work under architecture {architecture!r}: {kind.why_not} It works under: "
            f"{', '.join(kind.architectures)}."
        )


def preset_options(preset: str | None, gate: str, options: dict[str, Any]) -> dict[str, Any]:
    """A preset's gate options where the gate has them, overridden by ``options``."""
    if preset is None:
        return dict(options)
    if preset not in PRESETS:
        raise OptionError(f"preset is {preset!r}, expected one of: {', '.join(PRESETS)}.")
    known = gate_class(gate).Options.__dataclass_fields__
    return {**{key: value for key, value in PRESETS[preset].items() if key in known}, **options}
