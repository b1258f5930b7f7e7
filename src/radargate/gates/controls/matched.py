"""What controls of the rotation's size share: how large they are."""

from __future__ import annotations

from dataclasses import dataclass

from radargate.errors import OptionError
from radargate.gates.base import GateSite
from radargate.gates.rotation import rotation_size
from radargate.gates.stretch import StretchGate


@dataclass(frozen=True)
class MatchedOptions(StretchGate.Options):
    """Options of stretch, and the size of what stands beside it.

    Attributes:
        rank: of the control's own matrices; 0 takes as many parameters as a rotation of ``rotation_rank``.
        rotation_rank: r_a of the radar gate that is matched.
    """

    rank: int = 0
    rotation_rank: int = 8

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        if self.rank < 0 or self.rotation_rank < 1:
            raise OptionError(f"rank is {self.rank} and rotation_rank {self.rotation_rank}, expected at least 0 and 1.")

    def rank_at(self, site: GateSite, numbers: int) -> int:
        """The rank at a site, where each rank costs so many numbers."""
        return self.rank or max(1, round(rotation_size(site, self.rotation_rank) / numbers))
