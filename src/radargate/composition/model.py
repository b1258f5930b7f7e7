"""The tuner that PEFT drives: with `radargate.composition.registration`, the only place that touches PEFT's inner parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, MutableMapping
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from radargate.base_models.kinds import has_two_stacks, shifts_labels
from radargate.base_models.offload import place_of
from radargate.composition.config import RadarConfig, gate_class
from radargate.composition.heads import freeze_heads, restore_heads
from radargate.composition.layer import RadarLayer, banks_come_later, check_multipliers
from radargate.composition.registration import PREFIX
from radargate.errors import BundleError, OptionError, RadarGateError, shown
from radargate.experts.adapters import base_sites
from radargate.gates.base import Gate, make_options
from radargate.gates.call_state import Masks, current
from radargate.gates.router.hooks import (
    check_reads_text,
    embeddings,
    forward_of,
    leave_hidden,
    reading,
    reads_tokens,
    unwatch,
    watch,
)
from radargate.gates.router.router import TextRouter


def auxiliary_loss(terms: list[tuple[Gate, torch.Tensor]]) -> torch.Tensor:
    """The weighted auxiliary loss from what the gates of all sites noted in one forward."""
    kinds: dict[type[Gate], list[tuple[Gate, torch.Tensor]]] = {}
    for gate, statistic in terms:
        kinds.setdefault(type(gate), []).append((gate, statistic))
    losses = [kind.auxiliary(noted) * noted[0][0].options.auxiliary_weight for kind, noted in kinds.items()]
    return torch.stack(losses).sum()


def label_share(labels: torch.Tensor | None, items: Any, shifts: bool) -> torch.Tensor | float:
    """Share of an optimizer step's labels that one call holds; 1 where the step is one call or nobody counted.

    ``items`` is Trainer's ``num_items_in_batch``, which leaves out a first label that no token predicts (``shifts``).
    """
    if not isinstance(labels, torch.Tensor) or items is None:
        return 1.0
    return ((labels[..., 1:] if shifts else labels) != -100).sum() / items


def _masks(kwargs: dict[str, Any]) -> Masks:
    """Which tokens of a call are real: of its input, and of the decoder."""
    labels, decoder = kwargs.get("labels"), kwargs.get("decoder_attention_mask")
    if decoder is None and isinstance(labels, torch.Tensor):
        decoder = labels != -100
    return kwargs.get("attention_mask"), decoder


class RadarModel(BaseTuner):
    """Puts a `RadarLayer` around every linear layer of the site table.

    Gates are trainable, banks are not. Saving is structural (every tensor of our layers is written); loading is
    strict: a missing, extra or misshaped tensor raises.
    """

    prefix = PREFIX
    tuner_layer_cls = RadarLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        self.__dict__["_routers"] = {}  # before PEFT's own, which puts the layers in
        super().__init__(model, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: RadarConfig, model_config: dict[str, Any]) -> RadarConfig:
        return peft_config

    def _check_new_adapter_config(self, config: RadarConfig) -> None:
        if not config.sites:
            raise BundleError(
                "this RadarConfig has no site table. Compose with radargate.compose(base, adapters), or load a bundle "
                "with radargate.load or PeftModel.from_pretrained."
            )

    @staticmethod
    def _check_target_module_exists(peft_config: RadarConfig, key: str) -> bool:
        return key in peft_config.sites

    def _create_and_replace(
        self,
        peft_config: RadarConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        index = list(peft_config.sites).index(current_key)
        # before anything is changed, should a router not fit
        router = self._router(peft_config, adapter_name, current_key, target)
        if isinstance(target, RadarLayer):
            target.add(adapter_name, peft_config, index)
            layer = target
        else:
            layer = RadarLayer(target, current_key)
            layer.two_stacks = has_two_stacks(self.model)
            layer.add(adapter_name, peft_config, index)
            self._replace_module(parent, target_name, layer, target)
        if router is not None:
            layer.routers[adapter_name] = router
            if current_key == min(
                filter(reads_tokens, peft_config.sites)
            ):  # one gate holds it: PEFT saves and trains what stands in layers
                layer.gate(adapter_name).router = router
        device = place_of(layer.base_layer)
        if device.type != "meta":
            for module in (layer.radar_gate[adapter_name], layer.radar_bank[adapter_name]):
                if not any(t.device.type == "meta" for t in (*module.parameters(), *module.buffers())):
                    module.to(device)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, RadarLayer) and place_of(child).type != next(child.parameters()).device.type:
            setattr(parent, child_name, new_module)  # PEFT would move ours to where the base's are not
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _router(self, config: RadarConfig, adapter_name: str, site: str, target: nn.Module) -> TextRouter | None:
        """The router that a composition's gates share, where they have one; made at its first site."""
        kind, base = gate_class(config.gate), cast(Any, self.model)
        chooses = kind.routes_alone or any(len(entry["experts"]) > 1 for entry in config.sites.values())
        if not chooses or not kind.routes(make_options(kind, config.gate_options)):
            return None
        check_reads_text(base)
        if base.get_output_embeddings() is getattr(target, "base_layer", target):
            raise OptionError(
                f"a router of the whole model (router=…, rule select) cannot serve {site}, the model's output layer, which is outside of "
                "what reads the text. Use a gate without a router, or compose adapters without that target."
            )
        if not reads_tokens(site):
            return None  # a pooler or a head: one vector a text
        options = make_options(kind, config.gate_options)
        hidden = kind.routes_alone and options.features == "hidden"
        if hidden and base.config.is_encoder_decoder:
            raise OptionError(
                f"features='hidden' reads a decoder's own states, and {type(base).__name__} has an encoder. Use features='embedding'."
            )
        watch(base, hidden)
        if adapter_name not in self._routers:
            width = base.get_decoder().config.hidden_size if hidden else embeddings(base).embedding_dim
            router = TextRouter(len(config.experts), width, not kind.routes_alone, kind.routes_prompts(options), hidden)
            for name, other in self._routers.items():  # TRL makes its reference this way and copies parameters only
                if cast(RadarConfig, self.peft_config[name]).experts == config.experts:
                    router.take_texts(other)
            self._routers[adapter_name] = router
        return self._routers[adapter_name]

    @property
    def reads_whole_prompts(self) -> bool:
        """Whether a composition chooses experts by all that is read at first, so that a prompt must come in one piece and alone."""
        return any(router.keeps_first for router in self._routers.values())

    def unload(self) -> nn.Module:
        """The base model, without layers, heads and hooks of ours."""
        restore_heads(self.model)
        base = super().unload()
        unwatch(base)
        return base

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Choose the compositions at work; heads stay frozen."""
        super().set_adapter(*args, **kwargs)
        freeze_heads(self.model)

    def enable_adapter_layers(self) -> None:
        """Back to work; heads stay frozen."""
        super().enable_adapter_layers()
        freeze_heads(self.model)

    def delete_adapter(self, adapter_name: str) -> None:
        """Drop one composition."""
        super().delete_adapter(adapter_name)
        self._routers.pop(adapter_name, None)
        layers = [module for module in self.model.modules() if isinstance(module, RadarLayer)]
        for layer in layers:
            layer.routers.pop(adapter_name, None)
        if not any(layer.routers for layer in layers):
            unwatch(self.model)
        elif not any(router.reads_hidden for router in self._routers.values()):
            leave_hidden(self.model)

    def _pre_injection_hook(self, model: nn.Module, config: RadarConfig, adapter_name: str) -> None:
        names = {name for name, _ in model.named_modules()}
        missing = [site for site in config.sites if site not in names]
        if missing:
            raise BundleError(
                f"{len(missing)} of {len(config.sites)} sites of this bundle are not in the base model, the first is "
                f"{shown(missing[0])}. The bundle belongs to {config.base_model_name_or_path or 'another base'}."
            )
        shapes = base_sites(model)
        for site, entry in config.sites.items():  # before memory is taken for what a config claims
            real = shapes.get(site)
            if real is None or tuple(entry["shape"]) != (real.d_in, real.d_out):
                raise BundleError(
                    f"this bundle has experts of shape {tuple(entry['shape'])} for {shown(site)}, which in the base model is "
                    f"{'no linear layer' if real is None else (real.d_in, real.d_out)}. The bundle belongs to "
                    f"{config.base_model_name_or_path or 'another base'}."
                )

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.requires_grad = False
        for module in model.modules():
            if isinstance(module, RadarLayer):
                for name in module.active_adapters:
                    if name in module.radar_gate and not self.peft_config[name].inference_mode:
                        module.radar_gate[name].requires_grad_(True)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Gates are float32 from the start; the bank keeps the experts' own dtype."""

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Lets one call carry its own expert factors: ``model(..., experts={"math": 0.5})``."""
        experts = kwargs.get("experts")
        if experts is None:
            yield
            return
        with current.block(experts=check_multipliers(self.model, experts)):
            yield

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward; in training, auxiliary losses of the gates are added to ``outputs.loss``.

        They also stand in ``outputs.aux_loss``, unscaled. With ``num_items_in_batch`` (a Trainer that accumulates
        gradients divides by that and not by the number of accumulation steps), the auxiliary loss is added in the share of
        the labels that this call holds, so that one optimizer step sees its mean once.
        """
        terms: list[tuple[Gate, torch.Tensor]] | None = [] if self.training else None
        labels = kwargs.get("labels")
        told = bool(self._routers) and isinstance(labels, torch.Tensor) and labels.dim() == 2
        known = {"answers": labels != -100} if told else {}
        with current.block(masks=_masks(kwargs), noted=terms, **known), self._reading(args, kwargs):
            forward = forward_of(self.model) if self._routers else self.model.forward
            outputs = forward(*args, **kwargs)
        if terms:
            auxiliary = auxiliary_loss(terms)
            if not isinstance(outputs, MutableMapping):
                raise OptionError(
                    f"{type(terms[0][0]).__name__} adds an auxiliary loss to outputs with names, and {type(self.model).__name__} gave "
                    f"{type(outputs).__name__}. Use auxiliary_weight=0 or another gate, or leave return_dict on."
                )
            outputs["aux_loss"] = auxiliary
            if outputs.get("loss") is not None:
                shifts = shifts_labels(self.model)
                share = label_share(kwargs.get("labels"), kwargs.get("num_items_in_batch"), shifts)
                outputs["loss"] = outputs["loss"] + auxiliary.to(outputs["loss"]) * share
        return outputs

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own generation, refused where a gate needs other tokens than those before."""
        self.check_decodes()
        with current.block(masks=_masks(kwargs)), self._reading():
            return self.model.generate(*args, **kwargs)

    def _reading(self, *call: Any) -> contextlib.AbstractContextManager[None]:
        """One call's text, where a composition has a router."""
        return reading(self.model, *call) if self._routers else contextlib.nullcontext()

    def check_decodes(self) -> None:
        """Raise `RadarGateError` where tokens cannot be read one after the other with the same result."""
        for module in self.model.modules():
            if isinstance(module, RadarLayer) and not module.decodes():
                active = [module.gate(name) for name in module.active_adapters if name in module.radar_gate]
                gate = next(gate for gate in active if not gate.token_local)
                raise RadarGateError(
                    f"{type(gate).__name__} at {module.site} makes a token's output depend on the other tokens of its batch, so "
                    "generation and scoring with a cache would answer differently. Use capacity=0 (Tutel) or another gate."
                )

    def check_active(self, adapter_name: str) -> None:
        """Raise `OptionError` where this composition is not at work: no call would show what it does."""
        layers = [module for module in self.model.modules() if isinstance(module, RadarLayer)]
        active = sorted({name for layer in layers for name in layer.active_adapters if name in layer.radar_gate})
        if adapter_name not in active:
            raise OptionError(
                f"composition {adapter_name!r} is not active, found {', '.join(active) or 'none'}. Call "
                f"model.set_adapter({adapter_name!r}) first, or give the adapter_name of an active one."
            )

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: RadarConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        chosen = super()._get_adapter_state_dict(
            model=model,
            config=config,
            adapter_name=adapter_name,
            state_dict=state_dict,
            unwanted_adapter_names=unwanted_adapter_names,
        )
        return {key: value for key, value in chosen.items() if not (config.gate_only and ".radar_bank." in key)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        for container in (".radar_gate.", ".radar_bank."):
            key = key.replace(f"{container}{adapter_name}.", container)
        return key

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: RadarConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        remapped = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        marks: tuple[str, ...] = (f".radar_gate.{adapter_name}.", f".radar_bank.{adapter_name}.")
        if config.gate_only:
            if not banks_come_later.get():
                raise BundleError(
                    "this bundle holds gates only. Load it with radargate.load, which finds and checks its experts."
                )
            marks = marks[:1]
        marks += (f".modules_to_save.{adapter_name}.",)
        expected = {k: tuple(v.shape) for k, v in model.state_dict().items() if any(mark in k for mark in marks)}
        for problem, names in (
            ("has no tensor", expected.keys() - remapped.keys()),
            ("holds an unexpected tensor", remapped.keys() - expected.keys()),
            (
                "holds a tensor of another shape",
                {k for k in expected.keys() & remapped.keys() if tuple(remapped[k].shape) != expected[k]},
            ),
        ):
            if names:
                name = min(names)
                shapes = f" (expected {expected[name]})" if name in expected else ""
                raise BundleError(
                    f"the bundle's adapter_model.safetensors {problem} for {name}{shapes}; {len(names)} such in all. "
                    "It is incomplete or altered; download or save it again."
                )
        return remapped

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Refuses: a composition is no constant matrix."""
        raise RadarGateError(
            "A composition cannot be merged into the base weights: its weights and angles differ from token to token. "
            "Use unload() to get the base model back. Under a static rule, radargate.save_as_lora makes one LoRA of it, "
            "which PEFT can merge."
        )
