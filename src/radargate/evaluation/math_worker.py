"""The process that checks math answers with math-verify: one JSON line in, one out. It may be killed at any time."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any, TextIO

MEMORY = 4 << 30
LONGEST = 10_000  # characters of an answer that are read, from its end
_BARE = 300  # an expression by itself is no longer than this
_DELIMITED = re.compile(r"\$|\\boxed|\\\(|\\\[|\\fbox")
_NEXT_PROBLEM = re.compile(r"\n\s*(?:Question|Problem|Q):")


def final_part(answer: str) -> str:
    """The part of an answer that holds the result: what follows the last ``####``, else its end."""
    answer = _NEXT_PROBLEM.split(answer, maxsplit=1)[0][-LONGEST:]
    if "####" in answer:
        after = answer.rsplit("####", 1)[1].strip()
        return after.splitlines()[0].strip() if after else ""
    return answer.strip()


def is_bare(text: str) -> bool:
    """Whether a text is one expression without any sentence around it, such as ``\\frac{1}{2}`` or ``(3, 4)``."""
    if not text or "\n" in text or len(text) > _BARE or _DELIMITED.search(text):
        return False
    return not re.search(r"[^\W\d_]{2,}", re.sub(r"\\text\{[^}]*\}|\\[a-zA-Z]+", "", text))


def same_answer(gold: str, answer: str) -> bool:
    """Whether an answer says what the gold answer says, by math-verify's rules."""
    from math_verify import verify

    gold, answer = final_part(gold), final_part(answer)
    if not answer:
        return False
    if _plain(gold) == _plain(answer):
        return True
    wanted = _parse(gold if _DELIMITED.search(gold) else _boxed(gold))
    readings = [_boxed(answer)] if is_bare(answer) else [answer]
    return any(verify(wanted, _parse(reading), timeout_seconds=None) for reading in readings)


def _parse(text: str) -> Any:
    from math_verify import parse

    return parse(text, parsing_timeout=None)


def _boxed(text: str) -> str:
    return rf"\boxed{{{text}}}"


def _plain(text: str) -> str:
    """Text without markup, for answers that are words."""
    found = text.rsplit(r"\boxed{", 1)[1].rstrip("$. \n").removesuffix("}") if r"\boxed{" in text else text
    return re.sub(r"\\text\{([^}]*)\}", r"\1", found).strip().rstrip(".").lower()


def _serve(stdin: TextIO, stdout: TextIO) -> None:
    import math_verify

    assert math_verify
    print("ready", file=stdout, flush=True)
    for line in stdin:
        gold, answer = json.loads(line)
        try:
            right = bool(same_answer(gold, answer))
        except Exception:  # whatever a hostile text makes the parser raise, it is no right answer
            right = False
        print(json.dumps(right), file=stdout, flush=True)


def main() -> None:
    """Serve until standard input ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, OSError, ValueError):  # no such limits here
        pass
    logging.disable(logging.CRITICAL)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # replies alone go to the pipe
    with open(sys.stdin.fileno(), encoding="utf-8", closefd=False) as stdin:
        _serve(stdin, out)


if __name__ == "__main__":
    main()
