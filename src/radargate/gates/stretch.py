"""Stretch: softmax weights from the input (Eq. 1) or from the concatenated expert outputs (App. B.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from radargate import ops
from radargate.errors import OptionError
from radargate.gates.balance import gshard
from radargate.gates.base import Call, Gate, GateSite
from radargate.gates.router.examples import ReadsExamples
from radargate.registry import bounded, one_of

LENGTHS = ("one", "expert")
ROUTERS = ("none", "text", "prompt")
STARTS = ("zero", "select")


@dataclass(frozen=True)
class StretchOptions:
    """Readings of the stretch gate.

    Attributes:
        temperature: τ > 0 of the softmax.
        renormalize: kept weights sum to 1: ``"auto"`` (k > 1 only), ``"always"`` (as printed) or ``"never"``.
            ``"straight_through"``: one expert a token, whatever ``top_k`` and the dense start of training say, of weight
            exactly 1; gradients are those of the softmax over all experts (Hard-Routed MoR-LoRA, arXiv 2606.31413).
        gate_input: ``"input"`` x (Eq. 1) or ``"experts"``: concatenated outputs (App. B.2).
        norm: ``"layer"`` or ``"rms"``, of the concatenated outputs.
        init_std: spread of the initial θ_s.
        auxiliary_weight: of the load-balance loss (not in the paper).
        length: ``"one"``: kept weights are those of the softmax; ``"expert"``: times a learned factor for each expert, e^{ℓ_i},
            which starts at 1 (not in the paper).
        router: ``"text"``: weights are also times those of one decision for the whole model, made from the text so far (see
            `TextRouter`; not in the paper). ``"prompt"``: from all of the prompt, for every token of it and of the answer: in
            training what comes before the first label, else all that the first call reads.
        router_start: ``"zero"``: before training the router weighs all alike; ``"select"``: it knows each expert's example
            prompts as rule ``select`` does, θ_s is 0, and the gate is that rule's (``scope="text"``, ``use="weighted"``).
    """

    temperature: float = bounded(1.0, above=0)
    renormalize: str = one_of("auto", ops.RENORMALIZE)
    gate_input: str = one_of("input", ops.GATE_INPUTS)
    norm: str = one_of("layer", ops.NORMS)
    init_std: float = bounded(0.02, least=0)
    auxiliary_weight: float = bounded(0.0, least=0)
    length: str = one_of("one", LENGTHS)
    router: str = one_of("none", ROUTERS)
    router_start: str = one_of("zero", STARTS)

    def __post_init__(self) -> None:
        """Check what depends on each other."""
        if self.router_start != "zero" and self.router == "none":
            raise OptionError("router_start='select' says how a router starts, and there is none. Add router='text'.")


class StretchGate(ReadsExamples, Gate):
    """How much of each expert: g = topk(softmax(x θ_s / τ)).

    Source: arXiv 2505.23184, Eq. 1; App. B.2 for ``gate_input="experts"``.
    """

    role = "paper"

    @dataclass(frozen=True)
    class Options(StretchOptions):
        """Options of the stretch gate alone: nothing is rotated, so it cannot see rotated outputs."""

        def __post_init__(self) -> None:
            """Check every value."""
            super().__post_init__()
            if self.gate_input == "rotated":
                raise OptionError("gate_input='rotated' needs a rotation; use gate='radar'.")

    def __init__(self, site: GateSite, options: StretchOptions) -> None:
        super().__init__(site, options)
        shape = (site.n, site.d_in) if options.gate_input == "input" else (site.n * site.d_out, site.n)
        self.softmax_theta = self.normal(*shape, std=0.0 if options.router_start == "select" else options.init_std)
        self.softmax_length = nn.Parameter(torch.zeros(site.n)) if options.length == "expert" else None

    @classmethod
    def wants_examples(cls, values: Mapping[str, Any]) -> bool:
        """Where the router starts from them."""
        return bool(values.get("router_start") == "select")

    @classmethod
    def routes(cls, options: Any) -> bool:
        """Where the option says so."""
        return bool(options.router != "none")

    @classmethod
    def routes_prompts(cls, options: Any) -> bool:
        """Where the option says so."""
        return bool(options.router == "prompt")

    @classmethod
    def weighs_codes(cls, options: Any) -> bool:
        """Only where outputs are its input."""
        return bool(options.gate_input != "input")

    def logits(self, call: Call) -> Tensor:
        """Logits [..., n] before temperature and softmax."""
        theta = self.softmax_theta.to(call.x)
        if self.options.gate_input == "input":
            return call.x @ theta.T
        if self.options.gate_input == "rotated":
            return self.rotated_logits(call, theta)
        return ops.expert_logits(call.h, call.B, call.ranks, theta, self.options.norm)

    def rotated_logits(self, call: Call, theta: Tensor) -> Tensor:
        """The same from rotated outputs, for who has a rotation."""
        raise NotImplementedError

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Weights and indices of the experts this call keeps."""
        options, logits = self.options, self.logits(call)
        if self.training and options.auxiliary_weight:
            scores = logits / options.temperature
            self.note(gshard((scores if call.prior is None else scores + call.prior).softmax(-1), call.real))
        weights, indices = ops.select(
            logits, call.top_k, options.temperature, options.renormalize, multipliers=call.multipliers, prior=call.prior
        )
        if self.softmax_length is None:
            return weights, indices
        length = self.softmax_length.to(weights).exp()
        return weights * (length if indices is None else length[indices]), indices

    def recipe(self) -> ops.Recipe | None:
        """Logits from the input, and nothing else."""
        options = self.options
        if options.gate_input != "input" or options.length != "one" or options.renormalize == "straight_through":
            return None
        return ops.Recipe(self.softmax_theta, options.temperature, options.renormalize)
