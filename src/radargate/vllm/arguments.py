"""What vLLM must be told to serve a bundle: as arguments of its engine, and as flags of ``vllm serve``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radargate.base_models.loading import base_dtype
from radargate.errors import OptionError
from radargate.vllm import LOAD_FORMAT
from radargate.vllm.bundles import Bundle
from radargate.vllm.refusals import routes_prompts

REFUSES = "radargate.vllm.requests.RefuseFactors"


def engine_arguments(bundle: Bundle, options: Mapping[str, Any], device: str | None = None) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` that serve a bundle, but for those that everybody chooses.

    Args:
        bundle: checked.
        options: those of `radargate.vllm.bundles.open_bundle`.
        device: for the dtype, which is the one that `radargate.load` would take.
    """
    dtype = base_dtype(bundle.base, None, device).name
    made: dict[str, Any] = {
        "model": bundle.base,
        "dtype": dtype,
        "load_format": LOAD_FORMAT,
        "model_loader_extra_config": {**options, "bundle": str(bundle.folder.resolve()), "sha256": bundle.digest},
    }
    if routes_prompts(bundle.config):
        made["enable_prefix_caching"] = False  # see `radargate.vllm.refusals`
    return made


def serve_words(
    bundle: Bundle, options: Mapping[str, Any], words: Sequence[str], device: str | None = None
) -> list[str]:
    """The words of ``vllm serve``, the user's own last, which so win.

    Raises:
        OptionError: a word that only one bundle, or only we, can give.
    """
    if words and not words[0].startswith("-"):
        raise OptionError(
            f"{words[0]} stands behind the bundle, where only vLLM's flags may. The plug-in serves one bundle a server; start another "
            "server for another bundle."
        )
    made = engine_arguments(bundle, options, device)
    found = [str(made.pop("model")), "--served-model-name", Path(bundle.folder).resolve().name]
    for name, value in made.items():
        flag = "--" + name.replace("_", "-")
        if value is False:
            found.append(f"--no-{flag[2:]}")
        else:
            found += [flag, json.dumps(value) if isinstance(value, dict) else value]
    return [*found, "--middleware", REFUSES, *words]
