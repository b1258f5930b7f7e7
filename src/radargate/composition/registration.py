"""``import radargate`` is enough for PEFT to know bundles, without making the import of radargate slow.

PEFT's tables get stand-ins that import the real classes when PEFT first uses them: nothing of ours is imported while
PEFT itself is, so that no module of ours can meet another one half imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

PREFIX = "radar_"


class PeftName(str):
    """A name for PEFT's tables; transformers reads ``.value`` as it would of PEFT's own enum."""

    @property
    def value(self) -> str:
        """The plain text."""
        return str(self)


RADAR = PeftName("RADAR")


class StandIn:
    """Is used like the class ``module.name``, which it imports on first use.

    Args:
        module: where the class is.
        name: its name there.
    """

    def __init__(self, module: str, name: str) -> None:
        self._place = module, name

    def _real(self) -> Any:
        module, name = self._place
        return getattr(importlib.import_module(module), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make an object of the class."""
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)


def register_with_peft() -> None:
    """Register now, or as soon as somebody imports PEFT; the same for what in transformers reads a bundle's config by itself."""
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action(sys.modules[name])
    if not any(isinstance(finder, _After) for finder in sys.meta_path):
        sys.meta_path.insert(0, _After())


def _fill_tables(peft: Any) -> None:
    # PEFT's public register_peft_method refuses names outside its own enum
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[RADAR] = StandIn("radargate.composition.config", "RadarConfig")
    peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[RADAR] = StandIn("radargate.composition.model", "RadarModel")
    peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[RADAR] = PREFIX


def _find_bases(module: Any) -> None:
    """Let ``AutoModel`` and ``pipeline`` find the base that a bundle names without its folder, see `radargate.io.places`."""
    find = getattr(module, "find_adapter_config_file", None)
    if find is None or hasattr(find, "__wrapped__"):
        return

    @functools.wraps(find)
    def found(*args: Any, **kwargs: Any) -> Any:
        path = find(*args, **kwargs)
        return path and importlib.import_module("radargate.composition.bundle").config_with_place(path)

    module.find_adapter_config_file = found


_ACTIONS: dict[str, Callable[[Any], None]] = {
    "peft": _fill_tables,
    "transformers.models.auto.auto_factory": _find_bases,
    "transformers.pipelines": _find_bases,
}


class _After(importlib.abc.MetaPathFinder):
    """Finds these modules as usual, and has something done once one is loaded."""

    def __init__(self) -> None:
        self.looking: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _ACTIONS or fullname in self.looking:
            return None
        self.looking.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.looking.discard(fullname)
        # whoever only asks whether PEFT is there, as transformers does, gets the same answer and loads nothing
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _ACTIONS[fullname])
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader, action: Callable[[Any], None]) -> None:
        self.inner, self.action = inner, action

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        self.action(module)
