"""What every architecture is: a map from an input to codes, with options checked at construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from radargate.experts.bank import ExpertBank


@dataclass(frozen=True)
class Codes:
    """Every expert's output, without expanding any.

    Attributes:
        h: block codes [..., R], or dense codes [..., n, q].
        B: [R, d], or a basis [q, d].
        ranks: r_i of each block; None for dense codes.
        summed: gives Σ_j v_j [..., d], where the architecture has it cheaper than ``h B``; and the ``rounding`` of
            `radargate.ops.rotation_codes`, where h holds the chosen experts' codes only, else None.
    """

    h: Tensor
    B: Tensor
    ranks: tuple[int, ...] | None
    summed: Callable[[], tuple[Tensor, Tensor | None]] | None = None


class Architecture:
    """How experts share A and B at one site.

    Promises, which tests hold it to:

    - ``order_free``: permuting the experts leaves the output.
    - ``token_local``: a token's output needs no other token.
    - ``mergeable``: under constant weights all experts together are one LoRA.

    An instance says whether it ``settles`` codes once weights are known, and whether its codes are ``plain``, (x A) ⊙ σ in
    blocks, as one compiled call finds them.
    """

    settles: bool = False
    plain: bool = False

    order_free: ClassVar[bool] = True
    token_local: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, ranks: tuple[int, ...], options: Any) -> None:
        self.ranks, self.options = ranks, options

    @classmethod
    def check(cls, options: Any, gate: str, weighs_codes: bool) -> None:
        """Raise `OptionError` where options do not fit a gate; called before anything is loaded."""

    @classmethod
    def arrange(cls, bank: ExpertBank, options: Any) -> ExpertBank:
        """The bank as this architecture stores it.

        Raises:
            AdapterError: the adapters do not fit it.
        """
        return bank

    @classmethod
    def rows(cls, ranks: tuple[int, ...]) -> int:
        """Rows of a site's A."""
        return sum(ranks)

    def codes(self, x: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Codes:
        """Codes for x [..., d_in]; A [R, d_in], B [R, d], scale [R]."""
        raise NotImplementedError

    def early(self, x: Tensor, A: Tensor, B: Tensor, scale: Tensor, top_k: int) -> Codes:
        """The same for a gate that is about to choose ``top_k`` experts without a look at codes: they may wait for `settle`."""
        return self.codes(x, A, B, scale)

    def settle(self, codes: Codes, weights: Tensor, indices: Tensor | None) -> Codes:
        """Codes once the weights [..., k] and chosen experts are known."""
        return codes
