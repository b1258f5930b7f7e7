"""What controls of the rotation's size share: how large they are."""

from __future__ import annotations

from dataclasses import dataclass

from radargate.gates.base import GateSite
from radargate.gates.rotation import rotation_size
from radargate.gates.stretch import StretchGate
from radargate.registry import bounded


@dataclass(frozen=True)
class MatchedOptions(StretchGate.Options):
    """Options of stretch, and the size of what stands beside it.

    Attributes:
        rank: of the control's own matrices; 0 takes as many parameters as a rotation of ``rotation_rank``.
        rotation_rank: r_a of the radar gate that is matched.
    """

    rank: int = bounded(0, least=0)
    rotation_rank: int = bounded(8, least=1)

    def rank_at(self, site: GateSite, numbers: int) -> int:
        """The rank at a site, where each rank costs so many numbers."""
        return self.rank or max(1, round(rotation_size(site, self.rotation_rank) / numbers))
