"""From a checked bundle and a loaded model of vLLM to one that serves the bundle."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from radargate.errors import OptionError
from radargate.vllm.bundles import Bundle, open_bundle, router_of
from radargate.vllm.refusals import check_engine, routes_prompts, warn_of_version

logger = logging.getLogger(__name__)


def prepare(vllm_config: Any, options: Mapping[str, Any]) -> Bundle:
    """Check all that can be checked before the base is loaded, and make the bundle's hash part of what a compiled graph is known by.

    Raises:
        RadarGateError: the bundle cannot be served so; one line says why.
    """
    warn_of_version(importlib.metadata.version("vllm"))
    bundle = open_bundle(options, vllm_config.model_config.model)
    check_engine(vllm_config, bundle.config)
    if not isinstance(vllm_config.additional_config, dict):
        raise OptionError(
            "additional_config is an object of another plug-in, and the bundle's hash must stand there. Give a table."
        )
    # vLLM's key of compiled graphs knows nothing of how weights are loaded
    vllm_config.additional_config["radargate"] = bundle.digest
    return bundle


def attach_bundle(model: nn.Module, bundle: Bundle, vllm_config: Any) -> None:
    """Put the bundle's updates on a loaded model's linear layers, and let its router read what the model reads.

    Raises:
        BundleError: tensors or sites do not fit.
    """
    from radargate.vllm.linears import attach

    layers = bundle.layers()
    table = vllm_config.compilation_config.static_forward_context
    device = next(model.parameters()).device
    router, step = router_of(layers), None
    if router is not None:
        from radargate.vllm.text import StepText, TextSums

        sums = TextSums(router, bundle.embedding(), device)
        step = StepText(sums, vllm_config.scheduler_config.max_num_batched_tokens, device)
    attach(model, layers, table, step)
    if step is not None:
        _read_text(model, step, vllm_config, routes_prompts(bundle.config))
    logger.info(
        f"{bundle.folder}: {len(bundle.config.experts)} experts at {len(layers)} layers, gate {bundle.config.gate}."
    )


@torch.no_grad()
def _read_text(model: nn.Module, step: Any, vllm_config: Any, prompts: bool) -> None:
    if vllm_config.use_v2_model_runner:
        from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

        from radargate.vllm.model_state import state_class

        made = state_class(resolve_model_state_cls(vllm_config, model), step, prompts)
        model.get_model_state_cls = lambda: made  # type: ignore[assignment]
        return
    from radargate.vllm.slots import KEY, SlotText

    if prompts:
        vllm_config.compilation_config.static_forward_context[KEY].sums = step.sums
    model.register_forward_pre_hook(SlotText(step, prompts), with_kwargs=True)
