"""Architectures: how an input becomes per-expert codes over one shared basis."""

from radargate.registry import Registry

ARCHITECTURES = Registry(
    "architecture",
    {
        "mole": "radargate.architectures.mole:MoLE",
        "hydra": "radargate.architectures.hydra:Hydra",
        "omoe": "radargate.architectures.omoe:OMoE",
    },
)
