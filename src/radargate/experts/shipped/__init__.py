"""The experts that come with the package: one small adapter for each category of the built-in tasks."""

from __future__ import annotations

import json
from pathlib import Path

from radargate.errors import AdapterError
from radargate.io.records import file_hash

FOLDER = Path(__file__).parent
BASE = "smollm2-135m"


def shipped_experts() -> dict[str, Path]:
    """Name → folder of every shipped expert, its hash checked.

    Raises:
        AdapterError: a file is missing or altered.
    """
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    experts = {}
    for name, expected in manifest["experts"].items():
        file = FOLDER / name / "adapter_model.safetensors"
        if not file.is_file() or file_hash(file) != expected["sha256"]:
            raise AdapterError(f"{file} is missing or altered. Install radargate again.")
        experts[name] = FOLDER / name
    return experts
