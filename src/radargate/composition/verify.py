"""``radargate verify``: every byte that a bundle stands on, compared with what its lock file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from radargate.base_models.loading import fingerprint, load_base, resolve_base
from radargate.composition.bundle import LOCK_FILE, MAX_BYTES, bundle_folder, open_lock, tensor_hashes, write_sealed
from radargate.errors import AdapterError, BundleError, RadarGateError, shown
from radargate.experts.adapters import locate
from radargate.experts.files import CONFIG_FILE, WEIGHTS_FILE, read_json
from radargate.io.places import place_of, recall
from radargate.io.records import file_hash

# what of a base decides its answers; a README may change
BASE_KINDS = {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja"}


@dataclass(frozen=True)
class Finding:
    """One thing that was compared.

    Attributes:
        part: ``"lock"``, ``"config"``, ``"experts"``, ``"gate"``, ``"weights"`` or ``"base"``.
        name: the file or tensor, or the expert.
        ok: whether it is as it was.
        words: what was found and what to do.
    """

    part: str
    name: str
    ok: bool
    words: str = "unchanged"

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def verify(
    bundle: str | Path, *, base: str | None = None, adapters: Mapping[str, str | Path] | None = None
) -> list[Finding]:
    """Compare a bundle, its experts and its base with the bundle's lock file, byte by byte.

    Args:
        bundle: its folder, or a Hub id.
        base: where the base is, if not where the bundle says.
        adapters: where the experts of a bundle with gates only are; None takes the places it names.

    Returns:
        One finding for each thing compared; those with ``ok`` False name what changed.

    Raises:
        BundleError: there is no bundle, or no lock file to compare with.
    """
    folder = Path(bundle)
    if not folder.is_dir():  # a folder here may lack its very config: that is for the findings to say
        folder = bundle_folder(bundle)
    try:
        lock = open_lock(folder)
    except BundleError as error:
        return [Finding("lock", LOCK_FILE, False, str(error))]
    if not lock:
        raise BundleError(
            f"{folder} has no {LOCK_FILE} to compare with. Download the bundle again, or load and save it where you trust it."
        )
    findings = [Finding("lock", LOCK_FILE, True), _config(folder, lock), *_weights(folder, lock)]
    findings += _experts(folder, lock, adapters or {})
    return [*findings, *_base(lock, base)]


def lock_base(folder: Path, base: str) -> None:
    """Add the hash of every file of the base to a bundle's lock file, where the base's files can be found here."""
    lock, files = open_lock(folder), base_files(base)
    if lock and files:
        write_sealed(folder, {**lock, "base": {**lock["base"], "files": files}})


def base_files(base: str) -> dict[str, str]:
    """File → sha256 of a base model's folder; empty where it is a Hub name that was never downloaded."""
    place = Path(resolve_base(base))
    if not place.is_dir():
        from huggingface_hub import snapshot_download

        try:
            place = Path(snapshot_download(str(place), local_files_only=True))
        except Exception:  # the library raises many kinds; all mean that no file is here
            return {}
    return {f.name: file_hash(f) for f in sorted(place.iterdir()) if f.is_file() and f.suffix in BASE_KINDS}


def table(findings: list[Finding]) -> str:
    """The findings for people, one a line."""
    width = max(len(f.name) for f in findings)
    lines = [f"{'ok ' if f.ok else 'BAD'}  {f.part:<8}  {f.name:<{width}}  {f.words}" for f in findings]
    bad = sum(not f.ok for f in findings)
    return "\n".join(
        [*lines, f"{bad} of {len(findings)} changed." if bad else f"All {len(findings)} are as they were."]
    )


def _config(folder: Path, lock: Mapping[str, Any]) -> Finding:
    return _file("config", folder, CONFIG_FILE, lock)


def _file(part: str, folder: Path, name: str, lock: Mapping[str, Any]) -> Finding:
    expected = lock["files"].get(name)
    if not (folder / name).is_file():
        return Finding(part, name, False, "is missing; download the bundle again.")
    if expected is None:
        return Finding(part, name, False, "is not in the lock file; download the bundle again.")
    if file_hash(folder / name) != expected:
        return Finding(part, name, False, "was changed after it was saved; download the bundle again.")
    return Finding(part, name, True)


def _weights(folder: Path, lock: Mapping[str, Any]) -> list[Finding]:
    """The weights file, and where it changed the tensors that did."""
    whole = _file("weights", folder, WEIGHTS_FILE, lock)
    if whole.ok or not isinstance(lock.get("tensors"), dict) or not (folder / WEIGHTS_FILE).is_file():
        return [whole]
    try:
        found = tensor_hashes(folder / WEIGHTS_FILE)
    except BundleError as error:
        return [Finding("weights", WEIGHTS_FILE, False, str(error))]
    changed = [name for name in {**lock["tensors"], **found} if lock["tensors"].get(name) != found.get(name)]
    parts = [(("experts" if ".radar_bank." in name else "gate"), name) for name in changed]
    return [
        whole,
        *(Finding(part, shown(name, 150), False, "is another tensor than the one saved.") for part, name in parts),
    ]


def _experts(folder: Path, lock: Mapping[str, Any], adapters: Mapping[str, str | Path]) -> list[Finding]:
    """Of a bundle with gates only: the experts where they lie."""
    try:
        config = read_json(folder / CONFIG_FILE, MAX_BYTES)
    except AdapterError:
        return []  # the config's own finding says so
    known = lock.get("experts")
    if not config.get("gate_only") or not isinstance(known, dict):
        return []
    findings = []
    for name, facts in known.items():
        if not isinstance(facts, dict):
            continue
        source = adapters.get(name) or facts.get("source") or recall(facts.get("sha256")) or name
        try:
            same = file_hash(locate(source) / WEIGHTS_FILE) == facts.get("sha256")
            words = "unchanged" if same else f"{source} holds another adapter; give its place, or download it again."
        except (RadarGateError, OSError) as error:
            same, words = False, str(error)
        findings.append(Finding("experts", shown(name, 80), same, words))
    return findings


def _base(lock: Mapping[str, Any], base: str | None) -> list[Finding]:
    known = lock.get("base") or {}
    name = base or place_of(known.get("name"), known.get("fingerprint"))
    if not name:
        return [Finding("base", "(unnamed)", False, "the bundle names no base; give it as `base`.")]
    files = known.get("files")
    try:
        if isinstance(files, dict) and files:
            found = base_files(name)
            if not found:
                return [
                    Finding("base", name, False, "its files are not here; download it, or give its place as `base`.")
                ]
            changed = sorted(n for n in {**files, **found} if files.get(n) != found.get(n))
            return [Finding("base", f"{name}: {shown(n)}", False, _change(n, files, found)) for n in changed] or [
                Finding("base", name, True)
            ]
        same = fingerprint(load_base(name)) == known.get("fingerprint")
    except RadarGateError as error:
        return [Finding("base", name, False, str(error))]
    words = (
        "unchanged in the 64 values of each tensor that were noted"
        if same
        else "has other weights; give the right `base`."
    )
    return [Finding("base", name, same, words)]


def _change(name: str, files: Mapping[str, Any], found: Mapping[str, str]) -> str:
    if name not in found:
        return "is missing; download the base again."
    if name not in files:
        return "was not there when the gates were trained; remove it, or train again."
    return "was changed after the gates were trained; download the base again."
