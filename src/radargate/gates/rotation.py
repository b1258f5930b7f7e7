"""Rotation: angles from how each expert's output relates to all the others (Eq. 5, 8, 20)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from radargate import ops
from radargate.errors import OptionError
from radargate.gates.base import Call, Gate, GateSite, Turn
from radargate.registry import bounded, one_of

SELECTS = ("norm", "all", "frozen_stretch")


@dataclass(frozen=True)
class RotationOptions:
    """Readings of the rotation.

    Attributes:
        angle_norm: ``"unit"`` scales v_i and its reference to unit RMS before they are multiplied, so that the
            code has one size at every site; ``"none"`` as printed; ``"mean"`` divides the reference by its number of
            experts; ``"tanh"`` bounds the angles to ±π.
        rotation_rank: r_a; 0 for a full θ_r.
        rotation_input: codes from the ``"experts"`` (as printed) or from the ``"input"`` x.
        rotation_sharing: P and Q for the whole ``"site"`` (as printed), or for each ``"expert"`` (codes from x share P).
        reference: relate to ``"all"`` other experts (as printed) or the other ``"selected"`` ones.
        rotate_output: False weighs unrotated outputs (App. C.2 as printed).
    """

    angle_norm: str = one_of("unit", ops.ANGLE_NORMS)
    rotation_rank: int = bounded(8, least=0)
    rotation_input: str = one_of("experts", ops.ROTATION_INPUTS)
    rotation_sharing: str = one_of("site", ("site", "expert"))
    reference: str = one_of("all", ops.REFERENCES)
    rotate_output: bool = True


def rotation_size(site: GateSite, rank: int) -> int:
    """How many numbers P and Q of one site have."""
    return rank * (site.d_out + site.d_out // 2)


def size_of_down(down: Tensor) -> float:
    """What P is multiplied by.

    It is stored at unit size: Adam's steps have one size whatever the width, and would else outgrow entries of
    1/sqrt(width) within a few steps (seen: 10 rad on average after 120 steps at 2e-2).
    """
    return float(down.shape[-2] ** -0.5)


def relation_codes(
    call: Call, indices: Tensor | None, down: Tensor | None, reference: str = "all", angle_norm: str = "unit"
) -> Tensor:
    """Codes [..., k, r_a] of how each chosen expert's output relates to the others': (v_i ⊙ Σ_{j≠i} v_j) P."""
    codes = call.codes
    total, rounding = codes.summed() if reference == "all" and codes.summed is not None else (None, None)
    return ops.rotation_codes(
        codes.h,
        codes.B,
        codes.ranks,
        None if down is None else down.to(call.x),
        indices=indices,
        reference=reference,
        angle_norm=angle_norm,
        total=total,
        rounding=rounding,
        scale=1.0 if down is None else size_of_down(down),
    )


class Turning(Gate):
    """What turns chosen experts by their relation to all the others; mixed into a gate that weighs them.

    Parameters: ``rotation_down`` (√width · P, random; none for a full θ_r) and ``rotation_up`` (Q, zero: it starts without a turn).
    """

    beside_weights = ("rotation_down", "rotation_up")
    rotation_down: nn.Parameter | None
    rotation_up: nn.Parameter

    def __init__(self, site: GateSite, options: Any) -> None:
        super().__init__(site, options)
        source = site.d_in if options.rotation_input == "input" else site.d_out
        per_expert = (site.n,) if options.rotation_sharing == "expert" else ()
        rank = options.rotation_rank or source
        if options.rotation_rank:
            leading = per_expert if options.rotation_input == "experts" else ()
            self.rotation_down = self.normal(*leading, source, rank, std=1.0, salt=1)
        else:
            self.register_parameter("rotation_down", None)
        self.rotation_up = nn.Parameter(torch.zeros(*per_expert, rank, site.d_out // 2))

    def turning_codes(self, call: Call, indices: Tensor | None) -> Tensor:
        """Rotation codes [..., k or 1, r_a] of the chosen experts, as the options say."""
        options, down = self.options, self.rotation_down
        if options.rotation_input == "experts":
            return relation_codes(call, indices, down, options.reference, options.angle_norm)
        code = ops.input_codes(call.x, None if down is None else down.to(call.x), options.angle_norm)
        return code if down is None else code * size_of_down(down)

    def turn(self, call: Call, weights: Tensor, indices: Tensor | None) -> Turn | None:
        """The chosen experts' angles, by P and Q."""
        if not self.options.rotate_output:
            return None
        return Turn(self.turning_codes(call, indices), self.rotation_up.to(call.x), self.options.angle_norm)

    @torch.no_grad()
    def stop_turning(self) -> None:
        """Q = 0: no angle from here on, and all else as it was trained."""
        self.rotation_up.zero_()


class RotationGate(Turning):
    """Turns only, equal weights on the chosen experts: α_i = ((v_i ⊙ Σ_{j≠i} v_j) P) Q.

    The paper names this baseline without defining its weights; here the chosen experts share them equally.
    ``select`` chooses by ``"norm"`` (largest ‖v_i‖), ``"all"``, or ``"frozen_stretch"`` (random frozen logits).

    Source: arXiv 2505.23184, Eq. 5-8, 17-20.
    """

    role = "paper"

    @dataclass(frozen=True)
    class Options(RotationOptions):
        """Rotation options, and how experts are chosen."""

        select: str = one_of("norm", SELECTS)

        def __post_init__(self) -> None:
            """Check what depends on each other."""
            if not self.rotate_output:
                raise OptionError("rotate_output=False leaves nothing for gate='rotation' to do.")

    frozen_theta: Tensor

    def __init__(self, site: GateSite, options: Options) -> None:
        super().__init__(site, options)
        if options.select == "frozen_stretch":
            theta = self.normal(site.n, site.d_in, std=0.02).detach()
            self.register_buffer("frozen_theta", theta, persistent=True)

    @classmethod
    def weighs_codes(cls, options: Any) -> bool:
        """Norms are those of the experts' outputs."""
        return bool(options.select != "frozen_stretch")

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Equal weights [..., k] and indices."""
        n, options = self.site.n, self.options
        if options.select == "frozen_stretch":
            scores = call.x @ self.frozen_theta.to(call.x).T
        else:
            scores = ops.expert_norms(call.h, call.B, call.ranks)
        on = torch.ones(n, dtype=call.x.dtype, device=call.x.device) if call.multipliers is None else call.multipliers
        keep = n if options.select == "all" or call.top_k is None else call.top_k
        _, indices = ops.select(scores.detach(), keep, multipliers=(on > 0).to(call.x))
        share = on.expand(*call.x.shape[:-1], n)
        share = share if indices is None else share.gather(-1, indices)
        return share / share.sum(-1, keepdim=True).clamp(min=1e-30), indices
