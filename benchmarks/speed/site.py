"""One site with random experts, in every form that is compared: ours, the reference implementation, one plain LoRA."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from radargate.composition.config import RadarConfig
from radargate.composition.layer import RadarLayer
from radargate.ops import compute_dtype
from radargate.ops import reference as literal

RANK, CODE_RANK = 8, 8


class Site:
    """A linear layer d → d with n experts of the size real adapters have, and an input of so many tokens.

    Args:
        n: experts.
        d: width of input and output.
        tokens: of the input.
        top_k: experts a token keeps; n keeps all.
        gate: name of the gate.
        dtype: of base, experts and input.
        device: where.
        route: of the architecture, for how all experts are summed.
        **options: of the gate.
    """

    def __init__(
        self,
        n: int,
        d: int,
        tokens: int,
        top_k: int,
        *,
        gate: str = "radar",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        route: str = "direct",
        **options: Any,
    ) -> None:
        g = torch.Generator().manual_seed(0)

        def new(*size: int, scale: float) -> Tensor:
            return (torch.randn(*size, generator=g) * scale).to(device, dtype)

        names = [f"e{i}" for i in range(n)]
        kind = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
        entry = {
            "experts": list(range(n)),
            "ranks": [RANK] * n,
            "scales": [2.0] * n,
            "dtypes": [[kind, kind]] * n,
            "shape": [d, d],
        }
        config = RadarConfig(
            experts=names,
            sites={"site": entry},
            gate=gate,
            gate_options=options,
            top_k=top_k,
            architecture_options={} if route == "direct" else {"route": route},
        )
        base = nn.Linear(d, d, bias=False).requires_grad_(False)
        base.weight.data = new(d, d, scale=d**-0.5)
        self.layer = RadarLayer(base, "site")
        self.layer.add("default", config, 0)
        self.layer.to(device)
        self.layer._active_adapter = "default"
        bank = self.layer.bank("default")
        bank.A.data, bank.B.data = new(n * RANK, d, scale=d**-0.5), new(n * RANK, d, scale=0.02)
        self.gate: Any = self.layer.gate("default")
        if self.turns:
            self.gate.rotation_up.data = new(CODE_RANK, d // 2, scale=0.1).float()
        self.A, self.B = list(bank.A.data.split(RANK)), [2.0 * b.T for b in bank.B.data.split(RANK)]
        self.one_A, self.one_B = (nn.Parameter(new(*s, scale=0.02)) for s in ((RANK, d), (RANK, d)))
        self.x = new(tokens, d, scale=1.0).requires_grad_()
        self.grad = new(tokens, d, scale=1.0)
        self.top_k, self.base = top_k, base

    def double(self) -> Site:
        """The same numbers in float64."""
        other = copy.deepcopy(self)
        other.layer.double()
        other.A, other.B, other.grad = [a.double() for a in self.A], [b.double() for b in self.B], self.grad.double()
        other.x = self.x.detach().double().requires_grad_()
        return other

    def update(self, form: str) -> Tensor:
        """Σ_i g_i ṽ_i by ``"ours"`` or ``"literal"``, or the update of one ``"lora"``: [tokens, d]."""
        if form == "ours":
            return self.layer.update(self.x, "default")
        if form == "lora":
            return ((self.x @ self.one_A.T) @ self.one_B) * 2.0
        gate, x = self.gate, self.x.to(compute_dtype(self.x))
        down = gate.rotation_down * gate.rotation_down.shape[-2] ** -0.5 if self.turns else None
        return literal.radar(
            x,
            [a.to(x.dtype) for a in self.A],
            [b.to(x.dtype) for b in self.B],
            gate.softmax_theta,
            down,
            gate.rotation_up if self.turns else None,
            top_k=self.top_k,
            angle_norm=gate.options.angle_norm if self.turns else "none",
        )

    def site(self, form: str) -> Tensor:
        """Base product and update: [tokens, d]."""
        if form == "ours":
            return self.layer(self.x)
        y = self.base(self.x)
        return y if form == "base" else y + self.update(form).to(y.dtype)

    @property
    def turns(self) -> bool:
        """Whether the gate rotates."""
        return hasattr(self.gate, "rotation_up")

    def learning(self, form: str) -> list[Tensor]:
        """What gradients are taken to: the input, and what the form trains."""
        trained = [self.one_A, self.one_B] if form == "lora" else list(self.gate.parameters())
        return [self.x, *([] if form == "base" else trained)]

    def step(self, form: str, whole: bool = False) -> list[Tensor]:
        """Forward and backward; ``whole`` with the base's product."""
        out = self.site(form) if whole else self.update(form)
        return [out, *torch.autograd.grad(out, self.learning(form), self.grad.to(out.dtype))]

    @torch.no_grad()
    def forward(self, form: str, whole: bool = False) -> Tensor:
        """Forward alone."""
        return self.site(form) if whole else self.update(form)
