"""A bank with one plain LoRA made from factors, such as a merge of others; `write_expert` saves it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from radargate.errors import AdapterError
from radargate.experts.bank import ExpertBank, SiteBank
from radargate.experts.names import PREFIX, exactly

_NAMES = {torch.float32: "F32", torch.float64: "F64"}


def plain_bank(name: str, factors: Mapping[str, tuple[Tensor, Tensor]], origin: ExpertBank, made: str) -> ExpertBank:
    """A bank of one expert with scale 1.

    Args:
        name: the expert's name.
        factors: site → A [r, d_in] and B [r, d_out]; sites where either is all zero are left out.
        origin: the bank it was made from; its first adapter's config gives base and task.
        made: how it was made, in words.

    Returns:
        The bank, in float32 or wider; its facts keep those of the original experts under ``merged_from``.

    Raises:
        AdapterError: nothing is left, or a value is not finite.
    """
    sites: dict[str, SiteBank] = {}
    digest = hashlib.sha256()
    for site, (A, B) in factors.items():
        if not (bool(A.any()) and bool(B.any())):
            continue
        if not (bool(torch.isfinite(A).all()) and bool(torch.isfinite(B).all())):
            raise AdapterError(f"{made}: at {site} the result is not finite. Use smaller weights.")
        dtype = torch.promote_types(origin.sites[site].A.dtype, torch.float32)
        a, b = (t.detach().to("cpu", dtype).contiguous() for t in (A, B))
        digest.update(site.encode() + a.view(torch.uint8).numpy().tobytes() + b.view(torch.uint8).numpy().tobytes())
        sites[site] = SiteBank(a, b, (0,), (a.shape[0],), (1.0,), ((_NAMES[dtype], _NAMES[dtype]),))
    if not sites:
        raise AdapterError(f"{made}: nothing is left, the result is the base model. Use other weights.")
    originals = [{"name": original, **origin.facts[original]} for original in origin.names]  # a list: order counts
    facts = {"source": made, "sha256": digest.hexdigest(), "prefix": PREFIX, "merged_from": originals}
    return ExpertBank((name,), sites, {name: _config(sites, origin)}, {name: facts})


def _config(sites: Mapping[str, SiteBank], origin: ExpertBank) -> dict[str, Any]:
    """The adapter config of such an expert: alpha = rank at every site, in patterns where ranks differ."""
    ranks = {site: bank.ranks[0] for site, bank in sites.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {exactly(site): rank for site, rank in ranks.items() if rank != usual}
    first = next(iter(origin.configs.values()))
    head = {"modules_to_save": first["modules_to_save"]} if first.get("modules_to_save") else {}
    return {
        **head,
        "peft_type": "LORA",
        "task_type": first.get("task_type"),
        "base_model_name_or_path": first.get("base_model_name_or_path"),
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": list(ranks),
        "fan_in_fan_out": any(bool(config.get("fan_in_fan_out")) for config in origin.configs.values()),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
