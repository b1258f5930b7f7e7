"""A control: stretch plus one small LoRA with as many parameters as radar's rotation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from radargate.errors import OptionError
from radargate.gates.base import Call, GateSite
from radargate.gates.rotation import rotation_size
from radargate.gates.stretch import StretchGate


class LoRAGate(StretchGate):
    """Control: stretch plus one small LoRA of its own, with as many parameters as radar's rotation (it starts at 0)."""

    @dataclass(frozen=True)
    class Options(StretchGate.Options):
        """Options of stretch, and the LoRA's size.

        Attributes:
            rank: of the LoRA; 0 takes as many parameters as a rotation of ``rotation_rank``.
            rotation_rank: r_a of the radar gate that is matched.
        """

        rank: int = 0
        rotation_rank: int = 8

        def __post_init__(self) -> None:
            """Check every value."""
            super().__post_init__()
            if self.rank < 0 or self.rotation_rank < 1:
                raise OptionError(
                    f"rank is {self.rank} and rotation_rank {self.rotation_rank}, expected at least 0 and 1."
                )

    def __init__(self, site: GateSite, options: Options) -> None:
        super().__init__(site, options)
        rank = options.rank or max(1, round(rotation_size(site, options.rotation_rank) / (site.d_in + site.d_out)))
        # stored at unit size like P, for the same reason (see `radargate.gates.rotation.size_of_down`)
        self.rotation_lora_A = self.normal(rank, site.d_in, std=1.0, salt=1)
        self.rotation_lora_B = nn.Parameter(torch.zeros(site.d_out, rank))

    def extra(self, call: Call) -> Tensor:
        """The LoRA's output [..., d_out]."""
        code = call.x @ self.rotation_lora_A.to(call.x).T * self.site.d_in**-0.5
        return code @ self.rotation_lora_B.to(call.x).T
