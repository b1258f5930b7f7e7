"""Values that options of the operations may have."""

from __future__ import annotations

from radargate.errors import OptionError

ANGLE_NORMS = ("unit", "none", "mean", "tanh")
REFERENCES = ("all", "selected")
GATE_INPUTS = ("input", "experts", "rotated")
ROTATION_INPUTS = ("experts", "input")
NORMS = ("layer", "rms")
ROUTES = ("direct", "merged")


def check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `OptionError` unless ``value`` is one of ``known``."""
    if value not in known:
        raise OptionError(f"{option} is {value!r}, expected one of: {', '.join(known)}.")
