"""What every gate is: options checked at construction, a forward from one call to weights and rotation codes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from radargate.errors import OptionError
from radargate.registry import unknown_name


@dataclass(frozen=True)
class GateSite:
    """The linear layer a gate sits on.

    Attributes:
        d_in: width of its input.
        d_out: width of its output.
        ranks: r_i of each expert there.
        top_k: experts kept per token there, at most their number.
        seed: of the initial values.
    """

    d_in: int
    d_out: int
    ranks: tuple[int, ...]
    top_k: int
    seed: int = 0

    @property
    def n(self) -> int:
        """Number of experts here."""
        return len(self.ranks)


@dataclass(frozen=True)
class Call:
    """One forward pass at one site: everything a gate may look at.

    Attributes:
        x: input [..., d_in].
        h: codes [..., R].
        B: [R, d_out].
        top_k: experts to keep in this pass, None for all.
        multipliers: [n] factors ≥ 0 on the weights, or None.
    """

    x: Tensor
    h: Tensor
    B: Tensor
    top_k: int | None
    multipliers: Tensor | None = None


@dataclass(frozen=True)
class GateOutput:
    """What `radargate.ops.mix` needs: weights [..., k], indices [..., k] or None, rotation codes, Q."""

    weights: Tensor
    indices: Tensor | None = None
    rotation: Tensor | None = None
    up: Tensor | None = None
    angle_norm: str = "none"


class Gate(nn.Module):
    """Base of all gates and rules.

    A subclass has a frozen dataclass ``Options`` whose ``__post_init__`` checks values, names its parameters
    ``softmax_…`` or ``rotation_…`` (they get rates of their own), and promises:

    - ``order_free``: permuting the experts leaves the output.
    - ``token_local``: a token's output needs no other token, so that cached generation is exact.
    """

    order_free: ClassVar[bool] = True
    token_local: ClassVar[bool] = True
    Options: ClassVar[type]

    def __init__(self, site: GateSite, options: Any) -> None:
        super().__init__()
        self.site, self.options = site, options

    def forward(self, call: Call) -> GateOutput:
        """Weights and rotation for one call."""
        raise NotImplementedError

    def normal(self, *shape: int, std: float, salt: int = 0) -> nn.Parameter:
        """A float32 parameter drawn from N(0, std²); the same for the same site, seed and salt."""
        if torch.empty(0).device.type == "meta":
            return nn.Parameter(torch.empty(*shape))
        generator = torch.Generator().manual_seed((self.site.seed + 7919 * salt) % (1 << 63))
        return nn.Parameter(torch.randn(*shape, generator=generator, device="cpu") * std)


class OneExpert(Gate):
    """What stands at a site with a single expert: nothing to weigh against, nothing to turn by; weight 1."""

    def forward(self, call: Call) -> GateOutput:
        """Weight 1, or 0 where the expert is switched off."""
        on = 1.0 if call.multipliers is None else (call.multipliers > 0).to(call.x)
        return GateOutput(torch.ones(*call.x.shape[:-1], 1, dtype=call.x.dtype, device=call.x.device) * on)


def make_options(gate: type[Gate], values: dict[str, Any]) -> Any:
    """Build a gate's options from keyword arguments.

    Raises:
        OptionError: an unknown option (nearest names given) or a value that cannot work.
    """
    known = [field.name for field in dataclasses.fields(gate.Options)]
    for name in values:
        if name not in known:
            raise OptionError(unknown_name(f"option of gate {gate.__name__}", name, known or ["(none)"]))
    return gate.Options(**values)
