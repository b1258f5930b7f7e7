"""What makes a bundle trustworthy: its lock file, its model card, and their checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radargate.base_models import fingerprint
from radargate.errors import BundleError
from radargate.records import file_hash, provenance, write_atomic

if TYPE_CHECKING:
    from torch import nn

    from radargate.config import RadarConfig

LOCK_FILE, CARD_FILE = "radargate.lock.json", "README.md"
_HASHED = ("adapter_config.json", "adapter_model.safetensors")


def write_lock(folder: Path, config: RadarConfig) -> None:
    """Write the lock file: base fingerprint, hash of every file and expert, versions."""
    here = provenance()
    lock = {
        "lock": 1,
        "base": {"name": config.base_model_name_or_path, "fingerprint": config.base_fingerprint},
        "experts": {
            name: {key: facts[key] for key in ("source", "sha256") if key in facts}
            for name, facts in {**config.expert_facts, **config.adapter_facts()}.items()
        },
        "files": {name: file_hash(folder / name) for name in _HASHED if (folder / name).exists()},
        "versions": here["versions"],
        "python": here["python"],
    }
    write_atomic(folder / LOCK_FILE, json.dumps(lock, indent=2))


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock file's contents, empty where there is none.

    Raises:
        BundleError: it is not a JSON object, or a hashed file differs from it.
    """
    path = folder / LOCK_FILE
    if not path.is_file():
        return {}
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        files = dict(lock["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is damaged ({error}). Download the bundle again.") from error
    for name in _HASHED:
        if name in files and (folder / name).is_file() and file_hash(folder / name) != files[name]:
            raise BundleError(
                f"{folder / name} differs from its lock file {LOCK_FILE}: it was changed after it was saved. Download "
                f"it again, or delete {LOCK_FILE} if you changed it on purpose."
            )
    return lock


def check_fingerprint(bundle: str | Path, expected: str | None, base: nn.Module) -> None:
    """Raise `BundleError` where the base model is not the one a bundle's gates were made for."""
    if expected is None:
        return
    found = fingerprint(base)
    if found != expected and getattr(base, "is_quantized", False):
        raise BundleError(
            f"{bundle} was made for a base model with fingerprint {expected[:16]}…, and this one is quantised: its weights are "
            "near those at best. Use the dtype the bundle was trained with, or pass allow_other_base=True "
            "to radargate.load and score it again."
        )
    if found != expected:
        raise BundleError(
            f"{bundle} was made for a base model with fingerprint {expected[:16]}…, this one has {found[:16]}…: other "
            "weights. Use the base the bundle names, or pass allow_other_base=True to radargate.load."
        )


def write_card(folder: Path, config: RadarConfig, scores: str = "") -> None:
    """Write the model card: what the bundle is, how to load it, its experts, and its scores."""
    experts = "\n".join(
        f"| {name} | `{facts.get('source', '')}` | `{str(facts.get('sha256', ''))[:16]}` |"
        for name, facts in {**config.expert_facts, **config.adapter_facts()}.items()
    )
    text = f"""---
base_model: {config.base_model_name_or_path}
library_name: peft
tags:
- radargate
- lora
---

# RadarGate composition of {len(config.experts)} experts

Base `{config.base_model_name_or_path}`, architecture `{config.architecture}`, gate `{config.gate}`, top-k {config.top_k},
{len(config.sites)} sites. It holds {"its gates only; the experts are found by source and hash" if config.gate_only else "its experts"}; only the gates were trained.

```python
import radargate                      # tells PEFT what this bundle is
model = radargate.load(None, "{folder.name}")
```

| expert | source | sha256 |
|---|---|---|
{experts}

{scores}
"""
    write_atomic(folder / CARD_FILE, text.rstrip() + "\n")
