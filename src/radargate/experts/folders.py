"""What a folder without an adapter is instead, by the files in it."""

from __future__ import annotations

from pathlib import Path

from radargate.errors import AdapterError, shown
from radargate.experts.files import CONFIG_FILE, WEIGHTS_FILE

_TOOLS = {
    "adapters.safetensors": "an MLX adapter. Merge it with mlx_lm.fuse, or convert it to PEFT's form",
    "lora.safetensors": "an adapter of mistral-finetune. Convert it to PEFT's form",
    "model.safetensors": "a whole model. Give the folder of a LoRA adapter",
    "model.safetensors.index.json": "a whole model. Give the folder of a LoRA adapter",
}
MOST_NAMED = 8


def check_folder(folder: Path) -> None:
    """Raise `AdapterError` where a folder holds no adapter, and something else that can be named."""
    whole = (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()
    if whole:
        return
    below = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    if below and not (folder / CONFIG_FILE).is_file():
        listed = ", ".join(shown(name, 60) for name in below[:MOST_NAMED]) + (", …" if len(below) > MOST_NAMED else "")
        raise AdapterError(f"{folder} holds no adapter itself; adapters are in {listed}. Give one of these folders.")
    for name, what in _TOOLS.items():
        if (folder / name).is_file():
            raise AdapterError(f"{folder} holds {name}: {what}.")
