"""One adapter on disk: what it is, whether a plain LoRA describes it exactly, and whether it fits a base model."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from radargate.errors import AdapterError, InactiveExpertError, shown
from radargate.experts.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    TensorInfo,
    read_header,
    read_json,
    weights_file,
)
from radargate.experts.heads import split_head
from radargate.experts.lora_config import PlainLora, plain_lora
from radargate.io.records import file_hash

MAX_VALUE = 1e4  # trained A and B stay below 10; float16 ends at 65,504
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<site>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class SiteShape:
    """One linear layer of a base model."""

    d_in: int
    d_out: int


@dataclass(frozen=True)
class SiteTensors:
    """One adapter's A [r, d_in] and B [d_out, r] at one site, as the file has them, and its LoRA scale."""

    A: TensorInfo
    B: TensorInfo
    rank: int
    scale: float
    prefix: str


@dataclass(frozen=True)
class Adapter:
    """An adapter whose header and config were checked; no tensor data is in memory.

    Attributes:
        name: what the user calls it.
        source: folder or Hub id, as it was given.
        folder: where it is.
        config: its adapter_config.json.
        sites: site name → shapes, rank and scale.
        head: tensors of the file that replace modules of the base, see `radargate.experts.heads`.
    """

    name: str
    source: str
    folder: Path
    config: dict[str, Any]
    sites: dict[str, SiteTensors]
    head: dict[str, TensorInfo] = field(default_factory=dict)

    def load(self, site: str) -> tuple[Tensor, Tensor]:
        """Read A [r, d_in] and B [d_out, r] of one site, in the file's dtype.

        Raises:
            AdapterError: a value is not finite or absurdly large, or the file cannot be read.
        """
        with self.opened() as file:
            return self.read(file, site)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """The weights file, for `read`.

        Raises:
            AdapterError: it cannot be read.
        """
        try:
            with safe_open(self.folder / WEIGHTS_FILE, "pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise AdapterError(
                f"adapter {self.name!r}: {self.folder / WEIGHTS_FILE} cannot be read ({shown(str(error))}). "
                "Download it again, or save it again with PEFT."
            ) from error

    def read(self, file: Any, site: str) -> tuple[Tensor, Tensor]:
        """As `load`, from the `opened` file."""
        A, B = (file.get_tensor(f"{self.sites[site].prefix}{site}.lora_{side}.weight") for side in "AB")
        for side, tensor in (("A", A), ("B", B)):
            if not bool(torch.isfinite(tensor).all()):
                raise AdapterError(
                    f"adapter {self.name!r}: tensor {site}.lora_{side} in {WEIGHTS_FILE} holds NaN or infinite values. "
                    "Train it again with a smaller learning rate, or download it again."
                )
            largest = float(tensor.abs().max()) if tensor.numel() else 0.0
            if largest > MAX_VALUE:
                raise AdapterError(
                    f"adapter {self.name!r}: tensor {site}.lora_{side} in {WEIGHTS_FILE} holds {largest:.3g}; values of a "
                    f"trained LoRA are far below {MAX_VALUE:g}. Train it again, or download it again."
                )
        return A, B

    def sha256(self) -> str:
        """Hash of the weights file, taken once."""
        return self._hash

    @functools.cached_property
    def _hash(self) -> str:
        return file_hash(self.folder / WEIGHTS_FILE)


def locate(source: str | Path, also: Sequence[str] = ()) -> Path:
    """Folder of an adapter given by path or Hub id; a Hub id is downloaded without any other file (but those of ``also``).

    Raises:
        AdapterError: neither is there.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        raise AdapterError(
            f"{path} is a file, expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}. "
            "Unpack an archive where you trust it."
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith("."):
        raise AdapterError(
            f"adapter folder {shown(str(source), 200)} does not exist. Give a folder or a Hub id (user/name)."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, *also]))
    except Exception as error:  # network, authorisation, missing repository: all mean it is not to be had
        raise AdapterError(
            f"{source} is neither a folder nor a Hub adapter that can be reached ({type(error).__name__}). "
            "Check the spelling, or download it and give its folder."
        ) from error


def read_adapter(name: str, source: str | Path | Adapter) -> Adapter:
    """Check an adapter's config and header; read no data. One that was read before is taken as it is.

    Raises:
        AdapterError: it is damaged, unsafe, or more than a plain LoRA; the message says what to do.
    """
    if isinstance(source, Adapter):
        return source if source.name == name else replace(source, name=name)
    try:
        folder = locate(source)
        config = read_json(folder / CONFIG_FILE)
        plain = plain_lora(config)
        head, header = split_head(config, read_header(weights_file(folder)))
        sites = _sites(plain, header)
    except AdapterError as error:
        raise AdapterError(f"adapter {name!r}: {error}") from error
    return Adapter(name, str(source), folder, config, sites, head)


def base_sites(model: nn.Module) -> dict[str, SiteShape]:
    """Every linear layer of a base model by name, with its shape; works without weights, and under another composition."""
    sites = {}
    for wrapped, module in model.named_modules():
        name = wrapped.removesuffix(".base_layer")
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            sites[name] = SiteShape(module.in_features, module.out_features)
        elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
            sites[name] = SiteShape(module.nx, module.nf)
    return sites


def check_fit(adapter: Adapter, sites: dict[str, SiteShape]) -> None:
    """Check that every tensor of an adapter belongs to a linear layer of the base, with its shape.

    Raises:
        InactiveExpertError: no tensor belongs to any.
        AdapterError: some do not; site, found and expected shapes are named.
    """
    unknown = [site for site in adapter.sites if site not in sites]
    below = (
        next((site.removesuffix(f".{unknown[0]}") for site in sites if site.endswith(f".{unknown[0]}")), None)
        if unknown
        else None
    )
    if len(unknown) == len(adapter.sites) and below is not None:
        raise InactiveExpertError(
            f"adapter {adapter.name!r} was made for a part of the base model: its layers stand below {shown(below)} there. Give "
            f"that part as the base, base.get_submodule({shown(below)!r})."
        )
    if len(unknown) == len(adapter.sites):
        raise InactiveExpertError(
            f"adapter {adapter.name!r} matches no linear layer of the base model (it adapts {shown(unknown[0])}, …). "
            "It was made for another model type; choose the base it was trained on."
        )
    if unknown:
        raise AdapterError(
            f"adapter {adapter.name!r}: {len(unknown)} of {len(adapter.sites)} sites are not linear layers of the "
            f"base model, the first is {shown(unknown[0])}. It was made for another model; choose that one."
        )
    for site, tensors in adapter.sites.items():
        shape, found = sites[site], (tensors.A.shape[1], tensors.B.shape[0])
        if found != (shape.d_in, shape.d_out):
            raise AdapterError(
                f"adapter {adapter.name!r}: at {site} it maps {found[0]} to {found[1]}, the base model's layer maps "
                f"{shape.d_in} to {shape.d_out}. It was made for a model of another size; choose that one."
            )


def _sites(plain: PlainLora, header: dict[str, TensorInfo]) -> dict[str, SiteTensors]:
    found, prefixes = _pairs(header)
    plain.check_time(list(found))
    sizes, sites = plain.sizes(list(found)), {}
    for site, sides in found.items():
        if set(sides) != {"A", "B"}:
            raise AdapterError(
                f"{WEIGHTS_FILE}: {shown(site)} has lora_{next(iter(sides))} alone. Save the adapter again."
            )
        A, B = sides["A"], sides["B"]
        if len(A.shape) != 2 or len(B.shape) != 2:
            raise AdapterError(
                f"{WEIGHTS_FILE}: at {shown(site)} A is {A.shape} and B is {B.shape}, expected matrices (convolutions are "
                "not supported). Train a LoRA of linear layers."
            )
        if not plain.targeted(site):
            raise AdapterError(
                f"{WEIGHTS_FILE} adapts {shown(site)}, which target_modules in {CONFIG_FILE} does not name; PEFT would "
                "ignore it. Config and weights do not belong together; download both again."
            )
        rank, scale = sizes[site]
        if (A.shape[0], B.shape[1]) != (rank, rank):
            raise AdapterError(
                f"{WEIGHTS_FILE}: at {shown(site)} A has rank {A.shape[0]} and B has rank {B.shape[1]}, {CONFIG_FILE} says "
                f"{rank}. Config and weights do not belong together; download both again."
            )
        sites[site] = SiteTensors(A, B, rank, scale, prefixes[site])
    return sites


def _pairs(header: dict[str, TensorInfo]) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, str]]:
    """Layer → side → tensor, and layer → what stands before its name in the file."""
    found: dict[str, dict[str, TensorInfo]] = {}
    prefixes: dict[str, str] = {}
    for name, info in header.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            kind = next((word for word in ("magnitude", "embedding", "bias", "base_layer") if word in name), "other")
            raise AdapterError(
                f"{WEIGHTS_FILE} holds {shown(name)}, expected only lora_A and lora_B weights of linear layers"
                + (
                    " (embeddings are not supported)."
                    if kind == "embedding"
                    else f" ({kind} tensors are more than a plain LoRA)."
                )
                + " Train a plain LoRA of linear layers."
            )
        site, prefix = match["site"], name[: match.start("site")]
        if prefixes.setdefault(site, prefix) != prefix or match["side"] in found.get(site, {}):
            raise AdapterError(
                f"{WEIGHTS_FILE} holds {shown(site)} twice, with and without 'base_model.model.' before it. Save the "
                "adapter again with PEFT."
            )
        found.setdefault(site, {})[match["side"]] = info
    if not found:
        raise AdapterError(f"{WEIGHTS_FILE} holds no tensor. Save the adapter again.")
    return found, prefixes
