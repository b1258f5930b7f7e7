"""Rules: training-free ways to combine experts, behind the interface of a gate."""

from radargate.registry import Registry

RULES = Registry(
    "rule",
    {
        "select": "radargate.gates.rules.select:SelectRule",
        "uniform": "radargate.gates.rules.uniform:UniformRule",
        "single": "radargate.gates.rules.single:SingleRule",
        "pems": "radargate.gates.rules.pems:PEMsRule",
        "lorahub": "radargate.gates.rules.lorahub:LoraHubRule",
        "arrow": "radargate.gates.rules.arrow:ArrowRule",
        "spectr": "radargate.gates.rules.spectr:SpectrRule",
        "ties": "radargate.gates.rules.merging:TiesRule",
        "dare": "radargate.gates.rules.merging:DareRule",
        "knots": "radargate.gates.rules.spectral:KnotsRule",
        "tsv": "radargate.gates.rules.spectral:TsvRule",
        "iso": "radargate.gates.rules.spectral:IsoRule",
    },
)
