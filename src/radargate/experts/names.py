"""Names of tensors in adapter files: what wrappers, other tools and other moments left in them is read as PEFT's own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from radargate.errors import AdapterError, shown
from radargate.experts.files import WEIGHTS_FILE, TensorInfo

PREFIX = "base_model.model."
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
# in a pattern a full stop may be escaped, and one with a repeat behind it is more than part of the word
_WRAPPER = re.compile(rf"(?:{'|'.join(_WRAPPERS)})\\?\.(?![*+?{{])")
_KEPT_NAME = re.compile(r"(.+\.lora_[AB])\.(.+)\.(weight|bias)")
_FOREIGN = (
    (
        re.compile(r"\.lora_[ab](\.weight)?$"),
        "MLX or torchtune write lora_a and lora_b: save it in PEFT's form with that tool",
    ),
    (
        re.compile(r"(^|\.)lora_unet_|\.lora_(up|down)\."),
        "diffusion tools write lora_up and lora_down: convert it to PEFT's form",
    ),
    (
        re.compile(r"\.(adapter|lora)\.linear_(in|out)\."),
        "NeMo writes linear_in and linear_out: export it in PEFT's form",
    ),
)


@dataclass(frozen=True)
class PlainNames:
    """The tensors of a file by their plain names.

    Attributes:
        tensors: plain name → what the header says of it.
        raw: plain name → its name in the file.
        notes: what was left out of names, a line each.
    """

    tensors: Mapping[str, TensorInfo]
    raw: Mapping[str, str]
    notes: tuple[str, ...]


def plain_names(header: Mapping[str, TensorInfo]) -> PlainNames:
    """Leave out what wrapped the model or named the adapter when its tensors were saved.

    Raises:
        AdapterError: two tensors come to one name, or the file holds several adapters.
    """
    _check_tool(header)
    wrapped: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    raw: dict[str, str] = {}
    for name in header:
        plain = _unwrapped(name, wrapped)
        match = _KEPT_NAME.fullmatch(plain)
        if match:
            kept[match[2]] += 1
            plain = f"{match[1]}.{match[3]}"
        if plain in raw and len(kept) < 2:
            raise AdapterError(
                f"{WEIGHTS_FILE} holds {shown(plain)} twice, as {shown(raw[plain])} and {shown(name)}. Save the adapter again "
                "with PEFT."
            )
        raw.setdefault(plain, name)
    if len(kept) > 1:
        raise AdapterError(
            f"{WEIGHTS_FILE} holds several adapters: {', '.join(shown(name, 30) for name in sorted(kept)[:5])}. Save each into a "
            "folder of its own with PEFT."
        )
    notes = [f"{count} tensor names without what {word} puts into them" for word, count in wrapped.items()]
    notes += [f"{count} tensor names without the adapter's name {shown(name, 30)}" for name, count in kept.items()]
    return PlainNames({plain: header[name] for plain, name in raw.items()}, raw, tuple(notes))


def _unwrapped(name: str, found: Counter[str]) -> str:
    parts = name.split(".")
    words = {_WRAPPERS[part] for part in parts if part in _WRAPPERS}
    plain = [part for part in parts if part not in _WRAPPERS]
    lead, plain = _lead(plain)
    # DDP and DeepSpeed wrap the whole model, outside or inside of PEFT's own class; trainers hold it under names of their own
    if lead:
        words.add("DDP" if set(lead) == {"module"} else f"a wrapper called {shown('.'.join(lead), 40)}")
    start = 2 if plain[:2] == ["base_model", "model"] else 0
    while len(plain) > start + 1 and plain[start] == "module":
        del plain[start]
        words.add("DDP")
    found.update(words)
    return ".".join(plain)


def _lead(parts: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the class that PEFT puts around a model, and the rest."""
    starts = [i for i in range(len(parts) - 1) if parts[i : i + 2] == ["base_model", "model"]]
    return (parts[: starts[0]], parts[starts[0] :]) if starts else ([], parts)


def _check_tool(header: Mapping[str, TensorInfo]) -> None:
    """Raise `AdapterError` where names or sizes tell of another tool, or of a moment in which the weights were elsewhere."""
    if not header:
        raise AdapterError(
            f"{WEIGHTS_FILE} holds no tensor. Under DeepSpeed ZeRO-3 that is what an ungathered model saves: gather it first "
            "(zero_to_fp32, or stage3_gather_16bit_weights_on_model_save), then save the adapter again."
        )
    empty = [name for name, info in header.items() if "lora_" in name and 0 in info.shape]
    if empty:
        raise AdapterError(
            f"{WEIGHTS_FILE}: {shown(empty[0])} is empty, of shape {header[empty[0]].shape}. It was saved under DeepSpeed ZeRO-3 or "
            "FSDP without gathering; gather the weights first (zero_to_fp32, or summon_full_params), then save the adapter again."
        )
    for name in header:
        for pattern, remedy in _FOREIGN:
            if pattern.search(name):
                raise AdapterError(f"{WEIGHTS_FILE} holds {shown(name)}, which is not PEFT's form. {remedy}.")


def exactly(site: str) -> str:
    """A key of PEFT's patterns for one layer alone: anchored, or it could match the end of another's name."""
    return "^" + site.replace(".", r"\.")


def plain_targets(targets: Iterable[str]) -> list[str]:
    """Names of modules in a config without what wrapped the model."""
    return [_plain_target(name) for name in targets]


def plain_pattern(pattern: str) -> str:
    """A pattern over names of modules without the words that wrappers put into them."""
    return _WRAPPER.sub("", pattern)


def _plain_target(name: str) -> str:
    plain = plain_pattern(name)
    full = any(part.isdigit() for part in plain.split("."))  # shorter ones are ends of names, where any word may stand
    return re.sub(r"^(module\.)+", "", plain) if full else plain
