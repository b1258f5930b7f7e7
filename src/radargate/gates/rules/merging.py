"""TIES and DARE: all experts become one LoRA before anything runs, by the very functions of PEFT.

PEFT's ``add_weighted_adapter`` calls the same functions. It needs the adapters inside a model, though, and copies
``use_rslora`` from the first one into the result, which is then √r times too large; here each scale is counted once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft.utils.merge_utils import dare_linear, dare_ties, ties
from torch import Tensor, nn

from radargate import ops
from radargate.base_models.loading import meta_base
from radargate.errors import AdapterError, OptionError
from radargate.experts.adapters import read_adapter
from radargate.experts.bank import ExpertBank, SiteBank, check_equal_ranks, header_ranks, load_bank, write_expert
from radargate.experts.heads import choose_head
from radargate.experts.plain import plain_bank
from radargate.gates.base import OneExpert, make_options
from radargate.gates.rules.base import as_weights, check_weights

SPACES = ("auto", "factors", "delta")
SIGN_METHODS = ("total", "frequency")


@dataclass(frozen=True)
class MergeOptions:
    """What both have.

    Attributes:
        density: share of the entries kept, above 0 and at most 1.
        weights: expert → weight; empty for the method's own default.
        space: ``"factors"`` treats A and B apart (PEFT's ``ties``, ``dare_linear``; one rank, cross terms);
            ``"delta"`` the product B A, cut back to ``rank`` by SVD (PEFT's ``…_svd``); ``"auto"`` the first where all
            ranks of a site agree, else the second.
        rank: of the result in ``"delta"``; 0 for the largest of the experts' at the site.
        sign_method: which sign wins: that of the ``"total"``, or the more frequent one (``"frequency"``).
    """

    density: float = 0.2
    weights: Mapping[str, float] = field(default_factory=dict)
    space: str = "auto"
    rank: int = 0
    sign_method: str = "total"

    def __post_init__(self) -> None:
        """Check every value."""
        if isinstance(self.density, bool) or not 0 < self.density <= 1:
            raise OptionError(f"density is {self.density}, expected a share above 0 and at most 1.")
        ops.check_choice("space", self.space, SPACES)
        ops.check_choice("sign_method", self.sign_method, SIGN_METHODS)
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 0:
            raise OptionError(f"rank is {self.rank!r}, expected a whole number of at least 0.")
        object.__setattr__(self, "weights", as_weights(self.weights, negative=True))


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

    @classmethod
    def check(cls, options: Any, experts: Sequence[str], architecture: str) -> None:
        """Weights name every expert."""
        if options.weights:
            check_weights(options.weights, experts)

    @classmethod
    def needs_equal_ranks(cls, options: Any) -> bool:
        """Where A and B are treated apart."""
        return options.space == "factors"

    @classmethod
    def combine(cls, tensors: list[Tensor], weights: Tensor, options: Any) -> Tensor:
        """One tensor from those of the experts at a site."""
        raise NotImplementedError

    @classmethod
    def default_weight(cls, options: Any, n: int) -> float:
        """Weight of each of n experts where none is given."""
        return 1.0

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
        dtype = torch.promote_types(site.A.dtype, torch.float32)
        pairs = [site.factors(i) for i in range(len(site.ranks))]
        A, B = [a.to(dtype) for a, _ in pairs], [b.T.to(dtype) for _, b in pairs]
        together = options.space == "factors" or (options.space == "auto" and len(set(site.ranks)) == 1)
        if together:
            scaled = [w * s for w, s in zip(weights, site.scales, strict=True)]
            roots = [math.sqrt(abs(f)) for f in scaled]
            signed = [math.copysign(r, f) for r, f in zip(roots, scaled, strict=True)]
            a = cls.combine(A, torch.tensor(signed, dtype=dtype), options)
            return a, cls.combine(B, torch.tensor(roots, dtype=dtype), options).T
        deltas = [s * (b @ a) for a, b, s in zip(A, B, site.scales, strict=True)]
        whole = cls.combine(deltas, torch.tensor(weights, dtype=dtype), options)
        left, values, right = torch.linalg.svd(whole, full_matrices=False)
        rank = min(options.rank or max(site.ranks), len(values))
        return right[:rank], (left[:, :rank] * values[:rank]).T


class TiesRule(MergingRule):
    """Keep the largest entries of each expert, elect a sign for each entry, average those that have it.

    Density 0.2 is the paper's top 20 %; weights 1 its λ = 1.

    Source: TIES-Merging (NeurIPS 2023), Alg. 1; PEFT's ``ties`` and ``ties_svd``.
    """

    name = "ties"
    Options = MergeOptions

    @classmethod
    def combine(cls, tensors: list[Tensor], weights: Tensor, options: Any) -> Tensor:
        """Trim, elect, merge."""
        return ties(tensors, weights, options.density, options.sign_method)


class DareRule(MergingRule):
    """Drop entries of each expert at random, divide the rest by the density, and add them up.

    The DARE paper tunes the density for each merge; 0.5 is ours. By default the weights are 1/n under
    ``combination="linear"`` (on average the plain mean), and 1 under ``"ties"``, which averages by itself.

    Source: DARE (ICML 2024); PEFT's ``dare_linear``, ``dare_ties`` and their ``_svd``.
    """

    name = "dare"
    order_free = False  # which entries are dropped goes by the order

    @dataclass(frozen=True)
    class Options(MergeOptions):
        """Attributes:
        density: share of the entries kept.
        combination: ``"linear"`` adds what is left; ``"ties"`` elects signs first.
        """

        density: float = 0.5
        combination: str = "linear"

        def __post_init__(self) -> None:
            """Check every value."""
            super().__post_init__()
            ops.check_choice("combination", self.combination, ("linear", "ties"))

    @classmethod
    def default_weight(cls, options: Any, n: int) -> float:
        """1/n for a sum, 1 for an average."""
        return 1 / n if options.combination == "linear" else 1.0

    @classmethod
    def combine(cls, tensors: list[Tensor], weights: Tensor, options: Any) -> Tensor:
        """Drop and rescale, then add or elect."""
        if options.combination == "linear":
            return dare_linear(tensors, weights, options.density)
        return dare_ties(tensors, weights, options.density, options.sign_method)


_METHODS: dict[str, type[MergingRule]] = {rule.name: rule for rule in (TiesRule, DareRule)}


def merge_adapters(
    adapters: Mapping[str, str | Path],
    base: str | nn.Module,
    folder: str | Path,
    *,
    method: str = "ties",
    seed: int = 0,
    **options: Any,
) -> None:
    """Merge adapters into one ordinary PEFT adapter folder, which needs nothing of radargate.

    Args:
        adapters: name → folder or Hub id.
        base: their base model, or its name; its weights are not read.
        folder: where the result goes.
        method: ``"ties"`` or ``"dare"``.
        seed: of what DARE drops.
        **options: see `MergeOptions`.

    Raises:
        AdapterError: an adapter is refused, ranks differ where they must not, or the folder is taken.
        OptionError: an option that cannot work.
    """
    ops.check_choice("method", method, tuple(_METHODS))
    rule = _METHODS[method]
    made = make_options(rule, options)
    rule.check(made, [str(name) for name in adapters], "mole")
    if rule.needs_equal_ranks(made):
        check_equal_ranks(method, header_ranks(adapters))
    read = {str(name): read_adapter(str(name), source) for name, source in adapters.items()}
    head = choose_head(list(read.values()))
    bank = load_bank(read, meta_base(base) if isinstance(base, str) else base)
    write_expert(rule.arrange(bank, made, seed), method, folder, head)
