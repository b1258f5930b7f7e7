"""Nexus: every expert is described by a domain vector, and a projection of it is what tokens are matched with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from radargate import ops
from radargate.errors import OptionError
from radargate.experts.domains import TEXTS, domain_vectors
from radargate.experts.prototypes import prototypes
from radargate.gates.balance import gshard
from radargate.gates.base import ByTask, Call, Gate, GateSite
from radargate.registry import bounded, one_of

DOMAINS = ("prototype", "random", "given")


@dataclass(frozen=True)
class NexusOptions:
    """Readings of Nexus for frozen experts.

    Attributes:
        domains: where an expert's domain vector d_i comes from: its ``"prototype"`` at the site (data-free), a
            ``"random"`` one (a learned table in disguise), or ``"given"``. To `radargate.compose` pass a dict expert →
            vector (see `radargate.domain_vectors`), which becomes ``"given"``.
        width: length of given or random vectors.
        hidden: width of the projection; 0 for min(d_in, 256).
        scaled: divide logits by √d_in.
        renormalize: as for stretch.
        auxiliary_weight: of the load-balance loss.
    """

    domains: str = one_of("prototype", DOMAINS)
    width: int = bounded(64, least=1)
    hidden: int = bounded(0, least=0)
    scaled: bool = True
    renormalize: str = one_of("auto", ops.RENORMALIZE)
    auxiliary_weight: float = bounded(0.01, least=0)


class NexusGate(Gate):
    """Weights from domain vectors: softmax(x · e_i), e_i = W_2 [SiLU(W_g d_i) ⊙ (W_u d_i)]; a new expert can join later.

    Source: Nexus (Gritsch et al. 2024); the frozen base layer plays the shared expert.
    """

    role = "paper"

    Options = NexusOptions
    joins = True
    domain_vectors: Tensor
    domain_mean: Tensor

    def __init__(self, site: GateSite, options: NexusOptions) -> None:
        super().__init__(site, options)
        width = site.d_in if options.domains == "prototype" else options.width
        hidden = options.hidden or min(site.d_in, 256)
        # vectors have unit length, so entries of unit size give numbers of unit size
        self.softmax_in = self.normal(2 * hidden, width, std=1.0)
        self.softmax_out = self.normal(site.d_in, hidden, std=0.02, salt=1)
        self.register_buffer("domain_vectors", torch.zeros(site.n, width))
        self.register_buffer("domain_mean", torch.zeros(width))
        if options.domains == "random" and self.domain_vectors.device.type != "meta":
            self.describe(self.normal(site.n, width, std=1.0, salt=2).detach())

    @classmethod
    def take(cls, values: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Options as they are saved, and the vectors among them."""
        vectors = values.get("domains")
        if isinstance(vectors, str) and vectors == "hidden":
            raise OptionError(
                "domains='hidden' needs rows of every expert's domain: radargate train and compare have them; in Python give "
                "domains=radargate.domain_vectors(model, tokenizer, {expert: texts})."
            )
        if not isinstance(vectors, Mapping):
            return values, None
        vectors = {name: torch.as_tensor(vector, dtype=torch.float32).flatten() for name, vector in vectors.items()}
        widths = {vector.numel() for vector in vectors.values()}
        if len(widths) != 1 or not all(bool(torch.isfinite(v).all()) for v in vectors.values()):
            raise OptionError(f"domain vectors have lengths {sorted(widths)}, expected one length and finite numbers.")
        return {**values, "domains": "given", "width": widths.pop()}, vectors

    @classmethod
    def reads_own_rows(cls, values: Mapping[str, Any]) -> bool:
        """For domain vectors from hidden states."""
        return bool(values.get("domains") == "hidden")

    @classmethod
    def from_rows(cls, values: dict[str, Any], base: Any, tokenizer: Any, own: ByTask) -> dict[str, Any]:
        """Options in which ``domains="hidden"`` has become each expert's vector."""
        texts = {name: [row.prompt for row in rows[:TEXTS]] for name, rows in own.items() if rows}
        return {**values, "domains": domain_vectors(base, tokenizer, texts)}

    def prepare(self, A: Tensor, B: Tensor, scales: Sequence[float]) -> None:
        """Data-free domain vectors: each expert's prototype."""
        if self.options.domains == "prototype":
            self.describe(prototypes(A, B, self.site.ranks))

    def receive(self, vectors: Mapping[str, Tensor]) -> None:
        """Domain vectors given by name.

        Raises:
            OptionError: an expert has none.
        """
        missing = [name for name in self.site.experts if name not in vectors]
        if missing:
            raise OptionError(
                f"no domain vector for expert {missing[0]!r}; vectors are there for: {', '.join(vectors)}."
            )
        self.describe(torch.stack([vectors[name] for name in self.site.experts]))

    def describe(self, vectors: Tensor, keep_mean: bool = False) -> None:
        """Standardise raw vectors [n, m]: their common mean taken off, then unit length."""
        vectors = vectors.to(self.domain_mean)
        if self.options.domains == "prototype":
            # a singular vector's sign means nothing: bring all to the first one's side
            vectors = vectors * torch.where((vectors @ self._anchor(vectors)) < 0, -1.0, 1.0).unsqueeze(-1)
        if not keep_mean:
            self.domain_mean.copy_(vectors.mean(0) if self.site.n > 1 else vectors.new_zeros(vectors.shape[-1]))
        self.domain_vectors = F.normalize(vectors - self.domain_mean, dim=-1)

    def join(self, before: NexusGate, vectors: Tensor) -> None:
        """Take over a trained gate, and describe the experts it did not know by raw ``vectors`` [new, m]."""
        with torch.no_grad():
            self.softmax_in.copy_(before.softmax_in)
            self.softmax_out.copy_(before.softmax_out)
        self.domain_mean.copy_(before.domain_mean)
        known = before.domain_vectors
        self.describe(vectors, keep_mean=True)
        self.domain_vectors = torch.cat([known, self.domain_vectors])

    def embeddings(self) -> Tensor:
        """e_i: [n, d_in]. They do not depend on the token."""
        gate, value = (self.domain_vectors.to(self.softmax_in) @ self.softmax_in.T).chunk(2, -1)
        return (F.silu(gate) * value) @ self.softmax_out.T

    @classmethod
    def weighs_codes(cls, options: Any) -> bool:
        """x alone decides."""
        return False

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Weights and indices."""
        logits = call.x @ self.embeddings().to(call.x).T
        if self.options.scaled:
            logits = logits * self.site.d_in**-0.5
        if self.training and self.options.auxiliary_weight:
            self.note(gshard(logits.softmax(-1), call.real))
        return ops.select(logits, call.top_k, renormalize=self.options.renormalize, multipliers=call.multipliers)

    def _anchor(self, vectors: Tensor) -> Tensor:
        return self.domain_mean if bool(self.domain_mean.any()) else vectors[0]
