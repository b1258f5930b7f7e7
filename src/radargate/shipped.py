"""The name of before for `radargate.shipped_experts`."""

import warnings

from radargate.experts.shipped import BASE, shipped_experts

__all__ = ["BASE", "shipped_experts"]
warnings.warn(
    "radargate.shipped is now radargate.experts.shipped; use radargate.shipped_experts.",
    DeprecationWarning,
    stacklevel=2,
)
