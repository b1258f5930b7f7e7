"""SpectR: each token goes to the experts whose outputs are longest at the site; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radargate import ops
from radargate.errors import OptionError
from radargate.gates.base import Call, Gate, GateSite
from radargate.gates.rules.base import split
from radargate.registry import bounded, one_of

CALIBRATIONS = ("none", "directions", "rows")


class SpectrRule(Gate):
    """Weights softmax(‖s_i B_i A_i x‖ / τ) over the top-k experts: who changes this token most.

    - ``calibration="none"``: SpectR as the authors state it in SEQR, the norm of the whole output. An expert with large
      weights has long outputs everywhere. The LoRA scale s_i counts, and so do top-k and τ (ours; they keep one expert).
    - ``"directions"``: ‖V_iᵀ x‖ with U_i S_i V_iᵀ = B_i A_i, which needs no data and forgets all sizes. It is the authors' own
      A* in LAG, where the score of SpectR is ‖A* x‖ and S belongs to B*.
    - ``"rows"``: SEQR's z-score, (‖s_i B_i A_i x‖ − μ_i) / σ_i with mean and standard deviation over the tokens of expert i's
      own rows, at each site. Ours: expert i acts alone while they are taken, and a norm that never varies has σ_i = 1.

    Norms come from SEQR's QR form: with B_i = Q_i R_i, found once, ‖B_i A_i x‖ = ‖R_i A_i x‖, r_i numbers a token.

    Source: SpectR (arXiv 2504.03454); LAG (2507.05346), Eqs. 1-4, 7; SEQR (2509.18093). No code was published.
    """

    role = "rule"
    cores: Tensor
    norm_mean: Tensor
    norm_spread: Tensor

    @dataclass(frozen=True)
    class Options:
        """Attributes:
        temperature: τ > 0.
        calibration: what makes experts comparable: ``"none"``, ``"directions"`` or ``"rows"``.
        """

        temperature: float = bounded(1.0, above=0)
        calibration: str = one_of("none", CALIBRATIONS)

    def __init__(self, site: GateSite, options: Any) -> None:
        super().__init__(site, options)
        self._calibrated = options.calibration != "rows"
        self.register_buffer("cores", torch.zeros(sum(site.ranks), max(site.ranks)))
        if options.calibration == "rows":
            self.register_buffer("norm_mean", torch.zeros(site.n))
            self.register_buffer("norm_spread", torch.zeros(site.n))

    @classmethod
    def check(cls, options: Any, experts: Sequence[str], architecture: str) -> None:
        """Directions are those of an A and a B."""
        if options.calibration == "directions" and architecture == "omoe":
            raise OptionError(
                "calibration='directions' reads the singular directions of each expert's own A and B, which outputs made "
                "orthogonal (architecture 'omoe') do not have. Use calibration='none', or architecture 'mole' or 'hydra'."
            )

    @classmethod
    def names_tasks(cls, options: Any) -> bool:
        """Where they calibrate."""
        return bool(options.calibration == "rows")

    @torch.no_grad()
    def prepare(self, A: Tensor, B: Tensor, scales: Sequence[float]) -> None:
        """Find of each expert what turns its code s_i A_i x into a vector of the length that counts."""
        ranks, directions = self.site.ranks, self.options.calibration == "directions"
        self.cores.zero_()
        for core, (a, b), scale in zip(self.cores.split(list(ranks)), split(A, B, ranks), scales, strict=True):
            if directions and not scale:
                continue  # it changes nothing, in no direction
            found = _directions(a.double(), b.double()) / scale if directions else _lengths(b.double())
            core[:, : found.shape[1]] = found

    def norms(self, call: Call) -> Tensor:
        """‖s_i B_i A_i x‖ or ‖V_iᵀ x‖ of every expert: [..., n]."""
        if call.ranks is None:
            return ops.expert_norms(call.h, call.B, None)
        blocks = zip(call.h.split(call.ranks, -1), self.cores.to(call.h).split(call.ranks), strict=True)
        return torch.stack([torch.linalg.vector_norm(h @ core, dim=-1) for h, core in blocks], -1)

    def calibrate(self, mean: Tensor, spread: Tensor) -> None:
        """Set μ and σ [n] of each expert's norms on its own rows; 0 counts as a spread of 1."""
        self.norm_mean.copy_(mean)
        self.norm_spread.copy_(torch.where(spread > 0, spread, 1.0))

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Weights and indices of the experts this call keeps.

        Raises:
            OptionError: it does not know yet how long each expert's outputs are.
        """
        scores = self.norms(call)
        if not self._calibrated:  # asked until the answer is yes: on a GPU it is waited for
            self._calibrated = self.norm_spread.is_meta or bool(self.norm_spread.all())
            if not self._calibrated:
                raise OptionError(
                    "calibration='rows' does not know yet how long each expert's outputs are. Call "
                    "radargate.describe_norms(model, {expert: [model inputs, …]}) first; radargate train does."
                )
        if self.options.calibration == "rows":
            scores = (scores - self.norm_mean.to(scores)) / self.norm_spread.to(scores)
        return ops.select(scores, call.top_k, self.options.temperature, "always", multipliers=call.multipliers)


def _lengths(B: Tensor) -> Tensor:
    """Rᵀ [r, min(r, d)] with Bᵀ = Q R, for B [r, d]: ‖h Rᵀ‖ = ‖h B‖."""
    return torch.linalg.qr(B.T)[1].T


def _directions(A: Tensor, B: Tensor) -> Tensor:
    """K [r, k] with x Aᵀ K = x V, V [d_in, k] the right singular vectors of Bᵀ A whose values are not 0."""
    lower = _lengths(A)  # A = lower Qᵀ, V = Q right
    values, right = torch.linalg.svd(_lengths(B).T @ lower, full_matrices=False)[1:]
    live = values > values[0] * torch.finfo(values.dtype).eps * max(A.shape[1], B.shape[1])
    return torch.linalg.pinv(lower).T @ right[live].T
