"""Gates: how much of each expert a token uses, and how each output is turned."""

from radargate.registry import Registry

GATES = Registry(
    "gate",
    {
        "stretch": "radargate.gates.stretch:StretchGate",
        "rotation": "radargate.gates.rotation:RotationGate",
        "radar": "radargate.gates.radar:RadarGate",
        "mole": "radargate.gates.mole:MoLEGate",
        "nexus": "radargate.gates.nexus:NexusGate",
        "tutel": "radargate.gates.tutel:TutelGate",
        "cat": "radargate.gates.cat:CatGate",
        "phatgoose": "radargate.gates.phatgoose:PhatgooseGate",
        "signed": "radargate.gates.controls.signed:SignedGate",
        "signed-radar": "radargate.gates.signed_radar:SignedRadarGate",
        "mlp": "radargate.gates.controls.mlp:MLPGate",
        "vector": "radargate.gates.controls.vector:VectorGate",
        "lora": "radargate.gates.controls.lora:LoRAGate",
        "multiplicative": "radargate.gates.controls.multiplicative:MultiplicativeGate",
    },
)
