"""RadarGate: compose many trained LoRA adapters into one model with a gate that stretches and rotates them.

Importing this package is quick; what needs torch is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from radargate.composition.registration import register_with_peft

_PUBLIC = {
    "train": "radargate.api",
    "evaluate": "radargate.api",
    "generate": "radargate.api",
    "choose": "radargate.comparison.choosing.run",
    "compare": "radargate.api",
    "export": "radargate.api",
    "GateTraining": "radargate.training.options",
    "shipped_experts": "radargate.experts.shipped",
    "compose": "radargate.composition.composing",
    "load": "radargate.composition.composing",
    "add_experts": "radargate.composition.extension",
    "domain_vectors": "radargate.experts.domains",
    "describe_texts": "radargate.training.texts",
    "describe_norms": "radargate.training.norms",
    "using": "radargate.composition.layer",
    "RadarConfig": "radargate.composition.config",
    "RadarModel": "radargate.composition.model",
    "DenseStart": "radargate.training.schedule",
    "parameter_groups": "radargate.training.schedule",
    "save_as_lora": "radargate.exporting.exact",
    "fit_lora": "radargate.exporting.fit",
    "merge_adapters": "radargate.gates.rules.merging",
    "write_expert": "radargate.experts.bank",
    "expert_bank": "radargate.composition.composing",
    "trace": "radargate.explorer.trace",
    "RadarGateError": "radargate.errors",
}
_MODULES = ("ops",)

__all__ = [*_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"radargate.{name}")
    raise AttributeError(f"module 'radargate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_peft()
