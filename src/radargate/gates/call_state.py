"""What holds for one call of a composed model, in one thread or task: the only context variable there is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

Masks = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class CallState:
    """Everything that layers and gates may know beside their input.

    Attributes:
        masks: real tokens, [batch, length] each: of the model's input, and of the decoder where there are two stacks;
            None outside of a call of the composed model.
        experts: what `radargate.using` set: expert → factor on its weight; None where nothing is changed.
        text: what was read so far, where a composition has a router (`TextSoFar`).
        answers: [batch, length] True for tokens of the model's input that are no part of a prompt; None where all are, or nobody
            knows better.
        noted: what this forward has gathered for auxiliary losses: (gate, statistic); None outside of training.
        plain: the base reads for itself, without any composition.
        depth: blocks that are open around here.
    """

    masks: Masks | None = None
    experts: Mapping[str, float] | None = None
    text: Any = None
    answers: Tensor | None = None
    noted: list[Any] | None = None
    plain: bool = False
    depth: int = 0


NOTHING = CallState()


class CallVariable:
    """A `CallState` for the calls inside a block, per context (thread or task).

    torch.compile cannot trace a ContextVar. It can guard on the plain counter ``blocks``, which is 0 outside of any call.
    """

    def __init__(self) -> None:
        self._value: ContextVar[CallState] = ContextVar("radargate_call", default=NOTHING)
        self._lock = threading.Lock()
        self.blocks = 0

    def get(self) -> CallState:
        """The state here and now."""
        return self._value.get() if self.blocks else NOTHING

    def open(self, **changes: Any) -> Token[CallState]:
        """Begin a block in which some fields differ."""
        state = self._value.get()
        with self._lock:
            self.blocks += 1
        return self._value.set(replace(state, depth=state.depth + 1, **changes))

    def close(self, token: Token[CallState]) -> None:
        """End it, and what an interruption left open inside: the state is as it was before."""
        inside = self._value.get().depth
        self._value.reset(token)
        with self._lock:
            self.blocks -= inside - self._value.get().depth

    @contextlib.contextmanager
    def block(self, **changes: Any) -> Iterator[None]:
        """`open` and `close` around a with block."""
        token = self.open(**changes)
        try:
            yield
        finally:
            self.close(token)


current = CallVariable()
