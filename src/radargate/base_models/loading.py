"""Base models by name: a Hub name, a folder, a ``.gguf`` file, or the embedded default ``smollm2-135m``."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.utils import enable_progress_bars
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from radargate.base_models.cache import PACKAGED_MODELS, convert_gguf, packaged_folder
from radargate.base_models.dtype import QUANTISED, DtypeChoice, check_name, choose_dtype, warn_if_slow
from radargate.base_models.kinds import model_class
from radargate.base_models.offload import real_parameters
from radargate.errors import BaseModelError, OptionError, StorageError, first_line, shown
from radargate.io.cache import cache_folder
from radargate.io.disk import message, write_fault
from radargate.io.progress import drawing_bars
from radargate.io.records import file_hash

logger = logging.getLogger(__name__)
_NOT_THE_BASES = ("radar_", "lora_", ".modules_to_save.")
_loaded: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # by `load_base`, which has said what their dtype costs


def resolve_base(name: str) -> str:
    """Turn a BASE argument into a folder or Hub name that ``from_pretrained`` accepts.

    ``smollm2-135m`` and ``.gguf`` files are de-quantised once and cached as safetensors.

    Raises:
        BaseModelError: the file is missing, cannot be fetched, or has the wrong checksum.
    """
    if name in PACKAGED_MODELS:
        return str(packaged_folder(name))
    path = Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise BaseModelError(f"Base model file {name} does not exist. Give the path of a .gguf file.")
        target = cache_folder() / "models" / f"gguf-{file_hash(path)[:16]}"
        if not (target / "config.json").exists():
            convert_gguf(path, target)
        return str(target)
    if path.is_dir() and not (path / "config.json").exists():
        raise BaseModelError(
            f"Base model folder {name} has no config.json. Give a folder saved with save_pretrained, "
            f"a Hub name, a .gguf file, or one of: {', '.join(PACKAGED_MODELS)}."
        )
    return name


def load_base(
    base: str | nn.Module,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    *,
    task: str | None = None,
    labels: int | None = None,
    site: str | None = None,
) -> PreTrainedModel:
    """Load a base model in evaluation mode, as the class that its checkpoint was saved from; a model object is returned as it is.

    Args:
        base: a model, or a name as `resolve_base` takes it.
        dtype: parameter dtype, ``"auto"`` for the checkpoint's own, or ``"8bit"`` or ``"4bit"`` (NF4) through bitsandbytes;
            None takes the checkpoint's own on a GPU, and on a CPU where that is no slower than float32.
        device: where to put it; None means CPU or the current default.
        task: a task whose head adapters bring to a checkpoint without one (see `radargate.base_models.kinds`).
        labels: how many that head tells apart.
        site: a layer that adapters name.

    Raises:
        BaseModelError: it cannot be found or loaded; the message names what to do.
        OptionError: the dtype or device cannot be used here.
        OutOfMemoryError: it does not fit into memory.
    """
    if isinstance(base, nn.Module):
        if base not in _loaded:
            warn_if_slow(base)
        return cast(PreTrainedModel, base)
    name = base_dtype(base, dtype, device).name
    folder = resolve_base(base)
    config = load_config(folder)
    auto = model_class(config, task, site)
    more: dict[str, Any] = {"num_labels": labels} if labels and task else {}
    if drawing_bars():  # on a terminal the Hub shows a download; a bar for reading each file would only flicker
        transformers_logging.disable_progress_bar()
        enable_progress_bars()
    with _reading(folder, f"Base model {base!r} could not be loaded"):
        if name in QUANTISED:
            more |= {"quantization_config": _quantisation(name), "device_map": {"": device or "cpu"}}
        else:
            more["dtype"] = name
        model, info = auto.from_pretrained(folder, output_loading_info=True, **more)
    if model_class(config, None, site) is auto:  # adapters bring the head that a checkpoint of another class lacks
        _check_whole(base, model, config, info["missing_keys"])
    if base in PACKAGED_MODELS:
        model.config.radargate_name = base  # a bundle then records the name, not this machine's cache path
    _loaded.add(model)
    return cast(Any, model).to(device).eval() if device and name not in QUANTISED else model.eval()


def _check_whole(base: str, model: Any, config: Any, missing: Iterable[str]) -> None:
    """Raise `BaseModelError` where a checkpoint lacks parameters, which transformers would draw at random."""
    names = sorted(missing)
    if names:
        held = (getattr(config, "architectures", None) or ["another class"])[0]
        raise BaseModelError(
            f"Base model {base!r} lacks {len(names)} parameters of {type(model).__name__}, the first is {shown(names[0])}; its config names "
            f"{shown(held)}. They would be random. Give the whole checkpoint that the adapters were trained on."
        )


def base_dtype(base: str, dtype: torch.dtype | str | None = None, device: str | None = None) -> DtypeChoice:
    """The dtype that `load_base` takes, and why; where none is named, one line about it is logged.

    Raises:
        BaseModelError: there is no such base.
        OptionError: the dtype or device cannot be used here.
        OutOfMemoryError: it does not fit into memory.
    """
    config = load_config(resolve_base(base))
    choice = choose_dtype(config, dtype, device, functools.partial(_parameters, base))
    if dtype is None or choice.slowdown > 1:
        logger.info("%s", choice)
    return choice


def _parameters(base: str) -> int:
    return sum(p.numel() for p in meta_base(base).parameters())


def _quantisation(dtype: str) -> BitsAndBytesConfig:
    if dtype == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def plain_dtype(name: str, because: str) -> torch.dtype:
    """The dtype of that name, where weights are to be plain.

    Raises:
        OptionError: it is a quantised one.
    """
    check_name(name)
    if name in QUANTISED:
        raise OptionError(f"dtype {name}: {because}. Use float32, bfloat16 or float16.")
    return cast(torch.dtype, getattr(torch, name))


def load_tokenizer(base: str | PreTrainedModel) -> Any:
    """Load the tokenizer that belongs to a base model; a missing pad token becomes the end token.

    Raises:
        BaseModelError: the base model ships no tokenizer.
    """
    name = base if isinstance(base, str) else str(base.name_or_path)
    folder = resolve_base(name)
    with _reading(folder, f"No tokenizer could be loaded for base model {name!r}", "Put its files into that folder."):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(folder: str) -> Any:
    """Read a base model's config; remote code is never run.

    Raises:
        BaseModelError: no such model, or its type needs remote code.
    """
    choices = f"Give a Hub name, a folder, a .gguf file, or one of: {', '.join(PACKAGED_MODELS)}."
    with _reading(folder, f"Base model {folder!r} was not found", choices):
        return AutoConfig.from_pretrained(folder)


def meta_base(base: str) -> nn.Module:
    """Build a base model's modules without weights, to check shapes before anything is loaded."""
    config = load_config(resolve_base(base))
    made = model_class(config)
    with torch.device("meta"):
        return (getattr(made, "from_config", None) or made._from_config)(config)


def straighten_head(model: Any) -> Any:
    """Let a model's head see its input as one piece; returns a handle whose ``remove`` undoes it, or None without a head.

    ``logits_to_keep`` hands the head a strided slice of the hidden states, for which matmul copies the whole vocabulary matrix
    for every row (1.5 of 3.6 s of a training step of 8 x 80 tokens of SmolLM2-135M; 1.5 of 3 s of 15 answers in bfloat16).
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = inner.get_output_embeddings()
    return head and head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))


@contextlib.contextmanager
def straight_head(model: Any) -> Iterator[None]:
    """`straighten_head` while the block runs."""
    handle = straighten_head(model)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def base_name(model: PreTrainedModel) -> str:
    """The name to record for a base model: ``smollm2-135m`` and such, else its Hub name or folder."""
    own = getattr(getattr(model, "config", None), "radargate_name", None)
    return own or getattr(model, "name_or_path", None) or "unnamed"


def fingerprint(model: nn.Module, without: Iterable[str] = ()) -> str:
    """sha256 over the base model's parameter names, shapes and 64 sampled values each.

    Values are rounded to bfloat16 first, so that loading one checkpoint in float32 or bfloat16 gives one
    fingerprint. Layers that RadarGate or PEFT put around a base layer are looked through, and modules named in ``without`` are left out.
    """
    own = ((name, p) for name, p in real_parameters(model) if not any(part in name for part in _NOT_THE_BASES))
    plain = ((_plain_name(name), parameter) for name, parameter in own)
    return fingerprint_of(
        (name, p) for name, p in plain if not any(name.startswith(f"{module}.") for module in without)
    )


def fingerprint_of(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The same from a base's own parameters by name."""
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters, key=lambda item: item[0]):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // 64)
        sample = flat[::step][:64].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample)
    return digest.hexdigest()


def _plain_name(name: str) -> str:
    return name.replace("base_layer.", "").replace("original_module.", "").removeprefix("base_model.model.")


@contextlib.contextmanager
def _reading(folder: str, complaint: str, remedy: str = "") -> Iterator[None]:
    """Turn what transformers raises into a `BaseModelError`, or a `StorageError` where the Hub's cache is full."""
    try:
        yield
    except Exception as error:  # damaged files raise many kinds
        reason = None if Path(folder).is_dir() else write_fault(error)
        if reason:
            raise StorageError(
                message(f"the files of {folder}", HF_HUB_CACHE, reason, "set HF_HOME to a folder with room")
            ) from error
        if Path(folder).is_relative_to(cache_folder()):
            remedy = f"The cached copy is damaged: delete {folder} and run the command again."
        raise BaseModelError(f"{complaint}: {first_line(error)} {remedy}".strip()) from error
