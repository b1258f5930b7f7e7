"""The adapter_config.json of a plain LoRA: every field known, every value checked, nothing in it obeyed or imported."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from radargate.errors import AdapterError, shown
from radargate.experts.files import CONFIG_FILE, MAX_RANK
from radargate.experts.names import PREFIX, plain_pattern, plain_targets
from radargate.experts.patterns import check_pattern, check_time

MAX_SCALE = 1e4
MAX_MATCHES = 5_000_000  # names in a config times layers in its file: about a second of work
_PLAIN_KEY = re.compile(r"[\w.-]+")
# these say how an adapter was made or where it goes, not what it computes
_HARMLESS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
    "modules_to_save",  # the head that it names is read and checked in `radargate.experts.heads`
    "runtime_config",
    "ensure_weight_tying",
}
_PLAIN_INITS = {True, False, None, "gaussian", "eva", "orthogonal", "kaiming", "xavier"}
_REMEDIES = {
    "use_dora": "DoRA rescales the base weights, which A and B alone do not show. Merge it into a base of its own.",
    "bias": "It changes biases of the base. Train it again with bias='none'.",
    "lora_bias": "Its B layers have biases. Train it again with lora_bias=False.",
    "trainable_token_indices": "It changes token embeddings. Train it again without trainable_token_indices.",
    "target_parameters": "It adapts bare parameters, as PEFT does by itself for the router and the experts of a "
    "mixture-of-experts base, which is not supported. Train it on the attention layers.",
    "layer_replication": "It changes the number of layers of the base. Use a base with those layers.",
    "alora_invocation_tokens": "aLoRA acts only after an invocation text. Train a plain LoRA.",
    "use_qalora": "QALoRA pools its input. Train a plain LoRA.",
}


@dataclass(frozen=True)
class PlainLora:
    """The fields that decide what a plain LoRA computes, checked.

    Attributes:
        rank: r where no pattern says otherwise.
        alpha: the same for lora_alpha.
        rslora: whether the scale is α/√r instead of α/r.
        ranks: pattern → rank.
        alphas: pattern → alpha.
        targets: what PEFT reads to decide which layers are adapted.
        notes: what was read otherwise than it stands in the file.
    """

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: SimpleNamespace
    notes: tuple[str, ...] = ()

    def check_time(self, sites: Sequence[str]) -> None:
        """Raise `AdapterError` where patterns would take too long on these layers; they are tried under a clock."""
        targets, wanted = self.targets, []
        for field in ("target_modules", "exclude_modules"):
            if isinstance(getattr(targets, field), str) and getattr(targets, field) != "all-linear":
                wanted.append((True, getattr(targets, field)))
        if targets.layers_to_transform is not None:
            wanted += [(False, rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\.") for p in as_list(targets.layers_pattern)]
        keys = [*self.ranks, *self.alphas]
        wanted += [(False, _spread(key)) for key in keys if not _PLAIN_KEY.fullmatch(key)]
        listed = len(keys) + sum(
            len(v) for v in (targets.target_modules, targets.exclude_modules) if isinstance(v, set)
        )
        if (listed + len(wanted)) * len(sites) > MAX_MATCHES:
            raise AdapterError(
                f"{CONFIG_FILE} names {listed + len(wanted):,} modules and patterns for {len(sites):,} layers, more than "
                "any base model needs. Save the adapter again with PEFT."
            )
        check_time(wanted, sites, f"{CONFIG_FILE}: target_modules and patterns")

    def targeted(self, site: str) -> bool:
        """Whether PEFT would put the adapter on this layer.

        Raises:
            AdapterError: PEFT cannot tell from these fields.
        """
        if self.targets.target_modules in (None, "all-linear"):
            return True
        try:
            return bool(check_target_module_exists(self.targets, site))
        except (re.error, ValueError, TypeError, RecursionError) as error:
            raise AdapterError(
                f"{CONFIG_FILE}: target_modules, layers_to_transform and layers_pattern cannot be matched against {shown(site)} "
                f"({shown(str(error))}). List the module names instead."
            ) from error

    @property
    def by_pattern(self) -> bool:
        """Whether the layers are named by one regular expression."""
        return isinstance(self.targets.target_modules, str) and self.targets.target_modules != "all-linear"

    def named(self, layers: Sequence[str], outputs: set[str], usual: Sequence[str] = ()) -> list[str]:
        """Layers of a base that the config names.

        Args:
            layers: linear layers of the base.
            outputs: those among them that ``all-linear`` leaves out.
            usual: what PEFT targets in this type of model where a config names nothing.
        """
        if self.targets.target_modules is None:
            chosen = SimpleNamespace(**{**vars(self.targets), "target_modules": set(usual)})
            return replace(self, targets=chosen).named(layers, outputs) if usual else []
        if self.targets.target_modules == "all-linear":
            return [layer for layer in layers if layer not in outputs]
        self.check_time(layers)
        return [layer for layer in layers if self.targeted(layer)]

    def sizes(self, sites: Sequence[str]) -> dict[str, tuple[int, float]]:
        """Layer → its rank and its LoRA scale, as PEFT gives them: the first pattern that fits a name's end counts."""
        ranks, alphas = _compiled(self.ranks), _compiled(self.alphas)
        found = {}
        for site in sites:
            rank = int(_first(ranks, self.ranks, site, self.rank))
            alpha = _first(alphas, self.alphas, site, self.alpha)
            scale = alpha / rank**0.5 if self.rslora else alpha / rank
            if not abs(scale) <= MAX_SCALE:
                raise AdapterError(
                    f"{CONFIG_FILE} gives {shown(site)} the scale {scale:.3g} (lora_alpha {alpha:g}, r {rank}), expected at "
                    f"most {MAX_SCALE:g}. Correct lora_alpha, or train it again."
                )
            found[site] = rank, scale
        return found


def plain_lora(config: Mapping[str, Any]) -> PlainLora:
    """Check every field of a config; what a plain LoRA does not have is refused, and so is what would be imported.

    Raises:
        AdapterError: the field, its value and the remedy are named.
    """
    if config.get("peft_type") != "LORA":
        if "fine_tune_type" in config or "lora_parameters" in config:
            raise AdapterError(
                f"{CONFIG_FILE} is that of an MLX adapter, expected PEFT's. Merge it with mlx_lm.fuse, or convert it to PEFT's form."
            )
        if config.get("peft_type") == "RADAR":
            raise AdapterError(
                f"{CONFIG_FILE} is that of a RadarGate bundle, expected a LoRA adapter. Load it as a bundle, or give the adapters that "
                "it was composed from."
            )
        raise AdapterError(
            f"{CONFIG_FILE}: peft_type is {shown(config.get('peft_type'), 30)!r}, expected 'LORA'. Train a plain LoRA."
        )
    _check_imports(config)
    init = config.get("init_lora_weights", True)
    if not isinstance(init, (bool, str, type(None))) or init not in _PLAIN_INITS:
        raise AdapterError(
            f"{CONFIG_FILE}: init_lora_weights is {shown(init, 40)!r}: loading such an adapter changes the base weights. Re-save it "
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
            f"{CONFIG_FILE} has {shown(key, 60)} = {shown(value, 60)!r}, which a plain LoRA does not have. "
            + _REMEDIES.get(key, "Its A and B alone would be wrong; export it as a plain LoRA.")
        )
    if not isinstance(config.get("use_rslora"), (bool, type(None))):
        raise AdapterError(
            f"{CONFIG_FILE}: use_rslora is {shown(config['use_rslora'], 30)}, expected true or false. Save it again with PEFT."
        )
    targets: dict[str, Any] = {}
    notes: list[str] = []
    for field in ("target_modules", "exclude_modules"):
        value = config.get(field)
        plain = bare = value
        if isinstance(value, str):
            check_pattern(value, f"{CONFIG_FILE}: {field}")
            plain = plain_pattern(value)
        elif value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise AdapterError(
                f"{CONFIG_FILE}: {field} is {shown(value, 60)}, neither text nor a list of names. Save it again with PEFT."
            )
        if isinstance(value, list):
            bare = [name.removeprefix(PREFIX) for name in value]
            plain = plain_targets(bare)
        if bare != value:
            notes.append(f"{field} without PEFT's prefix {PREFIX}")
        if plain != bare:
            notes.append(f"{field} without what a wrapper put into names")
        targets[field] = set(plain) if isinstance(plain, list) else plain
    return PlainLora(
        rank=_rank(config.get("r"), "r"),
        alpha=_alpha(config.get("lora_alpha", 8), "lora_alpha"),
        rslora=bool(config.get("use_rslora")),
        ranks={k: _rank(v, f"rank_pattern[{shown(k, 60)}]") for k, v in _table(config, "rank_pattern").items()},
        alphas={k: _alpha(v, f"alpha_pattern[{shown(k, 60)}]") for k, v in _table(config, "alpha_pattern").items()},
        targets=SimpleNamespace(**targets, **_layers(config)),
        notes=tuple(notes),
    )


def as_list(value: Any) -> list[Any]:
    """A list as it is, nothing for None, and one entry for anything else."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_imports(config: Mapping[str, Any]) -> None:
    """Refuse what PEFT would import or download for a user who loads this adapter elsewhere; we never would."""
    mapping = config.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if library is not None and not (
        isinstance(library, str)
        and re.fullmatch(r"(transformers|peft|torch|sentence_transformers|timm|__main__)(\.\w+)*", library)
    ):
        raise AdapterError(
            f"{CONFIG_FILE}: auto_mapping names {shown(library, 60)!r}, which PEFT would import. Nothing is imported that a "
            "config names; remove auto_mapping from it where you trust the rest."
        )
    core = config.get("megatron_core")
    if core not in (None, "megatron.core"):
        raise AdapterError(
            f"{CONFIG_FILE}: megatron_core names {shown(core, 60)!r}, which PEFT would import. Remove it where you trust "
            "the rest."
        )
    for field in ("base_model_name_or_path", "revision", "task_type", "peft_version"):
        value = config.get(field)
        if value is not None and not isinstance(value, str):
            raise AdapterError(f"{CONFIG_FILE}: {field} is {shown(value, 60)}, expected text. Save it again with PEFT.")
    base = config.get("base_model_name_or_path") or ""
    if "://" in base:
        raise AdapterError(
            f"{CONFIG_FILE}: base_model_name_or_path is the address {shown(base, 60)!r}, which is no model's name. The base is "
            "always the one you give; remove the field where you trust the rest."
        )


def _rank(value: Any, field: str) -> int:
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise AdapterError(
            f"{CONFIG_FILE} has {field} = {shown(repr(value), 30)}, expected a whole number from 1 to {MAX_RANK:,}. "
            "Save it again with PEFT."
        )
    return value


def _whole(value: Any) -> Any:
    """A number as some tools write it, 4.0 for 4."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _alpha(value: Any, field: str) -> float:
    good = not isinstance(value, bool) and isinstance(value, (int, float))
    if not good or not -1e9 < value < 1e9 or not math.isfinite(value):
        raise AdapterError(
            f"{CONFIG_FILE} has {field} = {shown(repr(value), 30)}, expected a finite number below 1e9. Save it again with PEFT."
        )
    if value == 0:
        raise AdapterError(f"{CONFIG_FILE} has {field} = 0, so that the adapter changes nothing. Leave it out.")
    return value


def _table(config: Mapping[str, Any], field: str) -> dict[str, Any]:
    table = config.get(field) or {}
    if not isinstance(table, dict):
        raise AdapterError(f"{CONFIG_FILE}: {field} is {shown(table, 60)}, expected a table of numbers. Save it again.")
    for key in table:
        check_pattern(key, f"{CONFIG_FILE}: a key of {field}")
    plain = {plain_pattern(key): value for key, value in table.items()}
    if len(plain) < len(table):
        raise AdapterError(
            f"{CONFIG_FILE}: {field} names a layer twice, with and without what a wrapper puts into names. Save it again."
        )
    return plain


def _layers(config: Mapping[str, Any]) -> dict[str, Any]:
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    layers = [_whole(layer) for layer in layers] if isinstance(layers, list) else _whole(layers)
    if layers is not None and not all(type(v) is int for v in as_list(layers)):
        raise AdapterError(
            f"{CONFIG_FILE}: layers_to_transform is {shown(layers, 60)}, expected whole numbers. Save it again."
        )
    if pattern is not None and not all(isinstance(v, str) for v in as_list(pattern)):
        raise AdapterError(f"{CONFIG_FILE}: layers_pattern is {shown(pattern, 60)}, expected text. Save it again.")
    for text in as_list(pattern):
        check_pattern(text, f"{CONFIG_FILE}: layers_pattern")
    return {"layers_to_transform": layers, "layers_pattern": pattern}


def _spread(key: str) -> str:
    """PEFT's own reading of a key of rank_pattern or alpha_pattern: it fits the end of a layer's name."""
    return rf"(.*\.)?({key})$"


def _compiled(table: Mapping[str, Any]) -> list[tuple[str, Callable[[str], Any]]]:
    """Key → whether it fits a layer's name; names need no search for where they could begin, as other patterns do."""
    found: list[tuple[str, Callable[[str], Any]]] = []
    for key in table:
        try:
            found.append((key, _ends(key) if _PLAIN_KEY.fullmatch(key) else re.compile(_spread(key)).match))
        except (re.error, RecursionError, OverflowError) as error:
            raise AdapterError(
                f"{CONFIG_FILE}: the key {shown(key, 60)!r} of rank_pattern or alpha_pattern is not a valid pattern here: "
                f"{shown(str(error))}. Name the layers instead."
            ) from error
    return found


def _ends(key: str) -> Callable[[str], bool]:
    own, length = re.compile(key), len(key)  # a full stop stands for any character, as in PEFT

    def fits(site: str) -> bool:
        rest = site[:-length]
        return bool(own.fullmatch(site[-length:])) and (not rest or rest.endswith("."))

    return fits


def _first(
    compiled: Sequence[tuple[str, Callable[[str], Any]]], table: Mapping[str, Any], site: str, default: Any
) -> Any:
    return next((table[key] for key, fits in compiled if fits(site)), table.get(site, default))
