"""A plug-in for vLLM that serves bundles: found through the entry point ``vllm.general_plugins``, in every process of vLLM."""

from __future__ import annotations

LOAD_FORMAT = "radargate"


def register() -> None:
    """Let vLLM know the load format ``radargate``; a second call changes nothing.

    All that a bundle needs is imported once one is loaded.
    """
    from vllm.model_executor.model_loader import get_model_loader, register_model_loader

    from radargate.vllm.loader import Loader

    if not _is_registered(get_model_loader):
        register_model_loader(LOAD_FORMAT)(Loader)


def _is_registered(get_model_loader: object) -> bool:
    known = getattr(get_model_loader, "__globals__", {}).get("_LOAD_FORMAT_TO_MODEL_LOADER", {})
    return LOAD_FORMAT in known
