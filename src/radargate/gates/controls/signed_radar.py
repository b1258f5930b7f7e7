"""Weights of any sign on rotated outputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from radargate.errors import OptionError
from radargate.gates.base import Call, GateSite, Turn
from radargate.gates.controls.signed import SignedGate
from radargate.gates.rotation import RotationOptions, add_rotation, turn


class SignedRadarGate(SignedGate):
    """Weights x θ + b of any sign and size, as of `signed`, on outputs rotated as by `radar`: leaves hull and span.

    Source: not in the paper; a mixture of any sign reaches the whole span of the outputs, a turn what is beyond it.
    """

    role = "gate"

    @dataclass(frozen=True)
    class Options(RotationOptions, SignedGate.Options):
        """Options of both parts."""

        def __post_init__(self) -> None:
            """Check every value."""
            SignedGate.Options.__post_init__(self)
            RotationOptions.__post_init__(self)
            if not self.rotate_output:
                raise OptionError("rotate_output=False leaves the rotation nothing to do; use gate='signed'.")

    rotation_down: nn.Parameter | None
    rotation_up: nn.Parameter

    def __init__(self, site: GateSite, options: Options) -> None:
        super().__init__(site, options)
        add_rotation(self, options)

    def turn(self, call: Call, weights: Tensor, indices: Tensor | None) -> Turn | None:
        """Angles from the chosen experts' relation to all the others."""
        return turn(self, call, indices)
