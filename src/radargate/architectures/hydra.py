"""HydraLoRA: one A shared by all experts, a head B_i for each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from radargate.architectures.base import Architecture, Codes
from radargate.errors import AdapterError
from radargate.experts.bank import ExpertBank, SiteBank


class Hydra(Architecture):
    """One A shared by all experts and a head B_i for each: block i of the codes is one shared code, scaled by s_i.

    Source: HydraLoRA (NeurIPS 2024): y = x W + Σ_i ω_i s_i (x A) B_i.
    """

    @dataclass(frozen=True)
    class Options:
        """Attributes:
        convert: accept adapters that do not share A: A becomes the best common one, each B_i what is left on it. Lossy.
        """

        convert: bool = False

    @classmethod
    def rows(cls, ranks: tuple[int, ...]) -> int:
        """A is held once."""
        return ranks[0]

    @classmethod
    def arrange(cls, bank: ExpertBank, options: Any) -> ExpertBank:
        """Hold each site's A once; with ``convert``, find the best common A.

        Raises:
            AdapterError: the adapters have another A each, and no conversion was asked for.
        """
        sites, lost, size = {}, [0.0] * len(bank.names), [0.0] * len(bank.names)
        converted = False
        for name, site in bank.sites.items():
            if site.A.shape[0] == site.ranks[0]:
                sites[name] = site
                continue
            A = site.A.split(list(site.ranks))
            if all(torch.equal(a, A[0]) for a in A):
                sites[name] = dataclasses.replace(site, A=A[0])
                continue
            if not options.convert:
                other = next(i for i, a in enumerate(A) if not torch.equal(a, A[0]))
                raise AdapterError(
                    f"architecture 'hydra' needs adapters that share A, but {bank.names[site.experts[0]]!r} and "
                    f"{bank.names[site.experts[other]]!r} have their own at {name}. Train some with "
                    "the architecture hydra (radargate experts), or accept a lossy conversion: its option convert=true."
                )
            sites[name], residual = _common(site)
            converted = True
            for expert, (missing, whole) in zip(site.experts, residual, strict=True):
                lost[expert] += missing
                size[expert] += whole
        facts = bank.facts
        if converted:
            facts = {
                name: {**facts[name], "converted": True, "residual": (lost[i] / size[i]) ** 0.5 if size[i] else 0.0}
                for i, name in enumerate(bank.names)
            }
        return dataclasses.replace(bank, sites=sites, facts=facts)

    def codes(self, x: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Codes:
        """The shared code x A in every block; the sum over experts costs one head, whatever their number."""
        shared, rank = F.linear(x, A), self.ranks[0]

        def summed() -> tuple[Tensor, None]:
            return shared @ (B * scale.unsqueeze(-1)).view(-1, rank, B.shape[-1]).sum(0), None

        h = shared.repeat(*[1] * (x.dim() - 1), len(self.ranks)) * scale
        return Codes(h, B, self.ranks, summed)


def _common(site: SiteBank) -> tuple[SiteBank, list[tuple[float, float]]]:
    """The site over the best common A, and (lost, whole) squared norms of each expert's ΔW.

    A = top right singular vectors of the row-stacked s_i B_i A_i, B_i ← B_i A_i Aᵀ; through the factors, in float64.
    """
    rank = max(site.ranks)
    A, B = site.A.double().split(list(site.ranks)), site.B.double().split(list(site.ranks))
    # ΔW_iᵀΔW_i = A_iᵀ (s² B_i B_iᵀ) A_i: the stack's right singular vectors lie in the span of all A
    basis = torch.linalg.qr(site.A.double().T)[0]
    small = [s * b.T @ (a @ basis) for s, a, b in zip(site.scales, A, B, strict=True)]
    stack = torch.cat([torch.linalg.qr(m)[1] for m in small])
    shared = (basis @ torch.linalg.svd(stack)[2][:rank].T).T
    if shared.shape[0] < rank:
        shared = torch.cat([shared, shared.new_zeros(rank - shared.shape[0], shared.shape[1])])
    heads = [(shared @ a.T) @ b for a, b in zip(A, B, strict=True)]
    residual = []
    for a, b, head, scale in zip(A, B, heads, site.scales, strict=True):
        whole = scale**2 * float(((b @ b.T) * (a @ a.T)).sum())
        kept = scale**2 * float(head.square().sum())
        residual.append((max(whole - kept, 0.0), whole))
    return (
        dataclasses.replace(
            site,
            A=shared.to(site.A.dtype).contiguous(),
            B=torch.cat(heads).to(site.B.dtype),
            ranks=(rank,) * len(site.ranks),
        ),
        residual,
    )
