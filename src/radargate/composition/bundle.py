"""What makes a bundle trustworthy: its checked config and its lock file."""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError, safe_open

from radargate.base_models.loading import fingerprint
from radargate.errors import AdapterError, BundleError, shown
from radargate.experts.adapters import locate
from radargate.experts.files import CONFIG_FILE, WEIGHTS_FILE, WeightsFile, check_inside, read_json, weights_file
from radargate.io.places import place_of
from radargate.io.records import content_hash, file_hash, provenance, write_atomic

if TYPE_CHECKING:
    from torch import nn


LOCK_FILE = "radargate.lock.json"
LOCK = 2
HASHED = (CONFIG_FILE, WEIGHTS_FILE)
MAX_BYTES = 64 << 20  # of a bundle's config or lock file; a large base with many experts has a few


def bundle_folder(bundle: str | Path) -> Path:
    """The folder of a bundle given by path or Hub id; of a Hub id nothing but a bundle's own files is fetched.

    Raises:
        BundleError: there is none.
    """
    path = Path(bundle)
    if path.exists() and not (path / CONFIG_FILE).exists():
        raise BundleError(f"{bundle} has no {CONFIG_FILE}. Give a folder written by save_pretrained.")
    try:
        return locate(bundle, also=(LOCK_FILE,))
    except AdapterError as error:
        raise BundleError(str(error)) from error


def check_files(folder: Path) -> dict[str, Any]:
    """Check a bundle's files as a stranger's: config and lock of bounded size, weights in safetensors with a sound header.

    Returns:
        The config, as it is in the file.

    Raises:
        BundleError: something is missing, damaged, of another kind, or lies elsewhere.
    """
    try:
        config = read_json(folder / CONFIG_FILE, MAX_BYTES)
        WeightsFile(weights_file(folder))
    except AdapterError as error:
        raise BundleError(str(error)) from error
    if config.get("peft_type") != "RADAR":
        raise BundleError(
            f"{folder} is a {shown(config.get('peft_type'), 30)} adapter, not a RadarGate bundle. Compose it first."
        )
    return config


def config_with_place(path: str) -> str:
    """The path of a bundle's config in which the base's folder stands, where this machine knows it; else the path as it is."""
    config = read_json(Path(path), MAX_BYTES)
    name = config.get("base_model_name_or_path")
    if config.get("peft_type") != "RADAR" or not isinstance(name, str):
        return path
    place = place_of(name, config.get("base_fingerprint"))
    if place == name:
        return path
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False, encoding="utf-8") as file:
        json.dump({**config, "base_model_name_or_path": place}, file)
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name


class Described(Protocol):
    """What a bundle's lock and card say of its configuration (`radargate.RadarConfig`)."""

    base_model_name_or_path: str | None
    base_fingerprint: str | None
    architecture: str
    gate: str
    gate_only: bool
    top_k: int | None
    experts: list[str]
    expert_facts: dict[str, dict[str, Any]]
    sites: dict[str, Any]

    def adapter_facts(self) -> dict[str, dict[str, Any]]:
        """Expert → what is known of its adapter."""


def write_lock(folder: Path, config: Described) -> None:
    """Write the lock file: base fingerprint, hash of every file, expert and tensor, versions, and of the lock itself."""
    here = provenance()
    lock = {
        "lock": LOCK,
        "base": {"name": config.base_model_name_or_path, "fingerprint": config.base_fingerprint},
        "experts": {
            name: {key: facts[key] for key in ("source", "sha256") if key in facts}
            for name, facts in {**config.expert_facts, **config.adapter_facts()}.items()
        },
        "files": {name: file_hash(folder / name) for name in HASHED if (folder / name).exists()},
        "tensors": tensor_hashes(folder / WEIGHTS_FILE),
        "versions": here["versions"],
        "python": here["python"],
    }
    write_sealed(folder, lock)


def write_sealed(folder: Path, lock: dict[str, Any]) -> None:
    """Write a lock file with a hash of its own contents, so that a change in it shows too."""
    own = {key: value for key, value in lock.items() if key != "sealed"}
    write_atomic(folder / LOCK_FILE, json.dumps({**own, "sealed": content_hash(own)}, indent=2))


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock file's contents, empty where there is none.

    Raises:
        BundleError: it is damaged or was changed, or a hashed file differs from it.
    """
    lock = open_lock(folder)
    for name in HASHED:
        if name not in lock.get("files", {}) or not (folder / name).is_file():
            continue
        try:
            check_inside(folder / name)
        except AdapterError as error:
            raise BundleError(str(error)) from error
        if file_hash(folder / name) != lock["files"][name]:
            raise BundleError(
                f"{folder / name} differs from its lock file {LOCK_FILE}: it was changed after it was saved. Download "
                f"it again, or delete {LOCK_FILE} if you changed it on purpose."
            )
    return lock


def open_lock(folder: Path) -> dict[str, Any]:
    """The lock file's contents without a look at the files it lists, empty where there is none.

    Raises:
        BundleError: it is damaged, was changed, or names files that a bundle does not have.
    """
    path = folder / LOCK_FILE
    if not path.is_file():
        return {}
    try:
        lock = read_json(path, MAX_BYTES)
    except AdapterError as error:
        raise BundleError(f"{error} It is damaged: download the bundle again.") from error
    files, base = lock.get("files"), lock.get("base", {})
    if not isinstance(files, dict) or not isinstance(base, dict):
        raise BundleError(f"{path} is damaged (it has no table of files and base). Download the bundle again.")
    strange = [name for name in files if name not in HASHED]
    if strange:
        raise BundleError(
            f"{path} lists {shown(strange[0])}, expected only {' and '.join(HASHED)}. Nothing else was opened; download the "
            "bundle again."
        )
    name = base.get("name")
    if not isinstance(name, (str, type(None))):
        raise BundleError(f"{path} is damaged (its base is {shown(name, 30)}). Download the bundle again.")
    own = {key: value for key, value in lock.items() if key != "sealed"}
    if ("sealed" in lock or lock.get("lock") != 1) and lock.get("sealed") != content_hash(own):  # 1 had no seal
        raise BundleError(
            f"{path} was changed after it was written. Download the bundle again, or delete the file if you changed it on "
            "purpose."
        )
    return lock


def tensor_hashes(file: Path) -> dict[str, str]:
    """Tensor → short sha256 of its dtype, shape and bytes; empty where there is no such file."""
    import hashlib

    import torch

    if not file.exists():
        return {}
    found = {}
    try:
        check_inside(file)
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                tensor = tensors.get_tensor(name)
                digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                found[name] = digest.hexdigest()[:16]
    except (SafetensorError, AdapterError, OSError) as error:
        raise BundleError(f"{file} cannot be read ({shown(str(error))}). Download the bundle again.") from error
    return found


def check_fingerprint(bundle: str | Path, expected: str | None, base: nn.Module, without: Iterable[str] = ()) -> None:
    """Raise `BundleError` where the base model is not the one a bundle's gates were made for, modules it replaces left out."""
    if expected is None:
        return
    found = fingerprint(base, without)
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
