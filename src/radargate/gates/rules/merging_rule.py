"""What merging rules share: options, one merge for each site, and the bank with the one expert that comes of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from radargate.errors import AdapterError
from radargate.experts.bank import ExpertBank, SiteBank
from radargate.experts.plain import plain_bank
from radargate.gates.base import OneExpert
from radargate.gates.rules.base import as_weights, check_weights
from radargate.gates.rules.calibration import calibrated, energy_ratio
from radargate.registry import bounded, one_of

SIGN_METHODS = ("total", "frequency")
CALIBRATIONS = ("none", "pico")


@dataclass(frozen=True)
class MergeOptions:
    """What all merging rules have.

    Attributes:
        weights: expert → weight; empty for the method's own default.
        rank: of the result; what 0 means each rule says.
        scaling: factor > 0 on the merged update, the λ or α of the papers.
        calibration: ``"pico"`` scales down the directions that the experts' B share before they are merged, and
            gives the result the experts' mean norm (see `calibrated`).
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    rank: int = bounded(0, least=0)
    scaling: float = bounded(1.0, above=0)
    calibration: str = one_of("none", CALIBRATIONS)

    def __post_init__(self) -> None:
        """Check every value."""
        object.__setattr__(self, "weights", as_weights(self.weights, negative=True))


@dataclass(frozen=True)
class TrimOptions(MergeOptions):
    """What rules have that keep some entries of each expert.

    Attributes:
        density: share of the entries kept, above 0 and at most 1.
        sign_method: which sign wins: that of the ``"total"``, or the more frequent one (``"frequency"``).
    """

    density: float = bounded(0.2, above=0, most=1)
    sign_method: str = one_of("total", SIGN_METHODS)


class MergingRule(OneExpert):
    """Turns all experts into one, once; what is left behaves as any single adapter.

    The experts are gone from the composition: `radargate.using` knows only the result, under the rule's name.
    """

    role = "rule"

    name: ClassVar[str]
    static = True
    architectures = ("mole",)
    why_not = "it makes one adapter of adapters that have an A and a B each."
    Options: ClassVar[type] = MergeOptions
    dtype: ClassVar[torch.dtype] = torch.float32  # at least, of the arithmetic
    zero_leaves_out: ClassVar[bool] = False  # whether an expert of weight 0 is as good as absent

    @classmethod
    def check(cls, options: Any, experts: Sequence[str], architecture: str) -> None:
        """Weights name every expert."""
        if options.weights:
            check_weights(options.weights, experts)

    @classmethod
    def default_weight(cls, options: Any, n: int) -> float:
        """Weight of each of n experts where none is given: 1/n where experts are summed, else 1."""
        return 1 / n if getattr(options, "combination", None) == "linear" else 1.0

    @classmethod
    def merge(
        cls, A: list[Tensor], B: list[Tensor], scales: list[float], weights: list[float], options: Any
    ) -> tuple[Tensor, Tensor]:
        """A [r, d_in] and B [d_out, r], scale 1, from the experts' A_i [r_i, d_in], B_i [d_out, r_i], s_i and weights."""
        raise NotImplementedError

    @classmethod
    def arrange(cls, bank: ExpertBank, options: Any, seed: int) -> ExpertBank:
        """A bank with the merged expert alone.

        Raises:
            AdapterError: fewer than two experts.
        """
        if len(bank.names) < 2:
            raise AdapterError(f"{cls.name!r} merges adapters and needs at least two, found {len(bank.names)}.")
        weights = options.weights or dict.fromkeys(bank.names, cls.default_weight(options, len(bank.names)))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The density")  # that density 1 prunes nothing is what was asked
            torch.manual_seed(seed)  # of what DARE drops
            factors = {
                name: cls._site(site, [weights[bank.names[i]] for i in site.experts], options)
                for name, site in bank.sites.items()
            }
        return plain_bank(cls.name, factors, bank, f"{cls.name} of {', '.join(bank.names)}")

    @classmethod
    def _site(cls, site: SiteBank, weights: Sequence[float], options: Any) -> tuple[Tensor, Tensor]:
        live = [i for i, weight in enumerate(weights) if weight or not cls.zero_leaves_out]
        if not live:
            return site.A[:0], site.B[:0]
        dtype = torch.promote_types(site.A.dtype, cls.dtype)
        A, B = ([t.to(dtype) for t in side] for side in zip(*(site.factors(i) for i in live), strict=True))
        B, scales = [b.T for b in B], [site.scales[i] for i in live]
        given = [weights[i] for i in live]
        if options.calibration == "none":
            down, up = cls.merge(A, B, scales, given, options)
        else:
            down, up = cls.merge(A, calibrated(B), scales, given, options)
            up = up * energy_ratio(A, B, scales, down, up)
        return down, options.scaling * up.T
