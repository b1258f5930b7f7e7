"""Radar: stretch and rotation together (Eq. 4, 13)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from radargate import ops
from radargate.errors import OptionError
from radargate.gates.base import Call, GateSite, Turn
from radargate.gates.rotation import RotationOptions, add_rotation, site_codes, size_of_down, turn
from radargate.gates.stretch import StretchGate, StretchOptions


class RadarGate(StretchGate):
    """Stretch weights on rotated outputs: y = x W + Σ_i g_i ṽ_i.

    Source: arXiv 2505.23184, Eq. 4, 13.
    """

    role = "paper"

    @dataclass(frozen=True)
    class Options(RotationOptions, StretchOptions):
        """Options of both parts."""

        def __post_init__(self) -> None:
            """Check every value, and the combinations."""
            StretchOptions.__post_init__(self)
            RotationOptions.__post_init__(self)
            if self.gate_input == "rotated" and self.reference == "selected":
                raise OptionError(
                    "gate_input='rotated' chooses from rotated outputs, and reference='selected' rotates by the "
                    "chosen experts: a circle. Use reference='all'."
                )
            if not self.rotate_output and self.gate_input != "rotated":
                raise OptionError(
                    "rotate_output=False leaves the outputs unrotated, so the rotation must at least steer the weights: "
                    "use gate_input='rotated' (App. C.2 as printed), or gate='stretch'."
                )

    rotation_down: nn.Parameter | None
    rotation_up: nn.Parameter

    def __init__(self, site: GateSite, options: Options) -> None:
        super().__init__(site, options)
        add_rotation(self, options)

    def logits(self, call: Call) -> Tensor:
        """Logits [..., n]; those of rotated outputs need every expert's rotation."""
        if self.options.gate_input != "rotated":
            return super().logits(call)
        return ops.rotated_logits(
            call.h,
            call.B,
            call.ranks,
            self.softmax_theta.to(call.x),
            site_codes(self, call, None),
            self.rotation_up.to(call.x),
            angle_norm=self.options.angle_norm,
            norm=self.options.norm,
        )

    def turn(self, call: Call, weights: Tensor, indices: Tensor | None) -> Turn | None:
        """Angles from the chosen experts' relation to all the others."""
        return turn(self, call, indices) if self.options.rotate_output else None

    def recipe(self) -> ops.Recipe | None:
        """Logits from the input, and one low-rank rotation from the experts' relations."""
        options, down = self.options, self.rotation_down
        usual = (
            options.gate_input == "input"
            and options.length == "one"
            and options.rotation_input == "experts"
            and options.rotate_output
        )
        if not usual or options.rotation_sharing != "site" or down is None or not self.goes_as(RadarGate):
            return None
        return ops.Recipe(
            self.softmax_theta,
            options.temperature,
            options.renormalize,
            down,
            self.rotation_up,
            size_of_down(down),
            options.angle_norm,
            options.reference,
        )
