"""Rules: training-free ways to combine experts, behind the interface of a gate."""

from radargate.registry import Registry

RULES = Registry(
    "rule",
    {
        "uniform": "radargate.rules.uniform:UniformRule",
        "single": "radargate.rules.single:SingleRule",
        "pems": "radargate.rules.pems:PEMsRule",
        "lorahub": "radargate.rules.lorahub:LoraHubRule",
        "arrow": "radargate.rules.arrow:ArrowRule",
        "ties": "radargate.rules.merging:TiesRule",
        "dare": "radargate.rules.merging:DareRule",
    },
)
