"""``import radargate`` is enough for PEFT to know bundles, without making the import of radargate slow.

PEFT's tables get stand-ins that import the real classes when PEFT first uses them: nothing of ours is imported while
PEFT itself is, so that no module of ours can meet another one half imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
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
    """Register now, or as soon as somebody imports PEFT."""
    if "peft" in sys.modules:
        _fill_tables(sys.modules["peft"])
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


def _fill_tables(peft: Any) -> None:
    # PEFT's public register_peft_method refuses names outside its own enum
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[RADAR] = StandIn("radargate.composition.config", "RadarConfig")
    peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[RADAR] = StandIn("radargate.composition.model", "RadarModel")
    peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[RADAR] = PREFIX


class _AfterPeft(importlib.abc.MetaPathFinder):
    """Finds ``peft`` as usual, and has radargate's tuner registered once it is loaded."""

    def __init__(self) -> None:
        self.looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "peft" or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec("peft")
        finally:
            self.looking = False
        # whoever only asks whether PEFT is there, as transformers does, gets the same answer and loads nothing
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader, finder: _AfterPeft) -> None:
        self.inner, self.finder = inner, finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        _fill_tables(module)
