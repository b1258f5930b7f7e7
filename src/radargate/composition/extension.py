"""A new expert joins a trained composition, without training anything again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel

from radargate.architectures import ARCHITECTURES
from radargate.composition.composing import compose_bank, expert_bank, radar_config, radar_layers
from radargate.composition.config import gate_class
from radargate.composition.heads import kept_head
from radargate.errors import AdapterError, OptionError
from radargate.experts.bank import ExpertBank, SiteBank, load_bank
from radargate.experts.prototypes import prototypes
from radargate.gates import GATES
from radargate.gates.base import OneExpert, make_options
from radargate.gates.router.examples import check_examples
from radargate.gates.rules import RULES

# what a composition was asked to be, in the words of its config
CHOSEN = ("architecture", "architecture_options", "gate", "gate_options", "top_k", "preset", "seed")


def add_experts(
    model: PeftModel,
    adapters: Mapping[str, str | Path],
    domains: Mapping[str, Any] | None = None,
    examples: Mapping[str, Any] | None = None,
) -> PeftModel:
    """Let adapters join a composition whose gate describes experts instead of numbering them (Nexus, select by centroid).

    Args:
        model: a composition; it is unloaded, use the returned one.
        adapters: name → folder of the new ones.
        domains: new expert → domain vector, where the gate was given vectors.
        examples: new expert → prompts that it is for, where the gate is rule ``select``.

    Returns:
        The larger composition: the gate's projection is the trained one, the new experts have domain vectors of their own.
        A site that had one expert only had no gate; its new one starts untrained.

    Raises:
        OptionError: the gate cannot take new experts, or a domain vector or an example is missing.
        AdapterError: a name is taken, or the adapter is refused.
    """
    config = radar_config(model)
    kind = gate_class(config.gate)
    if not kind.joins:
        able = [name for name in (*GATES, *RULES) if gate_class(name).joins]
        raise OptionError(
            f"gate {config.gate!r} has weights for {len(config.experts)} experts and cannot take another. Gates that can: "
            f"{', '.join(able)}. Or compose all experts again and train."
        )
    kind.check_joins(make_options(kind, config.gate_options))
    prompts = check_examples(examples or {}, list(adapters)) if kind.routes_alone else None
    taken = [name for name in adapters if name in config.experts]
    if taken:
        raise AdapterError(f"expert {taken[0]!r} is in this composition already; choose another name.")
    given = config.gate_options.get("domains") == "given"
    if given and [name for name in adapters if name not in (domains or {})]:
        raise OptionError("this gate was given domain vectors; give one for each new expert: domains={name: vector}.")
    if config.architecture != "mole":
        raise OptionError(f"experts can join under architecture 'mole' only, this one is {config.architecture!r}.")
    old, gates = expert_bank(model), {layer.site: layer.gate("default") for layer in radar_layers(model)}
    head, routers = kept_head(model, "default"), [*cast(Any, model.base_model)._routers.values()]
    base: Any = model.unload()
    new = load_bank(adapters, base)
    bank = ARCHITECTURES.get(config.architecture).arrange(_joined(old, new), None)
    larger = compose_bank(base, bank, {name: getattr(config, name) for name in CHOSEN}, head=head)
    if prompts is not None:
        sums = kind.read_given(prompts, base, make_options(kind, config.gate_options))
        cast(Any, larger.base_model)._routers["default"].join(routers[0], [sums[name] for name in adapters])
    for layer in radar_layers(larger):
        gate: Any = layer.gate("default")
        before = gates.get(layer.site)
        if before is None or isinstance(before, OneExpert) or isinstance(gate, OneExpert):
            continue
        count = gate.site.n - before.site.n
        if prompts is not None:
            continue  # the router is all there is
        if count == 0:
            gate.load_state_dict(before.state_dict())
            continue
        if given:
            vectors = torch.stack([torch.as_tensor(domains[name]).flatten() for name in gate.site.experts[-count:]])  # type: ignore[index]
        elif config.gate_options.get("domains") == "random":
            vectors = gate.domain_vectors[-count:]
        else:
            there = new.sites[layer.site]
            vectors = prototypes(there.A, there.B, there.ranks)
        gate.join(before, vectors)
    return larger


def _joined(old: ExpertBank, new: ExpertBank) -> ExpertBank:
    """Both banks as one, the new experts last."""
    shift, sites = len(old.names), {}
    for name in [*old.sites, *(site for site in new.sites if site not in old.sites)]:
        parts = [(old.sites[name], 0)] if name in old.sites else []
        parts += [(new.sites[name], shift)] if name in new.sites else []
        widest = torch.promote_types(parts[0][0].A.dtype, parts[-1][0].A.dtype)
        sites[name] = SiteBank(
            A=torch.cat([site.A.to(widest) for site, _ in parts]),
            B=torch.cat([site.B.to(widest) for site, _ in parts]),
            experts=tuple(i + by for site, by in parts for i in site.experts),
            ranks=tuple(r for site, _ in parts for r in site.ranks),
            scales=tuple(s for site, _ in parts for s in site.scales),
            dtypes=tuple(d for site, _ in parts for d in site.dtypes),
        )
    return ExpertBank((*old.names, *new.names), sites, {**old.configs, **new.configs}, {**old.facts, **new.facts})
