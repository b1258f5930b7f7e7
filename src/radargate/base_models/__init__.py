"""Base models by name: loading, the dtype, the cache of de-quantised ones. Imports io."""

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    """Names that stood here before, for one version."""
    if name not in ("load_base", "load_tokenizer"):
        raise AttributeError(f"module 'radargate.base_models' has no attribute {name!r}")
    from radargate.base_models import loading

    warnings.warn(
        f"radargate.base_models.{name} is now in radargate.base_models.loading.", DeprecationWarning, stacklevel=2
    )
    return getattr(loading, name)
