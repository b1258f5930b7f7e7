"""Names and options that users type: ``name -> "module:attribute"``, imported on first use, options and ``NAME=VALUE``."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from radargate.errors import OptionError, RadarGateError, UnknownNameError, first_line

# YAML 1.1 takes 1e-3 for text, as it has no dot
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class Registry:
    """A named set of classes, each imported only when asked for.

    Args:
        kind: the word used in messages, such as ``"gate"``.
        entries: ``name -> "module:attribute"``.
    """

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def register(self, name: str, target: str) -> None:
        """Add ``name`` for ``"module:attribute"``.

        Raises:
            RadarGateError: the name is taken by something else, or the target is not ``module:attribute``.
        """
        if ":" not in target:
            raise RadarGateError(f"{self.kind} {name!r}: target {target!r} is not of the form 'module:attribute'.")
        if self._entries.get(name, target) != target:
            raise RadarGateError(
                f"{self.kind} {name!r} is already registered as {self._entries[name]}; choose another name."
            )
        self._entries[name] = target

    def get(self, name: str) -> Any:
        """Import and return what ``name`` stands for.

        Raises:
            UnknownNameError: no such name; the message gives the nearest ones.
        """
        self.check(name)
        module, _, attribute = self._entries[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def check(self, name: str) -> None:
        """Raise `UnknownNameError` with the nearest names unless ``name`` is registered."""
        if name not in self._entries:
            raise UnknownNameError(unknown_name(self.kind, name, self.names()))

    def names(self) -> list[str]:
        """All registered names, in the order of registration."""
        return list(self._entries)

    def having(self, **attributes: Any) -> list[str]:
        """Names of the classes with these attributes, such as ``role="control"``; imports all of them."""
        return [name for name in self if all(getattr(self.get(name), key) == v for key, v in attributes.items())]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """Message for an unknown name: the nearest matches first, then all that exist."""
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}."


def option(default: Any, help: str | Callable[[], str], **typed: Any) -> Any:
    """A field of a dataclass of options that users may type: flags, help and config files are made from it.

    Args:
        default: its value where none is given; a dict is copied for each object.
        help: one phrase, or a function that makes it when it is shown, as a list of registered names needs.
        typed: how it is typed, where its name and type do not say it: ``flag``, ``metavar``, ``choices``, ``least`` (the
            smallest value), ``above`` (a value must be larger), ``repeat`` (one value each time the flag is given).
    """
    metadata = {"help": help, **typed}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def one_of(default: str, known: tuple[str, ...]) -> Any:
    """A field of a gate's, rule's or architecture's options that is one of these words; see `check_declared`."""
    return option(default, "", choices=known)


def bounded(
    default: float, *, least: float | None = None, above: float | None = None, most: float | None = None
) -> Any:
    """A field that is a number within these bounds, a whole one where its default is; see `check_declared`."""
    return option(default, "", least=least, above=above, most=most)


def check_declared(options: Any) -> None:
    """Check every value whose field declares what it may be.

    Raises:
        OptionError: it is something else.
    """
    for field in dataclasses.fields(options):
        value, typed = getattr(options, field.name), field.metadata
        if "choices" in typed and value not in typed["choices"]:
            raise OptionError(f"{field.name} is {value!r}, expected one of: {', '.join(typed['choices'])}.")
        if "least" in typed and not _fits(value, type(field.default), typed):
            bounds = [f"{word} {typed[key]:g}" for key, word in _BOUNDS.items() if typed.get(key) is not None]
            kind = "whole number" if isinstance(field.default, int) else "number"
            raise OptionError(f"{field.name} is {value!r}, expected a {kind} {' and '.join(bounds)}.")


_BOUNDS = {"least": "of at least", "above": "above", "most": "at most"}


def _fits(value: Any, kind: type, typed: Mapping[str, Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    least, above, most = (typed[key] for key in _BOUNDS)
    return (
        math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
    )


def read_options(pairs: Iterable[str], given: str = "option", example: str = "rotation_rank=4") -> dict[str, Any]:
    """``NAME=VALUE`` words → options, values read as YAML reads them (numbers, true, text).

    Args:
        pairs: the words.
        given: what they were given as, for messages.
        example: a word that could be among them, for messages.

    Raises:
        OptionError: a word is no pair, or YAML cannot read its value.
    """
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(f"{given} {pair}: expected NAME=VALUE, such as {example}.")
        try:
            options[name] = float(value) if _EXPONENT.fullmatch(value) else yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
            raise OptionError(
                f"{given} {pair}: the value cannot be read ({first_line(error)}), expected one such as in {example}."
            ) from error
    return options
