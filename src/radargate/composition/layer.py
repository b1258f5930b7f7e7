"""The layer around one linear layer of the base: codes → gate → mix, added to the base's own output."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from radargate import ops
from radargate.architectures import ARCHITECTURES
from radargate.composition.config import RadarConfig, gate_class
from radargate.errors import OptionError, RadarGateError, shown
from radargate.experts.bank import Bank
from radargate.gates.base import Call, Gate, GateOutput, GateSite, OneExpert, make_options
from radargate.gates.call_state import CallState, Masks, current
from radargate.gates.router.router import TextRouter
from radargate.gates.router.running_text import TextSoFar
from radargate.registry import unknown_name

# of a factor on an expert's weight: in float32 less may be 0, and more may overflow
SMALLEST_FACTOR, LARGEST_FACTOR = 1e-30, 1e6
# True while `radargate.load` reads a bundle that holds gates only, before it fills the banks
banks_come_later: ContextVar[bool] = ContextVar("radargate_banks_come_later", default=False)


class RadarLayer(nn.Module, BaseTunerLayer):
    """Any module that maps [..., d_in] to [..., d_out], with a composition of experts added.

    It only ever calls ``base_layer(x)``, so quantised and Conv1D layers serve as well as plain ones.
    """

    adapter_layer_names = ("radar_gate",)
    other_param_names = ("radar_bank",)

    def __init__(self, base_layer: nn.Module, site: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.site = site
        self.radar_gate = nn.ModuleDict()
        self.radar_bank = nn.ModuleDict()
        self.entries: dict[str, tuple[RadarConfig, dict[str, Any]]] = {}
        self.architectures: dict[str, Any] = {}
        self.looks: dict[str, bool] = {}  # whether a gate looks at codes before experts are chosen
        self.routers: dict[str, TextRouter] = {}  # of the whole model; one of its sites holds the parameters
        self._remembered: CallState | None = None
        self.two_stacks = False  # whether the base has an encoder and a decoder
        self.dense = False  # True while training has not yet cut to top-k
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def add(self, adapter_name: str, config: RadarConfig, index: int) -> None:
        """Build the bank and gate of one composition at this site, empty until weights are loaded."""
        entry = config.sites[self.site]
        d_in, d_out = entry["shape"]
        n = len(entry["experts"])
        names = tuple(config.experts[i] for i in entry["experts"])
        site = GateSite(
            d_in,
            d_out,
            tuple(entry["ranks"]),
            min(config.top_k or n, n),
            config.seed * 100_003 + index,
            names,
            tuple(config.experts),
            tuple(entry["scales"]),
            config.top_k,
        )
        kind, architecture = gate_class(config.gate), ARCHITECTURES.get(config.architecture)
        alone = n == 1 and not kind.acts_alone
        gate: Gate = OneExpert(site, None) if alone else kind(site, make_options(kind, config.gate_options))
        if gate.whole_sequence and not reads_encoder(self.site, self.two_stacks):
            raise OptionError(
                f"{config.gate!r} with these options weighs whole sequences, but at {self.site} a token may only see those "
                "before it. Use pool='token', or adapters on encoder layers only."
            )
        self.radar_bank[adapter_name] = Bank(entry, d_in, d_out, architecture.rows(site.ranks))
        self.radar_gate[adapter_name] = gate
        self.entries[adapter_name] = (config, entry)
        self.looks[adapter_name] = gate.weighs_codes(gate.options)
        self.architectures[adapter_name] = architecture(
            site.ranks, make_options(architecture, config.architecture_options)
        )

    def bank(self, name: str) -> Bank:
        """The experts of one composition here."""
        return cast(Bank, self._modules["radar_bank"]._modules[name])  # type: ignore[union-attr]

    def gate(self, name: str) -> Gate:
        """The gate of one composition here."""
        # past the module's own lookup, which a token would wait for at every site
        return cast(Gate, self._modules["radar_gate"]._modules[name])  # type: ignore[union-attr]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's call; while the base reads for itself, its own layer alone, and no hook on this one sees it."""
        return self.base_layer(*args, **kwargs) if current.get().plain else super().__call__(*args, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Base output plus the update of the active composition."""
        y = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters:
            return y
        state = self._state()
        for name in self.active_adapters:
            if name in self._modules["radar_gate"]._modules and not self._silent(name, state):  # type: ignore[union-attr]
                y = self.onto(x, y, name, state)
        return y

    def onto(
        self, x: Tensor, y: Tensor, name: str, state: CallState, columns: Sequence[tuple[int, int]] | None = None
    ) -> Tensor:
        """A base's output y [..., d_out] for x [..., d_in] plus the update, for who called the base itself; y stays as it is.

        With ``columns`` (see `radargate.ops.mix`) y has these alone.
        """
        added = self._at_once(x, name, y, state) if columns is None else None
        return self._update(x, name, y, state, columns) if added is None else added

    def update(self, x: Tensor, name: str) -> Tensor:
        """Σ_i g_i ṽ_i for x [..., d_in], in float32 or wider also under autocast."""
        return self._update(x, name, None, self._state())

    def gated(self, x: Tensor, name: str) -> GateOutput:
        """The first two steps, codes and gate."""
        return cast(GateOutput, self.gate(name)(self.call(x, name)))

    def call(self, x: Tensor, name: str) -> Call:
        """What the gate looks at."""
        return self._call(x, name, self._state())

    def silent(self, name: str) -> bool:
        """Whether the call switched every expert of this site off."""
        return self._silent(name, self._state())

    def _update(
        self,
        x: Tensor,
        name: str,
        onto: Tensor | None,
        state: CallState,
        columns: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """The update, or some columns of it, added to ``onto`` where that is given."""
        with _without_autocast(x.device.type):
            gated: GateOutput = self.gate(name)(self._call(x, name, state))
            codes, turn, weights = gated.codes, gated.turn, gated.weights
            by, norm = ((), "none") if turn is None else ((turn.codes, turn.up), turn.angle_norm)
            base = onto if gated.extra is None else None
            update = ops.mix(
                codes.h, codes.B, codes.ranks, weights, gated.indices, *by, angle_norm=norm, onto=base, columns=columns
            )
            if gated.extra is None:
                return update
            extra = gated.extra
            update = update + (
                extra if columns is None else torch.cat([extra[..., start:end] for start, end in columns], -1)
            )
            return update if onto is None else onto + update.to(onto.dtype)

    def _at_once(self, x: Tensor, name: str, onto: Tensor, state: CallState) -> Tensor | None:
        """``onto`` plus the update in one call, for few tokens and a gate that one call can follow; else None."""
        if state.experts is not None or x.numel() > ops.MOST_TOKENS * x.shape[-1]:
            return None
        gate = self.gate(name)
        watched = gate._forward_hooks or gate._forward_pre_hooks or "forward" in gate.__dict__
        recipe = gate.recipe() if self.architectures[name].plain and not watched else None
        if recipe is None:
            return None
        # a base in half precision: computed as elsewhere, in float32, and added as elsewhere, in the base's own dtype
        full, A, B, scale = self.bank(name).inputs(x)
        to = onto if onto.dtype == full.dtype else torch.zeros_like(onto, dtype=full.dtype)
        compiled = ops.site_applies(full, to)
        if not (compiled or ops.few_applies(full, to)):
            return None
        site, prior = ops.site if compiled else ops.few_site, self._prior(name, full, state.text)
        found = site(full, A, B, scale, self.bank(name).ranks, recipe, self._top_k(gate), to, prior)
        return found if found is None or to is onto else onto + found.to(onto.dtype)

    def _top_k(self, gate: Gate) -> int | None:
        """Experts to keep in this pass, None for all."""
        site = gate.site
        return None if self.dense or site.top_k == len(site.ranks) else site.top_k

    def _call(self, x: Tensor, name: str, state: CallState) -> Call:
        """Codes as early as the gate needs them, and what else the call brought along."""
        gate, architecture = self.gate(name), self.architectures[name]
        inputs, top_k = self.bank(name).inputs(x), self._top_k(gate)
        x, early = inputs[0], top_k is not None and not self.looks[name]
        codes = architecture.early(*inputs, top_k) if early else architecture.codes(*inputs)
        real = real_tokens(state.masks or (None, None), self.site, self.two_stacks, x.shape[:-1])
        settle = architecture.settle if architecture.settles else None
        here, everywhere = self._multipliers(name, x, state.experts)
        return Call(x, codes, top_k, here, real, settle, everywhere, self._prior(name, x, state.text))

    def _state(self) -> CallState:
        """Masks, expert factors and text of the call in progress.

        Gradient checkpointing runs a layer once more during the backward pass, outside of the call and, on a GPU, in
        another thread; it then gets what the layer saw last.
        """
        state = current.get()
        if state.masks is None and state.text is None:
            return self._remembered if self.training and self._remembered is not None else state
        if self.training:
            self._remembered = dataclasses.replace(state, noted=None)
        return state

    def _silent(self, name: str, state: CallState) -> bool:
        config, entry = self.entries[name]
        asked = state.experts
        return asked is not None and all(asked.get(config.experts[i], 1.0) == 0 for i in entry["experts"])

    def _multipliers(
        self, name: str, x: Tensor, asked: Mapping[str, float] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What `using` asked for: factors of the experts here, and of all in the composition."""
        if asked is None:
            return None, None
        config, entry = self.entries[name]
        everywhere = [float(asked.get(expert, 1.0)) for expert in config.experts]
        factors = torch.tensor(everywhere, dtype=x.dtype, device=x.device)
        return factors[list(entry["experts"])], factors

    def _prior(self, name: str, x: Tensor, text: TextSoFar | None) -> Tensor | None:
        """The router's log-weights [..., n] of the experts here, where the composition has one."""
        if name not in self.routers:
            return None
        if text is None:
            raise RadarGateError(
                f"{self.site} was called on its own, and the router of this composition has read no text. Call the model as a "
                "whole, with input_ids or inputs_embeds."
            )
        weights, here = text.log_weights(self.routers[name]), self.entries[name][1]["experts"]
        if self.gate(name).routes_alone:
            here = range(weights.shape[-1])
        if text.whole and x.dim() == 3 and x.shape[0] == weights.shape[0]:
            weights = weights.expand(-1, x.shape[1], -1)
        if weights[..., 0].numel() != x[..., 0].numel() or (text.whole and x.dim() != 3):
            raise RadarGateError(
                f"{self.site} got an input of shape {tuple(x.shape)} where the text has {tuple(weights.shape[:-1])} tokens: the router "
                "of this composition cannot tell which are which. Leave router='text' out."
            )
        chosen = weights if len(here) == weights.shape[-1] else weights[..., list(here)]
        return chosen.reshape(*x.shape[:-1], len(here)).to(x).contiguous()

    def decodes(self) -> bool:
        """Whether answers can be generated token by token: each gate is token-local, or sees whole inputs anyway."""
        gates = [self.gate(name) for name in self.active_adapters if name in self.radar_gate]
        return reads_encoder(self.site, self.two_stacks) or all(gate.token_local for gate in gates)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """A composition depends on each token, so it cannot be merged into the base weights."""
        raise RadarGateError(
            "A composition cannot be merged into the base weights: its weights and angles differ from token to token. "
            "Serve it with radargate, or use unload() to get the base model back. Under a static rule, radargate.save_as_lora "
            "makes one LoRA of it, which PEFT can merge."
        )

    def unmerge(self) -> None:
        """Nothing is ever merged."""


def _without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast off; entering that where it is off already would cost as much as a product with few tokens."""
    # shapes without data, as radargate plan has them, know no autocast
    on = torch.compiler.is_compiling() or (device != "meta" and torch.is_autocast_enabled(device))
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


def reads_encoder(site: str, two_stacks: bool) -> bool:
    """Whether a site's input are encoder states, of which every token may see every other."""
    parts = site.split(".")
    crosses = any(p in ("EncDecAttention", "encoder_attn", "crossattention") for p in parts)
    return two_stacks and ("decoder" not in parts or (crosses and parts[-1] in ("k", "v", "k_proj", "v_proj")))


def real_tokens(masks: Masks, site: str, two_stacks: bool, shape: torch.Size) -> Tensor | None:
    """Which tokens of a site's input [batch, length] are real, where the call said so."""
    first, second = masks
    mask = first if not two_stacks or reads_encoder(site, two_stacks) else second
    return mask.bool() if mask is not None and mask.shape == shape else None


@contextlib.contextmanager
def using(model: nn.Module, experts: Mapping[str, float]) -> Iterator[None]:
    """Mask or scale experts for the calls inside the block, in this thread or task only.

    Args:
        model: a composed model.
        experts: name → factor ≥ 0 on the expert's weight before weights are renormalised; 0 switches it off,
            experts not named keep 1.

    Raises:
        OptionError: an unknown expert, or a factor that is no number from 0 to 1,000,000.
    """
    with current.block(experts=check_multipliers(model, experts) or None):
        yield


def check_multipliers(model: nn.Module, experts: Mapping[str, float]) -> dict[str, float]:
    """Expert factors whose names exist in the model and whose values can work."""
    known: list[str] = []
    for module in model.modules():
        if isinstance(module, RadarLayer):
            for config, _ in module.entries.values():
                known += [name for name in config.experts if name not in known]
    if not known:
        raise OptionError("this model holds no composition; make one with radargate.compose.")
    return check_factors(experts, known)


def check_factors(experts: Mapping[str, Any], known: Sequence[str]) -> dict[str, float]:
    """Expert factors whose names are known and whose values can work.

    Raises:
        OptionError: an unknown expert (the nearest are named), or a factor that is no number from 0 to 1,000,000.
    """
    checked = {}
    for name, given in experts.items():
        name = str(name)  # numbers may be names
        if name not in known:
            raise OptionError(unknown_name("expert", name, list(known)))
        try:
            factor = math.nan if isinstance(given, (bool, str)) else float(given)
        except (TypeError, ValueError, OverflowError):  # OverflowError: a whole number of hundreds of digits
            factor = math.nan
        if not 0 <= factor <= LARGEST_FACTOR:
            raise OptionError(
                f"expert {name!r} has factor {shown(repr(given))}, expected a finite number of at least 0 and at most "
                f"{LARGEST_FACTOR:,.0f}."
            )
        checked[name] = factor if factor >= SMALLEST_FACTOR else 0.0
    return checked
