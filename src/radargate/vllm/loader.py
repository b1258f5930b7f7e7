"""The load format ``radargate``: vLLM's own loader, and then a bundle on top."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader


class Loader(DefaultModelLoader):
    """Loads a base as vLLM does, whatever it is quantised with, and attaches a bundle.

    ``model_loader_extra_config`` names it: see `radargate.vllm.bundles.open_bundle`.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        own = {"enable_multithread_load", "num_threads", "enable_weights_track"}
        extra: Any = load_config.model_loader_extra_config
        self.options = {key: value for key, value in extra.items() if key not in own}
        rest = {key: value for key, value in extra.items() if key in own}
        super().__init__(dataclasses.replace(load_config, load_format="auto", model_loader_extra_config=rest))

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
        """The base with the bundle's updates on its linear layers; a draft model is left as it is."""
        if model_config is not vllm_config.model_config:
            return super().load_model(vllm_config, model_config, prefix)
        from radargate.vllm import serving

        bundle = serving.prepare(vllm_config, self.options)
        model = super().load_model(vllm_config, model_config, prefix)
        serving.attach_bundle(model, bundle, vllm_config)
        return model
