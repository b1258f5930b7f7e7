"""The configuration of a composition, saved as ``adapter_config.json`` of its bundle."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig

from radargate.architectures import ARCHITECTURES
from radargate.bundle import write_card, write_lock
from radargate.errors import OptionError
from radargate.experts.bank import check_equal_ranks
from radargate.gates import GATES
from radargate.gates.base import make_options
from radargate.registration import RADAR
from radargate.rules import RULES
from radargate.storage import writing

PRESETS: dict[str, dict[str, Any]] = {
    # the printed form: unscaled relation, top-k from the first step
    "paper": {"angle_norm": "none"},
}


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
    top_k: int | None = field(default=2, metadata={"help": "Experts kept per token; None keeps all."})
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
    target_modules: Any = field(default=None, metadata={"help": "Unused: the site table decides."})

    def __post_init__(self) -> None:
        """Check names and options."""
        super().__post_init__()
        self.peft_type = RADAR
        if not self.experts:
            return  # PEFT builds empty configs while it reads files
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
            check_equal_ranks(self.gate, {
                site: dict(zip((self.experts[i] for i in entry["experts"]), entry["ranks"], strict=True))
                for site, entry in self.sites.items()
            })  # fmt: skip
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
                super().save_pretrained(work, **kwargs)
                os.replace(Path(work) / "adapter_config.json", folder / "adapter_config.json")
            write_lock(folder, self)
            write_card(folder, self)


def gate_class(name: str) -> Any:
    """The class of a gate or rule.

    Raises:
        UnknownNameError: neither has that name.
    """
    if name in RULES:
        return RULES.get(name)
    return GATES.get(name)


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
