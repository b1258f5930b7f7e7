"""Radar: stretch and rotation together (Eq. 4, 13)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from radargate import ops
from radargate.errors import OptionError
from radargate.gates.base import Call
from radargate.gates.rotation import RotationOptions, Turning, size_of_down
from radargate.gates.stretch import StretchGate, StretchOptions


class RadarGate(Turning, StretchGate):
    """Stretch weights on rotated outputs: y = x W + Σ_i g_i ṽ_i.

    Source: arXiv 2505.23184, Eq. 4, 13.
    """

    role = "paper"

    @dataclass(frozen=True)
    class Options(RotationOptions, StretchOptions):
        """Options of both parts."""

        def __post_init__(self) -> None:
            """Check every value, and the combinations."""
            super().__post_init__()
            if self.gate_input == "rotated" and self.reference == "selected":
                raise OptionError(
                    "gate_input='rotated' chooses from rotated outputs, and reference='selected' rotates by the "
                    "chosen experts: a circle. Use reference='all'."
                )
            if self.renormalize == "straight_through" and self.reference == "selected":
                raise OptionError(
                    "renormalize='straight_through' keeps one expert, so reference='selected' leaves it no other to relate to. "
                    "Use reference='all'."
                )
            if not self.rotate_output and self.gate_input != "rotated":
                raise OptionError(
                    "rotate_output=False leaves the outputs unrotated, so the rotation must at least steer the weights: "
                    "use gate_input='rotated' (App. C.2 as printed), or gate='stretch'."
                )

    def rotated_logits(self, call: Call, theta: Tensor) -> Tensor:
        """Logits [..., n] from rotated outputs, which need every expert's rotation."""
        return ops.rotated_logits(
            call.h,
            call.B,
            call.ranks,
            theta,
            self.turning_codes(call, None),
            self.rotation_up.to(call.x),
            angle_norm=self.options.angle_norm,
            norm=self.options.norm,
        )

    def recipe(self) -> ops.Recipe | None:
        """Logits from the input, and one low-rank rotation from the experts' relations."""
        options, down = self.options, self.rotation_down
        usual = (
            options.gate_input == "input"
            and options.length == "one"
            and options.renormalize != "straight_through"
            and options.rotation_input == "experts"
            and options.rotate_output
        )
        if not usual or options.rotation_sharing != "site" or down is None:
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
