"""What every gate is: options checked at construction, a forward from one call to weights and rotation codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from radargate import ops
from radargate.architectures.base import Codes
from radargate.data.rows import Row
from radargate.errors import OptionError, shown
from radargate.experts.bank import ExpertBank
from radargate.gates.call_state import current
from radargate.registry import check_declared, unknown_name

ByTask = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class GateSite:
    """The linear layer a gate sits on.

    Attributes:
        d_in: width of its input.
        d_out: width of its output.
        ranks: r_i of each expert there.
        top_k: experts kept per token there, at most their number.
        seed: of the initial values.
        experts: names of the experts there, in order; empty where nobody asks.
        composition: names of all experts of the composition.
        scales: LoRA scale s_i of each expert here; empty where nobody asks.
        asked: experts to keep in the whole composition, of which a site may have fewer; None for all.
    """

    d_in: int
    d_out: int
    ranks: tuple[int, ...]
    top_k: int
    seed: int = 0
    experts: tuple[str, ...] = ()
    composition: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    asked: int | None = None

    @property
    def n(self) -> int:
        """Number of experts here."""
        return len(self.ranks)


@dataclass(frozen=True)
class Call:
    """One forward pass at one site: everything a gate may look at.

    Attributes:
        x: input [..., d_in].
        codes: every expert's output as codes.
        top_k: experts to keep in this pass, None for all.
        multipliers: [n] factors ≥ 0 on the weights, or None.
        real: [...] True for real tokens, False for padding; None where nobody said.
        settle: what the architecture does once weights are known.
        all_multipliers: the same factors [N] for every expert of the composition, or None.
        prior: [..., n] log-weights from the router of the whole model, or None; [..., N] of all experts for who
            ``routes_alone``.
    """

    x: Tensor
    codes: Codes
    top_k: int | None
    multipliers: Tensor | None = None
    real: Tensor | None = None
    settle: Callable[[Codes, Tensor, Tensor | None], Codes] | None = None
    all_multipliers: Tensor | None = None
    prior: Tensor | None = None

    @property
    def h(self) -> Tensor:
        """Codes, for `radargate.ops`."""
        return self.codes.h

    @property
    def B(self) -> Tensor:
        """Stacked B, or basis of dense codes."""
        return self.codes.B

    @property
    def ranks(self) -> tuple[int, ...] | None:
        """Ranks, or None for dense codes."""
        return self.codes.ranks


@dataclass(frozen=True)
class Turn:
    """Rotation codes [..., k or 1, r_a], Q, and how angles are bounded."""

    codes: Tensor
    up: Tensor
    angle_norm: str = "none"


@dataclass(frozen=True)
class GateOutput:
    """What the layer needs: weights [..., k], indices [..., k] or None, final codes, a turn, and an extra [..., d]."""

    weights: Tensor
    indices: Tensor | None
    codes: Codes
    turn: Turn | None = None
    extra: Tensor | None = None


class Gate(nn.Module):
    """Base of all gates and rules.

    A subclass has a frozen dataclass ``Options`` whose ``__post_init__`` checks values, writes `weigh` and, where it does
    more than weigh, `turn`, `extra` or `settle`. Its parameters decide weights, but for those that it names in
    ``beside_weights``, which have a learning rate of their own. It promises:

    - ``order_free``: permuting the experts leaves the output.
    - ``token_local``: a token's output needs no other token, so that cached generation is exact. An instance may
      say no where an option makes it so.
    - ``whole_sequence``: every token needs all others, so it may only stand where all are there from the start.
    - ``architectures``: those it works under; None for all (``why_not`` says why).
    - ``static``: its weights are the same for every token, so that the composition is one ordinary LoRA.
    - ``joins``: a new expert may join the trained gate (see `radargate.add_experts`).
    - ``acts_alone``: it has a say at sites with a single expert too (else that expert has weight 1).
    - ``routes_alone``: the router of the whole model decides alone, and is not trained.
    - ``trains_alone``: each expert's parameters (``own_parameters``) are trained with that expert alone switched on, on
      the rows of the task of its name, for as many steps as other gates are trained in all.
    """

    # "paper": one of the paper's; "control": what a gate is measured against; "rival": of other papers; "rule"
    role: ClassVar[str] = "gate"
    order_free: ClassVar[bool] = True
    token_local: bool = True
    whole_sequence: bool = False
    architectures: ClassVar[tuple[str, ...] | None] = None
    why_not: ClassVar[str] = ""
    static: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    acts_alone: ClassVar[bool] = False
    beside_weights: ClassVar[tuple[str, ...]] = ()
    routes_alone: ClassVar[bool] = False
    trains_alone: ClassVar[bool] = False
    Options: ClassVar[type]

    def __init__(self, site: GateSite, options: Any) -> None:
        super().__init__()
        self.site, self.options = site, options

    @classmethod
    def check(cls, options: Any, experts: Sequence[str], architecture: str) -> None:
        """Raise `OptionError` where options do not fit a composition; called before anything is loaded."""
        if architecture == "omoe" and getattr(options, "renormalize", None) == "straight_through":
            raise OptionError(
                "renormalize='straight_through' lets one expert act as it was trained, which outputs made orthogonal "
                "(architecture 'omoe') are not. Use architecture 'mole' or 'hydra'."
            )

    @classmethod
    def check_tasks(cls, options: Any, tasks: Collection[str], experts: Sequence[str]) -> None:
        """Raise `OptionError` where an expert needs training rows of the task of its name and has none; called before anything is loaded."""
        missing = [name for name in experts if name not in tasks] if cls.names_tasks(options) else []
        if missing:
            raise OptionError(
                f"{cls.__name__} reads each expert's own rows, those of the task of its name, and there is none for {missing[0]!r}, "
                f"only {', '.join(tasks)}. Name the experts like their tasks (NAME=PATH)."
            )

    @classmethod
    def routes_prompts(cls, options: Any) -> bool:
        """Whether the router decides once, by the whole prompt."""
        return False

    @classmethod
    def names_tasks(cls, options: Any) -> bool:
        """Whether each expert needs training rows of the task of its name."""
        return cls.trains_alone

    @classmethod
    def needs_equal_ranks(cls, options: Any) -> bool:
        """Whether all experts of a site must have one rank."""
        return False

    @classmethod
    def routes(cls, options: Any) -> bool:
        """Whether a router of the whole model has a say in its weights: then `Call.prior` is there."""
        return False

    @classmethod
    def weighs_codes(cls, options: Any) -> bool:
        """Whether it looks at codes before experts are chosen, or settles them its own way; if not, codes may come later."""
        return True

    @classmethod
    def arrange(cls, bank: ExpertBank, options: Any, seed: int) -> ExpertBank:
        """The bank as this gate wants it, after the architecture has arranged it."""
        return bank

    def weigh(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Weights [..., k] and chosen experts [..., k], or None for all in order."""
        raise NotImplementedError

    def settle(self, call: Call, weights: Tensor, indices: Tensor | None) -> Codes:
        """The codes that are mixed; the architecture's own unless a rule mixes A and B apart."""
        return call.codes if call.settle is None else call.settle(call.codes, weights, indices)

    def turn(self, call: Call, weights: Tensor, indices: Tensor | None) -> Turn | None:
        """How chosen experts are turned; None not at all."""
        return None

    def extra(self, call: Call) -> Tensor | None:
        """Something [..., d] added to the update beside the experts."""
        return None

    def forward(self, call: Call) -> GateOutput:
        """Weigh, let the architecture settle, turn."""
        weights, indices = self.weigh(call)
        codes = self.settle(call, weights, indices)
        if codes is not call.codes:
            call = dataclasses.replace(call, codes=codes)
        return GateOutput(weights, indices, codes, self.turn(call, weights, indices), self.extra(call))

    def recipe(self) -> ops.Recipe | None:
        """All that `forward` does, where a `Recipe` says all of it, so that one compiled call can do it; else None.

        Not inherited: a subclass may change any step, so it says again what its own come to.
        """
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "recipe" not in cls.__dict__:
            cls.recipe = Gate.recipe  # type: ignore[method-assign]

    def prepare(self, A: Tensor, B: Tensor, scales: Sequence[float]) -> None:
        """Called once when experts are filled in: A and B [R, …] raw, one scale an expert."""

    @classmethod
    def take(cls, values: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Split what a user gave into options, which are saved, and data for `receive`."""
        return values, None

    @classmethod
    def check_given(cls, given: Any, experts: Sequence[str]) -> Any:
        """The data that `take` found, checked before anything is loaded."""
        return given

    @classmethod
    def read_given(cls, given: Any, base: Any, options: Any) -> Any:
        """The same once the base is loaded, as `receive` wants it."""
        return given

    @classmethod
    def reads_own_rows(cls, values: Mapping[str, Any]) -> bool:
        """Whether the options that a user gave ask for something that is computed from each expert's own training rows."""
        return False

    @classmethod
    def from_rows(cls, values: dict[str, Any], base: Any, tokenizer: Any, own: ByTask) -> dict[str, Any]:
        """The options that a user gave, with what they ask to be computed from the rows of each expert's own: expert → rows."""
        return values

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Its parameters by the learning rate they take: ``"softmax"`` of weights, ``"rotation"`` of everything else."""
        groups: dict[str, list[nn.Parameter]] = {"softmax": [], "rotation": []}
        for name, parameter in self.named_parameters():
            groups["rotation" if name in self.beside_weights else "softmax"].append(parameter)
        return groups

    def own_parameters(self, expert: int) -> tuple[str, ...]:
        """Names of the parameters that only one expert has (by its place here), so that they learn nothing where it is silent."""
        return ()

    @classmethod
    def check_joins(cls, options: Any) -> None:
        """Raise `OptionError` where these options let no new expert join, though the gate could."""

    @classmethod
    def start_router(cls, router: Any, data: Any, experts: Sequence[str], options: Any) -> None:
        """Called with the composition's router, where it has one, and the data that `take` found."""

    def receive(self, data: Any) -> None:
        """Called after `prepare` with the data that `take` found, where it found any."""

    def note(self, statistic: Tensor) -> None:
        """Hand a statistic of this forward to the auxiliary loss, where a training step asks for it."""
        noted = current.get().noted
        if noted is not None:
            noted.append((self, statistic))

    @classmethod
    def auxiliary(cls, terms: Sequence[tuple[Gate, Tensor]]) -> Tensor:
        """The unweighted auxiliary loss from what all sites noted: their mean."""
        return torch.stack([statistic for _, statistic in terms]).mean()

    def normal(self, *shape: int, std: float, salt: int = 0) -> nn.Parameter:
        """A float32 parameter drawn from N(0, std²); the same for the same site, seed and salt."""
        return self._draw(shape, salt, lambda generator: torch.randn(shape, generator=generator, device="cpu") * std)

    def uniform(self, *shape: int, bound: float, salt: int = 0) -> nn.Parameter:
        """The same drawn evenly from ±bound."""
        return self._draw(
            shape, salt, lambda generator: (2 * torch.rand(shape, generator=generator, device="cpu") - 1) * bound
        )

    def _draw(self, shape: tuple[int, ...], salt: int, draw: Callable[[torch.Generator], Tensor]) -> nn.Parameter:
        if torch.empty(0).device.type == "meta":
            return nn.Parameter(torch.empty(*shape))
        return nn.Parameter(draw(torch.Generator().manual_seed((self.site.seed + 7919 * salt) % (1 << 63))))


class OneExpert(Gate):
    """What stands at a site with a single expert: nothing to weigh against, nothing to turn by; weight 1."""

    def weigh(self, call: Call) -> tuple[Tensor, None]:
        """Weight 1, or 0 where the expert is switched off."""
        on = 1.0 if call.multipliers is None else (call.multipliers > 0).to(call.x)
        return torch.ones(*call.x.shape[:-1], 1, dtype=call.x.dtype, device=call.x.device) * on, None

    def recipe(self) -> ops.Recipe | None:
        """Weight 1, and nothing else."""
        return ops.Recipe()


def make_options(kind: type, values: dict[str, Any]) -> Any:
    """Build the options of a gate, rule or architecture from keyword arguments.

    Raises:
        OptionError: an unknown option (nearest names given) or a value that cannot work.
    """
    known = [field.name for field in dataclasses.fields(kind.Options)]  # type: ignore[attr-defined]
    for name in values:
        if name not in known:
            raise OptionError(unknown_name(f"option of {kind.__name__}", name, known or ["(none)"]))
    try:
        options = kind.Options(**values)  # type: ignore[attr-defined]
        check_declared(options)
        return options
    except (
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:  # a comparison that a value of another kind does not know
        raise OptionError(
            f"an option of {kind.__name__} has a value of the wrong kind ({error}); found {shown(values)}. Expected a number, got "
            "a string (or the reverse): check the option's type."
        ) from error
