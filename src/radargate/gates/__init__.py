"""Gates: trainable maps from an input and its codes to weights, chosen experts and rotation codes."""

from radargate.registry import Registry

GATES = Registry(
    "gate",
    {
        "stretch": "radargate.gates.stretch:StretchGate",
        "rotation": "radargate.gates.rotation:RotationGate",
        "radar": "radargate.gates.radar:RadarGate",
    },
)
