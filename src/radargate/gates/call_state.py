"""Values that hold for the calls inside a block, in one thread or task."""

from __future__ import annotations

import threading
from contextvars import ContextVar, Token
from typing import Generic, TypeVar

T = TypeVar("T")


class PerCall(Generic[T]):
    """A value for the calls inside a block, per context (thread or task); None outside.

    torch.compile cannot look into a `ContextVar`, but it sees, and watches, that no block is open anywhere.
    """

    def __init__(self, name: str) -> None:
        self._value: ContextVar[T | None] = ContextVar(name, default=None)
        self._lock = threading.Lock()
        self.blocks = 0

    def get(self) -> T | None:
        """The value here and now."""
        return self._value.get() if self.blocks else None

    def set(self, value: T | None) -> Token[T | None]:
        """Open a block."""
        with self._lock:
            self.blocks += 1
        return self._value.set(value)

    def reset(self, token: Token[T | None]) -> None:
        """Close it."""
        self._value.reset(token)
        with self._lock:
            self.blocks -= 1
