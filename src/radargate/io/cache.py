"""Where fetched and built things are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$RADARGATE_CACHE``, else ``~/.cache/radargate``."""
    root = os.environ.get("RADARGATE_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "radargate"
