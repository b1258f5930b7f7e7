"""Arrow: each token goes to the experts whose strongest input direction it points along; nothing is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radargate import ops
from radargate.architectures.base import Codes
from radargate.errors import OptionError
from radargate.experts.prototypes import top_input_direction
from radargate.gates.base import Call, Gate, GateOutput, GateSite
from radargate.gates.rules.base import as_names, check_names, mixed_codes, split
from radargate.registry import bounded, one_of

MIXING = ("outputs", "ab")


class ArrowRule(Gate):
    """Weights softmax(|x·p_i| / τ) over the top-k experts, p_i the top right singular vector of B_i A_i.

    With ``general`` experts (GenKnowSub), the mean of their A and of their B at the site is subtracted from every
    other expert's A and B, prototypes are those of the result, and the general experts take no part in routing. Nothing in
    the bank changes: with Ā, B̄ the means, x (A_i − Ā)(B_i − B̄) is the code h_i − x Ā over B_i, minus the same code over B̄.

    Source: Arrow (ICML 2024); PEFT's ``arrow.py`` for ``mixing="outputs"``, MTTL for ``"ab"``; GenKnowSub (ACL 2025).
    """

    role = "rule"

    acts_alone = True
    prototypes: Tensor

    @dataclass(frozen=True)
    class Options:
        """Attributes:
        temperature: τ > 0.
        mixing: ``"outputs"`` weighs outputs; ``"ab"`` mixes A and B apart for each token, with cross terms.
        normalize_x: |cos(x, p_i)| instead of |x·p_i|, which grows with x.
        general: experts whose common part is subtracted from all the others.
        """

        temperature: float = bounded(1.0, above=0)
        mixing: str = one_of("outputs", MIXING)
        normalize_x: bool = False
        general: Sequence[str] = ()

        def __post_init__(self) -> None:
            """Check every value."""
            object.__setattr__(self, "general", as_names(self.general, "general"))

    def __init__(self, site: GateSite, options: Any) -> None:
        super().__init__(site, options)
        self.tasks = [i for i, name in enumerate(site.experts) if name not in options.general]
        self.common = [i for i, name in enumerate(site.experts) if name in options.general]
        for i in self.common:
            if site.scales[i] == 0:
                raise OptionError(
                    f"general expert {site.experts[i]!r} has LoRA scale 0, so nothing of it can be subtracted."
                )
        self.register_buffer("prototypes", torch.zeros(len(self.tasks), site.d_in))

    @classmethod
    def check(cls, options: Any, experts: Sequence[str], architecture: str) -> None:
        """General experts exist and are not all; what mixes A and B apart has A and B."""
        check_names("general", options.general, experts)
        if set(options.general) == set(experts):
            raise OptionError("every expert is general, so none is left to route to.")
        if architecture == "omoe" and cls.needs_equal_ranks(options):
            raise OptionError(
                "mixing='ab' and general experts mix A and B apart, which outputs made orthogonal (architecture 'omoe') "
                "do not have. Use mixing='outputs' without general, or architecture 'mole' or 'hydra'."
            )

    @classmethod
    def needs_equal_ranks(cls, options: Any) -> bool:
        """Where blocks of A are added to or subtracted from each other."""
        return options.mixing == "ab" or bool(options.general)

    @torch.no_grad()
    def prepare(self, A: Tensor, B: Tensor, scales: Sequence[float]) -> None:
        """Find the prototypes from the experts."""
        pairs = [(a.double(), b.double()) for a, b in split(A, B, self.site.ranks)]
        if self.common:
            mean_a, mean_b = (torch.stack([pairs[g][side] for g in self.common]).mean(0) for side in (0, 1))
            pairs = [(a - mean_a, b - mean_b) for a, b in pairs]
        if self.tasks:
            self.prototypes.copy_(torch.stack([top_input_direction(*pairs[i]) for i in self.tasks]))

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Weights and indices of the experts this call keeps; general ones are never among them."""
        if not self.tasks:
            return call.x.new_zeros(*call.x.shape[:-1], self.site.n), None
        logits = (call.x @ self.prototypes.to(call.x).T).abs()
        if self.options.normalize_x:
            logits = logits / call.x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(call.x.dtype).tiny)
        multipliers = None if call.multipliers is None else call.multipliers[self.tasks]
        if multipliers is not None and not bool(multipliers.any()):
            return call.x.new_zeros(*call.x.shape[:-1], self.site.n), None
        weights, chosen = ops.select(logits, call.top_k, self.options.temperature, "always", multipliers=multipliers)
        if not self.common:
            return weights, chosen
        places = torch.tensor(self.tasks, device=weights.device)
        return weights, places.expand(weights.shape) if chosen is None else places[chosen]

    def forward(self, call: Call) -> GateOutput:
        """Route, with the general part taken off A in the codes and off B in an update of its own."""
        if self.common:
            call = dataclasses.replace(call, codes=self._without_common(call.codes))
        weights, indices = self.weigh(call)
        dense = ops.dense_weights(weights, indices, self.site.n)
        if self.options.mixing == "ab":
            codes = mixed_codes(call.codes, dense, self.site.scales)
        else:
            codes = Gate.settle(self, call, weights, indices)
        extra = None
        if self.common:
            blocks = codes.h.unflatten(-1, (self.site.n, -1))
            mean_b = codes.B.unflatten(0, (self.site.n, -1))[self.common].mean(0)
            extra = -(dense.unsqueeze(-1) * blocks).sum(-2) @ mean_b
        return GateOutput(weights, indices, codes, None, extra)

    def _without_common(self, codes: Codes) -> Codes:
        """Codes of A_i − Ā: h_i − s_i mean_g(h_g / s_g)."""
        blocks = codes.h.unflatten(-1, (self.site.n, -1))
        scales = codes.h.new_tensor(self.site.scales).unsqueeze(-1)
        mean = (blocks[..., self.common, :] / scales[self.common]).mean(-2, keepdim=True)
        return Codes((blocks - scales * mean).flatten(-2), codes.B, codes.ranks)
