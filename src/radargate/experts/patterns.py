"""Patterns from strangers: parsed before they are used, and run against a clock where they could run away."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from radargate.errors import AdapterError, shown

try:  # the regex parser moved in Python 3.11
    from re import _constants as sre_constants  # type: ignore[attr-defined]
    from re import _parser as sre_parse  # type: ignore[attr-defined]
except ImportError:  # pragma: no cover
    import sre_constants
    import sre_parse

MAX_PATTERN = 2_000
SECONDS = 0.7  # of processor time for one adapter's names; real patterns take milliseconds
PATIENCE = 30.0  # of a clock on the wall, where a system cannot count the former
QUICK = 2e6  # steps of a backtracking match that may be taken here, about 50 ms
_ONE = {sre_constants.LITERAL, sre_constants.NOT_LITERAL, sre_constants.ANY, sre_constants.IN}
_MANY = 99
_STOPPED = -int(getattr(signal, "SIGVTALRM", 26))
# the process that a doubtful pattern is tried in: nothing but the standard library, and little memory
_TRY = """
import json, re, signal, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, ValueError, OSError):
    pass
patterns, names, seconds = json.load(sys.stdin)
if hasattr(signal, "setitimer"):
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)  # nobody handles its signal, so that it ends this process
for whole, text in patterns:
    pattern = re.compile(text)
    use = pattern.fullmatch if whole else pattern.match
    for name in names:
        use(name)
"""


def check_pattern(pattern: str, where: str) -> None:
    """Refuse a regular expression that is invalid, very long, or could take exponential time.

    Raises:
        AdapterError: with the field that holds it.
    """
    if len(pattern) > MAX_PATTERN:
        raise AdapterError(
            f"{where} is a pattern of {len(pattern):,} characters; the limit is {MAX_PATTERN:,}. "
            "List the module names instead."
        )
    if _nested_repeat(_parsed(pattern, where), inside=False):
        raise AdapterError(
            f"{where} is {shown(pattern, 60)!r}, a pattern with a repeat inside a repeat, which can take exponential "
            "time. List the module names instead."
        )


def check_time(patterns: Sequence[tuple[bool, str]], names: Sequence[str], where: str) -> None:
    """Refuse patterns that take too long on these names; doubtful ones are tried in a process that is killed in time.

    Args:
        patterns: (whole, pattern) pairs, matched against a whole name or from its start.
        names: what they will be matched against.
        where: the fields that hold them.

    Raises:
        AdapterError: they need more than `SECONDS`, or cannot be used.
    """
    doubtful, spent = [], 0.0
    for whole, pattern in patterns:
        degree = min(_choices(_parsed(pattern, where)), 20)
        steps = sum(float(len(name)) ** degree for name in names)
        if spent + steps > QUICK:
            doubtful.append((whole, pattern))
        else:
            spent += steps
    if not doubtful:
        return
    command = [sys.executable, "-I", "-S", "-c", _TRY]
    try:
        result = subprocess.run(
            command,
            input=json.dumps([doubtful, list(names), SECONDS]),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        code, said = result.returncode, result.stderr.splitlines()
    except subprocess.TimeoutExpired:
        code, said = _STOPPED, []
    if code == _STOPPED:
        raise AdapterError(
            f"{where}: matching {shown(doubtful[0][1], 60)!r} against the adapter's {len(names)} layers took over "
            f"{SECONDS:g} s and was stopped. List the module names instead."
        )
    if code != 0:
        raise AdapterError(
            f"{where}: {shown(doubtful[0][1], 60)!r} could not be matched against the adapter's layers "
            f"({shown((said or ['killed'])[-1])}). List the module names instead."
        )


def _parsed(pattern: str, where: str) -> Any:
    try:
        with warnings.catch_warnings():  # what Python thinks of a stranger's style is no line for the user
            warnings.simplefilter("ignore")
            return sre_parse.parse(pattern)
    except (re.error, RecursionError, OverflowError, ValueError, MemoryError) as error:
        raise AdapterError(
            f"{where} is not a valid pattern: {shown(str(error))}. List the module names instead."
        ) from error


def _nested_repeat(parsed: Any, inside: bool) -> bool:
    for operation, argument in parsed:
        if operation in (sre_constants.MAX_REPEAT, sre_constants.MIN_REPEAT):
            _, high, body = argument
            unbounded = high > 32
            if (unbounded and inside) or _nested_repeat(body, inside or unbounded):
                return True
        elif operation is sre_constants.SUBPATTERN:
            if _nested_repeat(argument[-1], inside):
                return True
        elif operation is sre_constants.BRANCH:
            if any(_nested_repeat(branch, inside) for branch in argument[1]):
                return True
        elif operation in (sre_constants.ASSERT, sre_constants.ASSERT_NOT) and _nested_repeat(argument[1], inside):
            return True
    return False


def _choices(parsed: Any) -> int:
    """How many places a match may come back to, as the degree of its time in a name's length; many where unsure."""
    count = 0
    for operation, argument in parsed:
        if operation in (sre_constants.MAX_REPEAT, sre_constants.MIN_REPEAT):
            _, high, body = argument
            if high <= 1:
                count += 1 + _choices(body)
            else:
                count += 1 if len(body) == 1 and body[0][0] in _ONE else _MANY
        elif operation is sre_constants.SUBPATTERN:
            count += _choices(argument[-1])
        elif operation is sre_constants.BRANCH:
            count += 1 + sum(_choices(branch) for branch in argument[1])
        elif operation not in _ONE and operation is not sre_constants.AT:
            return _MANY
    return count
