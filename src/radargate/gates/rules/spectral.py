"""KnOTS, TSV-Merge and Iso-C: the experts become one LoRA by the singular vectors of their updates.

The papers' code decomposes whole d_out × d_in updates. An update here has rank r_i at most, so that everything is done on
A and B in float64, and no update is ever written out. Singular values that are rounding, which an SVD of a
whole update meets with arbitrary vectors beside them, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.merge_utils import ties
from torch import Tensor

from radargate.errors import OptionError
from radargate.gates.rules.merging_rule import MergeOptions, MergingRule, TrimOptions
from radargate.registry import bounded, one_of


class SpectralRule(MergingRule):
    """What the three share: float64, and an expert of weight 0 is left out.

    The result has the rank of all experts of the site together where ``rank`` is 0, which cuts nothing.
    """

    dtype = torch.float64
    zero_leaves_out = True


class KnotsRule(SpectralRule):
    """Align the updates by one SVD of all side by side, merge the right factors by TIES, multiply back.

    [ΔW_1 … ΔW_n] = U Σ [V_1 … V_n]ᵀ; entries of Σ V_iᵀ are trimmed, signs elected, those that agree averaged, and U
    times that is the result. The paper writes V_i; its code trims Σ V_iᵀ, and so does this. Trimming is per site, as in
    `ties`; the authors' counts the entries of the whole model together. ``rank`` cuts the result by SVD.

    Source: KnOTS (ICLR 2025, arXiv 2410.19735); the authors' ``SVDMerger``.
    """

    name = "knots"

    @dataclass(frozen=True)
    class Options(TrimOptions):
        """Attributes:
        density: share of the entries kept.
        combination: ``"ties"`` elects signs; ``"linear"`` adds the factors up, which is the plain (weighted) sum of
            the updates, by default their mean.
        """

        combination: str = one_of("ties", ("ties", "linear"))

    @classmethod
    def merge(
        cls, A: list[Tensor], B: list[Tensor], scales: list[float], weights: list[float], options: Any
    ) -> tuple[Tensor, Tensor]:
        """A common basis U of all outputs, and in it the merged rows."""
        scaled = [s * b for s, b in zip(scales, B, strict=True)]
        if options.combination == "linear":
            down, up = torch.cat(A), torch.cat([w * b for w, b in zip(weights, scaled, strict=True)], 1)
        else:
            widened = [b @ torch.linalg.qr(a.T).R.T for a, b in zip(A, scaled, strict=True)]  # ΔW_i, turned by Q_iᵀ
            up, _, _ = supported(torch.cat(widened, 1))
            aligned = [(up.T @ b) @ a for a, b in zip(A, scaled, strict=True)]  # Σ V_iᵀ [R, d_in]
            down = ties(aligned, torch.tensor(weights, dtype=up.dtype), options.density, options.sign_method)
        left, values, right = thin_svd(up, down)
        kept = options.rank or len(values)
        return right[:kept], left[:, :kept] * values[:kept]


class TsvRule(SpectralRule):
    """Keep the leading singular vectors of each update, make those of all experts orthogonal, and rebuild.

    Each of the n experts of a site keeps min(d_out, d_in) / n singular triples, all of them where its rank is lower; the
    concatenated U and V go to the nearest matrices with orthonormal columns (Procrustes, U' = P Qᵀ of U = P D Qᵀ), and
    the result is U' Σ V'ᵀ with the singular values times weights. With ``rank``, rank / n are kept of each. Where the
    vectors depend on each other (two experts alike) the nearest matrix is not unique, and the part that is counts:
    n copies of one expert give that expert once. An expert alone at a site stays as it is.

    Source: TSV-Merge (CVPR 2025, arXiv 2412.00081); the authors' ``compute_and_sum_svd_mem_reduction``.
    """

    name = "tsv"

    @classmethod
    def check(cls, options: Any, experts: Sequence[str], architecture: str) -> None:
        """Weights name every expert, and ``rank`` has room for each."""
        super().check(options, experts, architecture)
        if 0 < options.rank < len(experts):
            raise OptionError(
                f"rank is {options.rank}, of which {len(experts)} experts keep an equal share; expected at least {len(experts)}, or 0."
            )

    @classmethod
    def merge(
        cls, A: list[Tensor], B: list[Tensor], scales: list[float], weights: list[float], options: Any
    ) -> tuple[Tensor, Tensor]:
        """Singular triples of each, whitened together."""
        share = max((options.rank or min(len(B[0]), A[0].shape[1])) // len(A), 1)
        parts = [thin_svd(s * b, a, share) for a, b, s in zip(A, B, scales, strict=True)]
        values = torch.cat([w * part[1] for w, part in zip(weights, parts, strict=True)])
        left, right = whitened(parts)
        return right, left * values


class IsoRule(SpectralRule):
    """Add the updates up and give every singular direction of the sum the same value, the mean.

    The mean is over the directions that the sum has: of a LoRA's update, almost all singular values are zero, and their
    directions arbitrary. With ``rank`` the sum is cut to it first. An expert alone at a site is flattened too.

    With ``common_space_fraction`` below 1 (Iso-CTS) that share of the directions is the sum's; the rest is divided among
    the experts, who each give the leading ones of what their update has outside of the common ones. All are
    made orthogonal as in `tsv`, with the mean of all their singular values.

    Source: Iso-C and Iso-CTS (arXiv 2502.04959); the authors' ``iso_c`` and ``iso_cts``.
    """

    name = "iso"

    @dataclass(frozen=True)
    class Options(MergeOptions):
        """Attributes:
        common_space_fraction: share of the result's directions taken from the sum; 1 is Iso-C, the Iso-CTS paper has 0.8.
        """

        common_space_fraction: float = bounded(1.0, least=0, most=1)

    @classmethod
    def merge(
        cls, A: list[Tensor], B: list[Tensor], scales: list[float], weights: list[float], options: Any
    ) -> tuple[Tensor, Tensor]:
        """Directions of the sum and, for Iso-CTS, of what each expert has beside them; all with the mean value."""
        scaled = [w * s * b for w, s, b in zip(weights, scales, B, strict=True)]
        whole = thin_svd(torch.cat(scaled, 1), torch.cat(A))
        size = min(options.rank or len(whole[1]), len(whole[1]))
        each = min(round((size - int(size * options.common_space_fraction)) / len(A)), size // len(A))
        left, values, right = cut(whole, size - each * len(A))
        parts = [thin_svd(b - left @ (left.T @ b), a, each) for a, b in zip(A, scaled, strict=True)] if each else []
        parts.append((left, values, right))
        left, right = whitened(parts)
        return right, left * torch.cat([part[1] for part in parts]).mean()


Triple = tuple[Tensor, Tensor, Tensor]  # U [m, k], σ [k] from the largest, Vᵀ [k, n]


def supported(matrix: Tensor, scale: float | None = None) -> Triple:
    """Thin SVD without the singular values that are rounding beside ``scale`` (the largest where none is given)."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    largest = float(values[0]) if scale is None else scale
    kept = int((values > largest * max(matrix.shape) * torch.finfo(values.dtype).eps).sum())
    return cut((left, values, right), kept)


def thin_svd(up: Tensor, down: Tensor, rank: int | None = None) -> Triple:
    """SVD of ``up @ down`` from its factors [m, k] and [k, n], the leading ``rank`` of what is more than rounding."""
    outer, inner = torch.linalg.qr(up), torch.linalg.qr(down.T)
    size = float(torch.linalg.matrix_norm(up) * torch.linalg.matrix_norm(down))  # what rounding is relative to
    left, values, right = cut(supported(outer.R @ inner.R.T, size), rank)
    return outer.Q @ left, values, right @ inner.Q.T


def cut(triple: Triple, rank: int | None) -> Triple:
    """The leading singular triples; None for all."""
    left, values, right = triple
    return left[:, :rank], values[:rank], right[:rank]


def whitened(parts: Sequence[Triple]) -> tuple[Tensor, Tensor]:
    """All U side by side and all Vᵀ stacked, each as the nearest matrix with orthonormal vectors."""
    return polar(torch.cat([left for left, _, _ in parts], 1)), polar(torch.cat([right for *_, right in parts]))


def polar(matrix: Tensor) -> Tensor:
    """P Qᵀ of the SVD P D Qᵀ, over directions that the matrix has."""
    if not matrix.numel():
        return matrix
    left, _, right = supported(matrix)
    return left @ right
