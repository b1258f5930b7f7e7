"""Where this machine's bases and adapters are, by what is in them: so that a bundle need not name a path of its maker's machine."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from radargate.io.cache import cache_folder
from radargate.io.records import write_atomic

FILE = "places.json"
MOST = 2_000  # the latest are kept


def remember(key: str | None, path: str | Path) -> None:
    """Note where something lies that has this hash; a cache folder that cannot be written is no fault."""
    if key is None or not str(path) or not Path(path).is_dir():
        return
    known, place = _known(), str(Path(path).resolve())
    if known.pop(key, None) == place:
        return  # as at every load but the first
    known[key] = place
    with contextlib.suppress(Exception):
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomic(cache_folder() / FILE, json.dumps(dict(list(known.items())[-MOST:]), indent=1))


def recall(key: str | None) -> str | None:
    """Where something of this hash was seen last, if the folder is still there."""
    path = _known().get(str(key))
    return path if path is not None and Path(path).is_dir() else None


def place_of(name: str | None, key: str | None) -> str | None:
    """The folder that a bundle means by a `public_name`, where this machine knows it; else the name."""
    if not name or "/" in name or Path(name).is_dir():
        return name
    return recall(key) or name


def public_name(name: str | None) -> str | None:
    """A base's or adapter's name without this machine's folders: the last part of a path, anything else as it is."""
    if not name or not (Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).is_dir()):
        return name
    return Path(name).resolve().name or None


def _known() -> dict[str, str]:
    try:
        found = json.loads((cache_folder() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
