"""The key–value cache of a call: transformers 5.24 gave it another name, so it is found by its kind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from transformers import Cache


def cache_in(held: Any) -> Any:
    """The cache among a call's inputs by name, or in a model's outputs; None where there is none."""
    values: Iterable[Any] = held.values() if isinstance(held, Mapping) else held if isinstance(held, tuple) else ()
    return next((value for value in values if isinstance(value, Cache)), None)


def cache_name(accepted: Collection[str]) -> str:
    """What a model calls its cache, from the names that its ``forward`` accepts."""
    return "cache" if "cache" in accepted else "past_key_values"
