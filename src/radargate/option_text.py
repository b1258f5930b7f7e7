"""Options as people type them: ``NAME=VALUE``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from radargate.errors import OptionError, first_line

# YAML 1.1 takes 1e-3 for text, as it has no dot
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def read_options(pairs: Iterable[str], flag: str = "--option", example: str = "rotation_rank=4") -> dict[str, Any]:
    """``NAME=VALUE`` words → options, values read as YAML reads them (numbers, true, text).

    Args:
        pairs: the words.
        flag: what they were given with, for messages.
        example: a word that could be among them, for messages.

    Raises:
        OptionError: a word is no pair, or YAML cannot read its value.
    """
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(f"{flag} {pair}: expected NAME=VALUE, such as {example}.")
        try:
            options[name] = float(value) if _EXPONENT.fullmatch(value) else yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
            raise OptionError(
                f"{flag} {pair}: the value cannot be read ({first_line(error)}), expected one such as in {example}."
            ) from error
    return options
