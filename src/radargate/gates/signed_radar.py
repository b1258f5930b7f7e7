"""Weights of any sign on rotated outputs."""

from __future__ import annotations

from dataclasses import dataclass

from radargate.errors import OptionError
from radargate.gates.controls.signed import SignedGate
from radargate.gates.rotation import RotationOptions, Turning


class SignedRadarGate(Turning, SignedGate):
    """Weights x θ + b of any sign and size, as of `signed`, on outputs rotated as by `radar`: leaves hull and span.

    Source: not in the paper; a mixture of any sign reaches the whole span of the outputs, a turn what is beyond it.
    """

    role = "gate"

    @dataclass(frozen=True)
    class Options(RotationOptions, SignedGate.Options):
        """Options of both parts."""

        def __post_init__(self) -> None:
            """Check what depends on each other."""
            if not self.rotate_output:
                raise OptionError("rotate_output=False leaves the rotation nothing to do; use gate='signed'.")
