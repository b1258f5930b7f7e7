"""A control: stretch with as many parameters as radar, spent on a second layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from radargate.errors import OptionError
from radargate.gates.base import Call, GateSite
from radargate.gates.rotation import rotation_size
from radargate.gates.stretch import StretchGate, StretchOptions
from radargate.registry import bounded


class MLPGate(StretchGate):
    """Control: stretch weights from two layers, softmax(relu(x W_1) W_2 / τ), with as many parameters as radar."""

    role = "control"

    @dataclass(frozen=True)
    class Options(StretchOptions):
        """Options of stretch, and the hidden width.

        Attributes:
            hidden: width; 0 takes as many parameters as radar with ``rotation_rank`` has.
            rotation_rank: r_a of the radar gate that is matched.
        """

        hidden: int = bounded(0, least=0)
        rotation_rank: int = bounded(8, least=1)

        def __post_init__(self) -> None:
            """Check every value."""
            super().__post_init__()
            if self.gate_input != "input":
                raise OptionError(f"gate_input is {self.gate_input!r}, but gate='mlp' looks at the input only.")

    def __init__(self, site: GateSite, options: Options) -> None:
        super().__init__(site, options)
        matched = site.n * site.d_in + rotation_size(site, options.rotation_rank)
        hidden = options.hidden or max(1, round(matched / (site.d_in + site.n)))
        self.softmax_theta = self.normal(site.n, hidden, std=options.init_std)
        self.softmax_hidden = self.normal(hidden, site.d_in, std=site.d_in**-0.5, salt=1)

    def logits(self, call: Call) -> Tensor:
        """Logits [..., n]."""
        hidden = (call.x @ self.softmax_hidden.to(call.x).T).relu()
        return hidden @ self.softmax_theta.to(call.x).T
