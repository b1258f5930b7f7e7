"""What static rules share: constant weights, A and B mixed apart, and the one LoRA that equals them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from radargate.architectures.base import Codes
from radargate.errors import OptionError
from radargate.gates.base import Call, Gate
from radargate.registry import unknown_name


class StaticRule(Gate):
    """A rule whose weights are the same for every token, so that one LoRA equals it exactly.

    A subclass writes `shares`.
    """

    role = "rule"

    static = True
    acts_alone = True

    def shares(self, multipliers: Tensor | None = None, everywhere: Tensor | None = None) -> Tensor:
        """Weights [n] of the experts here, under factors [n] of these and [N] of the composition's experts."""
        raise NotImplementedError

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The same weights [..., n] for every token."""
        shares = self.shares(call.multipliers, call.all_multipliers).to(call.x)
        return shares.expand(*call.x.shape[:-1], self.site.n), None

    def lora(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Factors [r, d_in] and [r, d_out], scale 1, of the LoRA that equals this rule; A and B as the bank has them.

        Experts of weight 0 are left out; r may be 0.
        """
        return combined_lora(
            A, B, self.site.ranks, [w * s for w, s in zip(self._floats(), self.site.scales, strict=True)]
        )

    def _floats(self) -> list[float]:
        return [float(w) for w in self.shares()]


class MixedApartRule(StaticRule):
    """A rule that mixes A and B apart: A* = Σ w_i √s_i A_i, B* = Σ ± w_j √s_j B_j, with cross terms.

    Where all scales agree this is s (Σ w_i A_i)(Σ ± w_j B_j), as LoraHub and PEMs have it.
    """

    def signs(self) -> list[float]:
        """Sign of each expert's B in the mix."""
        return [1.0] * self.site.n

    @classmethod
    def needs_equal_ranks(cls, options: Any) -> bool:
        """Blocks of A are added to each other."""
        return True

    def settle(self, call: Call, weights: Tensor, indices: Tensor | None) -> Codes:
        """The mixed code in every block; the weights make it w_j Σ_i w_i h_i."""
        return mixed_codes(call.codes, weights, self.site.scales, self.signs())

    def lora(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed A* and B*, of the experts' own rank."""
        down, up = [], []
        zipped = zip(split(A, B, self.site.ranks), self._floats(), self.site.scales, self.signs(), strict=True)
        for (a, b), weight, scale, sign in zipped:
            root = math.sqrt(abs(scale))
            down.append(math.copysign(weight * root, weight * scale) * a)
            up.append(weight * root * sign * b)
        return torch.stack(down).sum(0), torch.stack(up).sum(0)


def mixed_codes(codes: Codes, weights: Tensor, scales: Sequence[float], signs: Sequence[float] | None = None) -> Codes:
    """Codes of experts whose A were mixed: ± √s_j Σ_i w_i h_i / √s_i in block j.

    Args:
        codes: block codes [..., n·r], all of one rank.
        weights: [..., n].
        scales: s_i; √ shares one between A and B.
        signs: of each B; None for all plus.
    """
    assert codes.ranks is not None
    blocks = codes.h.unflatten(-1, (len(codes.ranks), codes.ranks[0]))
    roots = [math.sqrt(abs(s)) for s in scales]
    inverse = codes.h.new_tensor([1 / root if root else 0.0 for root in roots])
    common = ((weights * inverse).unsqueeze(-1) * blocks).sum(-2, keepdim=True)
    outer = codes.h.new_tensor([r * s for r, s in zip(roots, signs or [1.0] * len(roots), strict=True)])
    return Codes((outer.unsqueeze(-1) * common).flatten(-2), codes.B, codes.ranks)


def split(A: Tensor, B: Tensor, ranks: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """A_i [r_i, d_in] and B_i [r_i, d_out] of each expert; A may be one that all share."""
    blocks = list(A.split(list(ranks))) if A.shape[0] == sum(ranks) else [A] * len(ranks)
    return list(zip(blocks, B.split(list(ranks)), strict=True))


def combined_lora(A: Tensor, B: Tensor, ranks: Sequence[int], factors: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Factors [r, d_in] and [r, d_out] with A' B' = Σ f_i A_i B_i: stacked, or over the A that all share."""
    live = [(a, f * b) for (a, b), f in zip(split(A, B, ranks), factors, strict=True) if f]
    if not live:
        return A[:0], B[:0]
    if A.shape[0] != sum(ranks):
        return A, torch.stack([b for _, b in live]).sum(0)
    return torch.cat([a for a, _ in live]), torch.cat([b for _, b in live])


def check_names(what: str, names: Sequence[str], experts: Sequence[str]) -> None:
    """Raise `OptionError` where an option names an expert that the composition does not have."""
    for name in names:
        if name not in experts:
            raise OptionError(unknown_name(f"expert in {what}", name, list(experts)))


def check_weights(weights: Mapping[str, float], experts: Sequence[str]) -> None:
    """Raise `OptionError` unless ``weights`` gives every expert, and nothing else, a number."""
    check_names("weights", list(weights), experts)
    missing = [name for name in experts if name not in weights]
    if missing:
        raise OptionError(f"weights has no value for expert {missing[0]!r}; give every expert one (0 leaves it out).")


def as_names(value: Any, what: str) -> tuple[str, ...]:
    """A tuple of names from one name or several.

    Raises:
        OptionError: it is neither.
    """
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise OptionError(f"{what} is {value!r}, expected an expert's name or a list of names.")
    return tuple(names)


def as_weights(value: Any, *, negative: bool) -> dict[str, float]:
    """A table of finite weights by name.

    Raises:
        OptionError: it is no such table, or a weight is below 0 where that has no meaning.
    """
    if not isinstance(value, Mapping):
        raise OptionError(f"weights is {value!r}, expected a table such as {{math: 0.7, law: 0.3}}.")
    table = {}
    for name, weight in value.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight)
        if not number or (weight < 0 and not negative):
            least = "" if negative else " of at least 0"
            raise OptionError(f"weights has {weight!r} for {name!r}, expected a finite number{least}.")
        table[str(name)] = float(weight)
    return table
