"""TIES and DARE: all experts become one LoRA before anything runs, by the very functions of PEFT.

PEFT's ``add_weighted_adapter`` calls the same functions. It needs the adapters inside a model, though, and copies
``use_rslora`` from the first one into the result, which is then √r times too large; here each scale is counted once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft.utils.merge_utils import dare_linear, dare_ties, ties
from torch import Tensor, nn

from radargate.base_models.loading import meta_base
from radargate.experts.adapters import read_adapter
from radargate.experts.bank import check_equal_ranks, header_ranks, load_bank, write_expert
from radargate.experts.heads import choose_head
from radargate.gates.base import make_options
from radargate.gates.rules import RULES
from radargate.gates.rules.merging_rule import MergingRule, TrimOptions
from radargate.ops.choices import check_choice
from radargate.registry import bounded, one_of

SPACES = ("auto", "factors", "delta")


@dataclass(frozen=True)
class EntryOptions(TrimOptions):
    """What ties and dare have.

    Attributes:
        space: ``"factors"`` treats A and B apart (PEFT's ``ties``, ``dare_linear``; one rank, cross terms);
            ``"delta"`` the product B A, cut back to ``rank`` by SVD (PEFT's ``…_svd``; 0: the largest of the experts'
            at the site); ``"auto"`` the first where all ranks of a site agree, else the second.
    """

    space: str = one_of("auto", SPACES)


class EntryRule(MergingRule):
    """A rule that merges tensors entry by entry."""

    Options: ClassVar[type] = EntryOptions

    @classmethod
    def needs_equal_ranks(cls, options: Any) -> bool:
        """Where A and B are treated apart."""
        return options.space == "factors"

    @classmethod
    def combine(cls, tensors: list[Tensor], weights: Tensor, options: Any) -> Tensor:
        """One tensor from those of the experts at a site."""
        raise NotImplementedError

    @classmethod
    def merge(
        cls, A: list[Tensor], B: list[Tensor], scales: list[float], weights: list[float], options: Any
    ) -> tuple[Tensor, Tensor]:
        """A and B apart, or the products cut back by SVD."""
        dtype, ranks = A[0].dtype, {len(a) for a in A}
        if options.space == "factors" or (options.space == "auto" and len(ranks) == 1):
            scaled = [w * s for w, s in zip(weights, scales, strict=True)]
            roots = [math.sqrt(abs(f)) for f in scaled]
            signed = [math.copysign(r, f) for r, f in zip(roots, scaled, strict=True)]
            a = cls.combine(A, torch.tensor(signed, dtype=dtype), options)
            return a, cls.combine(B, torch.tensor(roots, dtype=dtype), options)
        deltas = [s * (b @ a) for a, b, s in zip(A, B, scales, strict=True)]
        whole = cls.combine(deltas, torch.tensor(weights, dtype=dtype), options)
        left, values, right = torch.linalg.svd(whole, full_matrices=False)
        rank = min(options.rank or max(ranks), len(values))
        return right[:rank], left[:, :rank] * values[:rank]


class TiesRule(EntryRule):
    """Keep the largest entries of each expert, elect a sign for each entry, average those that have it.

    Density 0.2 is the paper's top 20 %; weights 1 its λ = 1.

    Source: TIES-Merging (NeurIPS 2023), Alg. 1; PEFT's ``ties`` and ``ties_svd``.
    """

    name = "ties"

    @classmethod
    def combine(cls, tensors: list[Tensor], weights: Tensor, options: Any) -> Tensor:
        """Trim, elect, merge."""
        return ties(tensors, weights, options.density, options.sign_method)


class DareRule(EntryRule):
    """Drop entries of each expert at random, divide the rest by the density, and add them up.

    The DARE paper tunes the density for each merge; 0.5 is ours. By default the weights are 1/n under
    ``combination="linear"`` (on average the plain mean), and 1 under ``"ties"``, which averages by itself.

    Source: DARE (ICML 2024); PEFT's ``dare_linear``, ``dare_ties`` and their ``_svd``.
    """

    name = "dare"
    order_free = False  # which entries are dropped goes by the order

    @dataclass(frozen=True)
    class Options(EntryOptions):
        """Attributes:
        density: share of the entries kept.
        combination: ``"linear"`` adds what is left; ``"ties"`` elects signs first.
        """

        density: float = bounded(0.5, above=0, most=1)
        combination: str = one_of("linear", ("linear", "ties"))

    @classmethod
    def combine(cls, tensors: list[Tensor], weights: Tensor, options: Any) -> Tensor:
        """Drop and rescale, then add or elect."""
        if options.combination == "linear":
            return dare_linear(tensors, weights, options.density)
        return dare_ties(tensors, weights, options.density, options.sign_method)


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
        method: a rule that merges: ``"ties"``, ``"dare"``, ``"knots"``, ``"tsv"`` or ``"iso"``.
        seed: of what DARE drops.
        **options: the rule's own; see `MergeOptions`.

    Raises:
        AdapterError: an adapter is refused, ranks differ where they must not, or the folder is taken.
        OptionError: an option that cannot work.
    """
    rules = {name: rule for name in RULES if issubclass(rule := RULES.get(name), MergingRule)}
    check_choice("method", method, tuple(rules))
    rule = rules[method]
    made = make_options(rule, options)
    rule.check(made, [str(name) for name in adapters], "mole")
    if rule.needs_equal_ranks(made):
        check_equal_ranks(method, header_ranks(adapters))
    read = {str(name): read_adapter(str(name), source) for name, source in adapters.items()}
    head = choose_head(list(read.values()))
    bank = load_bank(read, meta_base(base) if isinstance(base, str) else base)
    write_expert(rule.arrange(bank, made, seed), method, folder, head)
