"""One adapter on disk: what it is, whether a plain LoRA describes it exactly, and whether it fits a base model."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from torch import Tensor, nn

from radargate.errors import AdapterError, InactiveExpertError
from radargate.experts.files import (
    CONFIG_FILE,
    MAX_RANK,
    WEIGHTS_FILE,
    TensorInfo,
    check_pattern,
    read_header,
    read_json,
    weights_file,
)
from radargate.records import file_hash

_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<site>.+)\.lora_(?P<side>[AB])\.weight")
# these say how an adapter was made or where it goes, not what it computes
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_config", "megatron_core", "peft_type", "peft_version", "r", "rank_pattern", "revision",
    "target_modules", "task_type", "use_rslora", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
_PLAIN_INITS = {True, False, None, "gaussian", "eva", "orthogonal", "kaiming", "xavier"}
_REMEDIES = {
    "use_dora": "DoRA rescales the base weights, which A and B alone do not show. Merge it into a base of its own.",
    "modules_to_save": "It replaces whole modules of the base. Train it again without modules_to_save.",
    "bias": "It changes biases of the base. Train it again with bias='none'.",
    "lora_bias": "Its B layers have biases. Train it again with lora_bias=False.",
    "trainable_token_indices": "It changes token embeddings. Train it again without trainable_token_indices.",
    "target_parameters": "It adapts bare parameters, not layers. Target the layers instead.",
    "layer_replication": "It changes the number of layers of the base. Use a base with those layers.",
    "alora_invocation_tokens": "aLoRA acts only after an invocation text. Train a plain LoRA.",
    "use_qalora": "QALoRA pools its input. Train a plain LoRA.",
}


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
        folder: where it is.
        config: its adapter_config.json.
        sites: site name → shapes, rank and scale.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    sites: dict[str, SiteTensors]

    def load(self, site: str) -> tuple[Tensor, Tensor]:
        """Read A [r, d_in] and B [d_out, r] of one site, in the file's dtype.

        Raises:
            AdapterError: a value is not finite.
        """
        tensors = []
        with safe_open(self.folder / WEIGHTS_FILE, "pt") as file:
            for side in "AB":
                name = f"{self.sites[site].prefix}{site}.lora_{side}.weight"
                tensor = file.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    raise AdapterError(
                        f"adapter {self.name!r}: tensor {name} holds NaN or infinite values. Train it again with a "
                        "smaller learning rate, or download it again."
                    )
                tensors.append(tensor)
        return tensors[0], tensors[1]

    def sha256(self) -> str:
        """Hash of the weights file."""
        return file_hash(self.folder / WEIGHTS_FILE)


def locate(source: str | Path) -> Path:
    """Folder of an adapter given by path or Hub id; a Hub id is downloaded without any other file.

    Raises:
        AdapterError: neither is there.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        raise AdapterError(f"{path} is a file, expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith("."):
        raise AdapterError(f"adapter folder {source} does not exist. Give a folder or a Hub id (user/name).")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # network, authorisation, missing repository: all mean it is not to be had
        raise AdapterError(
            f"{source} is neither a folder nor a Hub adapter that can be reached ({type(error).__name__}). "
            "Check the spelling, or download it and give its folder."
        ) from error


def read_adapter(name: str, source: str | Path) -> Adapter:
    """Check an adapter's config and header; read no data.

    Raises:
        AdapterError: it is damaged, unsafe, or more than a plain LoRA; the message says what to do.
    """
    try:
        folder = locate(source)
        config = read_json(folder / CONFIG_FILE)
        plain = _plain_lora(config)
        header = read_header(weights_file(folder))
        sites = _sites(config, plain, header)
    except AdapterError as error:
        raise AdapterError(f"adapter {name!r}: {error}") from error
    return Adapter(name, folder, config, sites)


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
    if len(unknown) == len(adapter.sites):
        raise InactiveExpertError(
            f"adapter {adapter.name!r} matches no linear layer of the base model (it adapts {unknown[0]}, …). "
            "It was made for another model type; choose the base it was trained on."
        )
    if unknown:
        raise AdapterError(
            f"adapter {adapter.name!r}: {len(unknown)} of {len(adapter.sites)} sites are not linear layers of the "
            f"base model, the first is {unknown[0]}. It was made for another model; choose that one."
        )
    for site, tensors in adapter.sites.items():
        shape, found = sites[site], (tensors.A.shape[1], tensors.B.shape[0])
        if found != (shape.d_in, shape.d_out):
            raise AdapterError(
                f"adapter {adapter.name!r}: at {site} it maps {found[0]} to {found[1]}, the base model's layer maps "
                f"{shape.d_in} to {shape.d_out}. It was made for a model of another size."
            )


def _plain_lora(config: dict[str, Any]) -> SimpleNamespace:
    """The fields of a config that decide what a plain LoRA computes; refuses everything else."""
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"peft_type is {str(config.get('peft_type'))[:30]!r}, expected 'LORA'.")
    init = config.get("init_lora_weights", True)
    if not isinstance(init, (bool, str, type(None))) or init not in _PLAIN_INITS:
        raise AdapterError(
            f"init_lora_weights is {str(init)[:40]!r}: loading such an adapter changes the base weights. Re-save it "
            "with PEFT's path_initial_model_for_weight_conversion, which turns it into a plain LoRA."
        )
    defaults = {f.name: f.default for f in fields(LoraConfig)}
    for key, value in config.items():
        if key in _HARMLESS or value in (None, False) or (isinstance(value, (list, dict)) and not value):
            continue
        if key == "bias" and value == "none":
            continue
        if key in defaults and value == defaults[key] and key not in _REMEDIES:
            continue
        raise AdapterError(
            f"{CONFIG_FILE} has {str(key)[:60]} = {str(value)[:60]!r}, which a plain LoRA does not have. "
            + _REMEDIES.get(key, "Its A and B alone would be wrong; export it as a plain LoRA.")
        )
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise AdapterError(f"{CONFIG_FILE} has r = {str(rank)[:30]}, expected a whole number from 1 to {MAX_RANK:,}.")
    patterns: dict[str, dict[str, Any]] = {}
    for field in ("rank_pattern", "alpha_pattern"):
        table = config.get(field) or {}
        if not isinstance(table, dict) or not all(isinstance(v, (int, float)) for v in table.values()):
            raise AdapterError(f"{CONFIG_FILE}: {field} is not a table of numbers.")
        for key in table:
            check_pattern(key, f"{CONFIG_FILE}: a key of {field}")
        patterns[field] = table
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise AdapterError(f"{CONFIG_FILE} has lora_alpha = {str(alpha)[:30]!r}, expected a number.")
    targets = {}
    for field in ("target_modules", "exclude_modules"):
        value = config.get(field)
        if isinstance(value, str):
            check_pattern(value, f"{CONFIG_FILE}: {field}")
        elif value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise AdapterError(f"{CONFIG_FILE}: {field} is neither text nor a list of names.")
        targets[field] = set(value) if isinstance(value, list) else value
    for pattern in _as_list(config.get("layers_pattern")):
        check_pattern(str(pattern), f"{CONFIG_FILE}: layers_pattern")
    return SimpleNamespace(
        r=rank, alpha=alpha, rslora=bool(config.get("use_rslora")), **patterns, **targets,
        layers_to_transform=config.get("layers_to_transform"), layers_pattern=config.get("layers_pattern"),
    )  # fmt: skip


def _sites(config: dict[str, Any], plain: SimpleNamespace, header: dict[str, TensorInfo]) -> dict[str, SiteTensors]:
    found: dict[str, dict[str, TensorInfo]] = {}
    prefixes: dict[str, str] = {}
    for name, info in header.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            kind = next((word for word in ("magnitude", "embedding", "bias", "base_layer") if word in name), "other")
            raise AdapterError(
                f"{WEIGHTS_FILE} holds {name[:100]}, expected only lora_A and lora_B weights of linear layers"
                + (" (embeddings are not supported)." if kind == "embedding" else f" ({kind} tensors are more than a plain LoRA).")
            )  # fmt: skip
        found.setdefault(match["site"], {})[match["side"]] = info
        prefixes[match["site"]] = name[: match.start("site")]
    if not found:
        raise AdapterError(f"{WEIGHTS_FILE} holds no tensor. Save the adapter again.")
    sites = {}
    for site, sides in found.items():
        if set(sides) != {"A", "B"}:
            raise AdapterError(f"{WEIGHTS_FILE}: {site} has lora_{next(iter(sides))} alone. Save the adapter again.")
        A, B = sides["A"], sides["B"]
        if len(A.shape) != 2 or len(B.shape) != 2:
            raise AdapterError(
                f"{site}: A is {A.shape} and B is {B.shape}, expected matrices (convolutions are not supported)."
            )
        if not _targeted(plain, site):
            raise AdapterError(
                f"{WEIGHTS_FILE} adapts {site}, which target_modules in {CONFIG_FILE} does not name; PEFT would "
                "ignore it. Config and weights do not belong together."
            )
        rank = plain.rank_pattern.get(get_pattern_key(plain.rank_pattern.keys(), site), plain.r)
        alpha = plain.alpha_pattern.get(get_pattern_key(plain.alpha_pattern.keys(), site), plain.alpha)
        if (A.shape[0], B.shape[1]) != (rank, rank):
            raise AdapterError(
                f"{site}: A has rank {A.shape[0]} and B has rank {B.shape[1]}, {CONFIG_FILE} says {rank}. "
                "Config and weights do not belong together."
            )
        scale = alpha / rank**0.5 if plain.rslora else alpha / rank
        sites[site] = SiteTensors(A, B, rank, scale, prefixes[site])
    return sites


def _targeted(plain: SimpleNamespace, site: str) -> bool:
    if plain.target_modules in (None, "all-linear"):
        return True
    return bool(check_target_module_exists(plain, site))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
