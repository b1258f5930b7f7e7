"""What a base model can read at all: tokens that its embeddings have, and as many as it has positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from radargate.errors import DataError, shown


@dataclass(frozen=True)
class Limits:
    """Of one base model.

    Attributes:
        tokens: rows of its embeddings; None where nobody knows.
        positions: tokens of a text at most, learned or rotary; None where it sets no limit.
    """

    tokens: int | None
    positions: int | None

    @classmethod
    def of(cls, base: Any) -> Limits:
        """The limits of a base model, composed or not."""
        base = base.get_base_model() if hasattr(base, "get_base_model") else base
        config = getattr(base, "config", None)
        text: Any = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
        positions = _positions(text)
        places = [m for name, m in base.named_modules() if name.endswith("embeddings.position_embeddings")]
        offset = getattr(places[0], "padding_idx", None) if places else None
        if positions and offset is not None:  # RoBERTa and its kind count positions from behind the padding token
            positions -= offset + 1
        try:
            rows = base.get_input_embeddings().weight.shape[0]
        except (AttributeError, NotImplementedError):
            rows = None
        return cls(rows, positions if isinstance(positions, int) and positions > 0 else None)

    def lacks(self, tokenizer: Any) -> bool:
        """Whether the tokenizer has tokens that the embeddings do not have."""
        return self.tokens is not None and len(tokenizer) > self.tokens

    def check(self, ids: Sequence[int], what: str, tokenizer: Any = None, more: int = 0) -> None:
        """Raise `DataError` where a text does not fit.

        Args:
            ids: its tokens.
            what: what it is, for the message.
            tokenizer: that made it, to name a token.
            more: tokens that are to be written after it.
        """
        largest = max(ids, default=0)
        if self.tokens is not None and largest >= self.tokens:
            name = f"{shown(tokenizer.convert_ids_to_tokens(largest), 40)!r} ({largest})" if tokenizer else str(largest)
            raise DataError(
                f"{what} has the token {name}, and the base has embeddings for {self.tokens} tokens. Resize them "
                f"(base.resize_token_embeddings({largest + 1})), or use the base's own tokenizer."
            )
        if self.positions is not None and len(ids) + more > self.positions:
            written = f" and {more} are to be written" if more else ""
            raise DataError(
                f"{what} has {len(ids)} tokens{written}, more than the {self.positions} positions of the base. Shorten it"
                f"{', or lower `max_new_tokens`' if more else ''}."
            )

    def check_rows(
        self, rows: Iterable[Any], encode: Callable[[Any], Sequence[int]], tokenizer: Any, more: Callable[[Any], int]
    ) -> None:
        """`check` every row that may not fit; most are known as short without a tokenizer.

        Args:
            rows: with ``id``, ``prompt``, ``target`` and ``choices``.
            encode: a row's longest text as tokens.
            tokenizer: that makes them.
            more: tokens to be written after a row.
        """
        every = self.lacks(tokenizer)
        for row in rows:
            letters = len(row.prompt.encode()) + max(map(len, (row.target, *(row.choices or ()))))
            if every or (self.positions is not None and letters + more(row) + AROUND > self.positions):
                self.check(encode(row), f"row {row.id}", tokenizer, more(row))


def _positions(config: Any) -> Any:
    """The positions that a config gives, as many as its rotary embeddings are stretched to (linear ones give the longer count themselves)."""
    positions, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None)
    if not positions or not isinstance(rope, dict) or rope.get("rope_type") not in ("dynamic", "yarn"):
        return positions
    return max(positions, int((rope.get("original_max_position_embeddings") or positions) * (rope.get("factor") or 1)))


AROUND = 200  # tokens that a chat template may add; a token holds at least one byte
