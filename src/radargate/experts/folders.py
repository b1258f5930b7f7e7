"""What a folder without an adapter is instead, by the files in it."""

from __future__ import annotations

import os
from pathlib import Path

from radargate.errors import AdapterError, shown
from radargate.experts.files import CONFIG_FILE, WEIGHTS_FILE

_GATHER = "Gather the weights (zero_to_fp32, or a full state dict), and save the adapter from the whole model"
# file or pattern → what it is and the one step that mends it; the first that is there counts
_TOOLS = {
    "adapters.safetensors": "an MLX adapter. Merge it with mlx_lm.fuse, or convert it to PEFT's form",
    "adapters.npz": "an MLX adapter. Merge it with mlx_lm.fuse, or convert it to PEFT's form",
    "lora.safetensors": "an adapter of mistral-finetune. Convert it to PEFT's form",
    "pytorch_lora_weights.safetensors": "an adapter of diffusers. Give a LoRA of a language model",
    "*/*.distcp": f"the parts of an FSDP checkpoint. {_GATHER}",
    "*.distcp": f"a part of an FSDP checkpoint. {_GATHER}",
    "global_step*": f"a DeepSpeed checkpoint. {_GATHER}",
    "*.gguf": "an adapter or model for llama.cpp. Give the folder that it was converted from",
    "model.safetensors": "a whole model. Give the folder of a LoRA adapter",
    "model.safetensors.index.json": "a whole model. Give the folder of a LoRA adapter",
}
DEPTH = 3  # folders below the one that was given
MOST_NAMED = 8
MOST_SEEN = 10_000  # files and folders; who gives a home folder waits no longer


def check_folder(folder: Path) -> None:
    """Raise `AdapterError` where a folder holds no adapter, and something else that can be named."""
    if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
        return
    if not (folder / CONFIG_FILE).is_file() and (below := _adapters_below(folder)):
        listed = ", ".join(shown(name, 60) for name in below[:MOST_NAMED]) + (", …" if len(below) > MOST_NAMED else "")
        raise AdapterError(f"{folder} holds no adapter itself; adapters are in {listed}. Give one of these folders.")
    if next(folder.glob("adapter_model*"), None) is None:  # else its own fault is told where it is opened
        _check_tools(folder)
    if (folder / WEIGHTS_FILE).is_file() and not os.path.lexists(folder / CONFIG_FILE):
        raise AdapterError(
            f"{folder / CONFIG_FILE} does not exist beside {WEIGHTS_FILE}, which alone does not say its scale. Copy the file that PEFT "
            "wrote with it, or save the adapter again."
        )


def _check_tools(folder: Path) -> None:
    for pattern, what in _TOOLS.items():
        if found := next(folder.glob(pattern), None):
            raise AdapterError(f"{folder} holds {shown(found.relative_to(folder).as_posix(), 60)}: {what}.")


def _adapters_below(folder: Path) -> list[str]:
    """Folders below one that hold an adapter; links are not followed."""
    found, seen = [], 0
    for place, folders, files in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        if depth and CONFIG_FILE in files:
            found.append(Path(place).relative_to(folder).as_posix())
        seen += len(folders) + len(files)
        if seen > MOST_SEEN:
            break
        if depth == DEPTH:
            folders.clear()
    return sorted(found)
