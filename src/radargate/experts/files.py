"""Reading adapter files from strangers: headers first, with caps, and never a pickle."""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radargate.errors import AdapterError, shown

MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 50_000
MAX_NAME = 500
MAX_RANK = 8_192
MAX_FILE_BYTES = 64 << 30
MAX_DEPTH = 32
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_POINTER = b"version "  # of its specification; a header of so many bytes would be far over the limit
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int] = (0, 0)


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object of bounded size and depth, without duplicate keys.

    Raises:
        AdapterError: it is missing, lies elsewhere, is too large or too deep, or is no JSON object.
    """
    if not path.is_file():
        raise AdapterError(f"{path} does not exist. Expected a folder saved by PEFT, with {path.name} in it.")
    check_inside(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error.strerror}). Give yourself access to it.") from error
    if len(raw) > limit:
        raise AdapterError(
            f"{path} has more than {limit:,} bytes: no config is that long. Download it again, or ask who made it."
        )
    check_pointer(path, raw)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise AdapterError(f"{path} is UTF-16, expected UTF-8. Save it again as UTF-8.")
    value = parse_json(raw.removeprefix(codecs.BOM_UTF8), str(path))
    if not isinstance(value, dict):
        raise AdapterError(
            f"{path} holds {type(value).__name__}, expected a JSON object. Download it again, or save it again."
        )
    return value


def parse_json(raw: bytes, where: str) -> Any:
    """Decode JSON from a stranger: UTF-8, no key twice, nested at most `MAX_DEPTH` deep.

    Raises:
        AdapterError: it is something else.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{where} is not valid JSON: {_short(error)}. Download it again.") from error
    if _too_deep(value):
        raise AdapterError(f"{where} is not valid JSON for us: it nests more than {MAX_DEPTH} deep. Download it again.")
    return value


def check_pointer(path: Path, start: bytes) -> None:
    """Raise `AdapterError` where a file begins as what Git LFS leaves in the place of one that was not fetched."""
    if start.startswith(_POINTER):
        raise AdapterError(
            f"{path} is a pointer of Git LFS, not the file itself. Fetch it (git lfs pull), or download it from the Hub."
        )


def check_inside(path: Path) -> None:
    """Refuse a file that a symbolic link takes out of its folder; the Hub's own cache links to its blobs.

    Raises:
        AdapterError: it leads elsewhere.
    """
    try:
        home, real = path.parent.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:
        raise AdapterError(f"{path} is a link that leads nowhere. Copy the file itself into the folder.") from error
    roots = [home]
    for folder in (home, *home.parents):
        if folder.parent.name == "snapshots":
            roots.append(folder.parent.parent / "blobs")
    if not any(real.is_relative_to(root) for root in roots):
        raise AdapterError(
            f"{path} is a symbolic link out of its folder, to {shown(str(real))}; it was not opened. "
            "Copy the file itself into the folder."
        )


def weights_file(folder: Path) -> Path:
    """The safetensors file of an adapter folder.

    Raises:
        AdapterError: there is none, or it lies elsewhere; a pickled file is named and refused.
    """
    path = folder / WEIGHTS_FILE
    if path.is_file():
        check_inside(path)
        return path
    pickled = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLED)
    if pickled:
        raise AdapterError(
            f"{folder / shown(pickled[0])} is a pickled file, which can run code when read. Expected {WEIGHTS_FILE}. "
            "Ask for a safetensors version, or re-save it with PEFT where you trust it (safe_serialization=True)."
        )
    pieces = sorted(p.name for p in folder.glob("adapter_model-*-of-*.safetensors"))
    if pieces:
        raise AdapterError(
            f"{folder} holds its weights in pieces ({shown(pieces[0])}, …), expected one {WEIGHTS_FILE}. Load it with PEFT and save it "
            "again in one file."
        )
    raise AdapterError(f"{folder} has no {WEIGHTS_FILE}. Re-download the adapter, or save it again with PEFT.")


class WeightsFile:
    """A safetensors file from a stranger, opened once: its checked header, its hash and its tensors.

    Offsets must cover the data exactly, in order and without overlap; shape times dtype must equal bytes.

    Attributes:
        path: where it is.
        tensors: name → dtype, shape and place.

    Raises:
        AdapterError: it is anything else; the file and the fault are named.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map, raw = _mapped(path)
        self._data = 8 + len(raw)
        self.tensors = _checked(path, raw, len(self._map) - self._data)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the whole file, in hexadecimal."""
        return hashlib.sha256(self._map).hexdigest()

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the file's dtype."""
        info = self.tensors[name]
        start, end = (self._data + place for place in info.span)
        dtype = DTYPES[info.dtype]
        if start == end:
            return torch.empty(info.shape, dtype=dtype)
        return torch.frombuffer(bytearray(self._map[start:end]), dtype=dtype).view(info.shape)


def _checked(path: Path, raw: bytes, data: int) -> dict[str, TensorInfo]:
    """The tensors that a header describes, if they are all there is in so many bytes of data."""
    header = parse_json(raw, f"{path}: the header")
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise AdapterError(
            f"{path}: the header is not a table of at most {MAX_TENSORS:,} tensors. It is no LoRA adapter; "
            "download it again."
        )
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterError(f"{path} cannot be read: its metadata is no table of text. Download it again.")
    tensors = {name: _tensor_info(path, name, info) for name, info in header.items()}
    position = 0
    for (begin, end), name in sorted((info.span, name) for name, info in tensors.items()):
        if begin != position:
            raise AdapterError(
                f"{path}: tensor {shown(name)} starts at byte {begin}, expected {position}. Download it again."
            )
        position = end
    if position != data:
        raise AdapterError(
            f"{path}: the header describes {position:,} bytes of data, the file holds {data:,}; "
            "it is cut off or padded. Download it again."
        )
    return tensors


def _mapped(path: Path) -> tuple[mmap.mmap, bytes]:
    """The file in memory, and its header's bytes, few enough to be decoded."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(8)
            if len(start) < 8:
                raise AdapterError(f"{path} has {size} bytes; it is cut off. Download it again.")
            # a header's length may begin with either mark too; what follows it is then the header's brace
            if (start[:2] == b"PK" or start[:1] == b"\x80") and file.read(1) != b"{":
                raise AdapterError(
                    f"{path} is a pickle or zip archive under a safetensors name; it was not opened. "
                    "Ask for a real safetensors file."
                )
            check_pointer(path, start)
            (length,) = struct.unpack("<Q", start)
            if length > MAX_HEADER_BYTES or size > MAX_FILE_BYTES:
                raise AdapterError(
                    f"{path} announces a header of {length:,} bytes in a file of {size:,}; the limit is "
                    f"{MAX_HEADER_BYTES:,}. It is no LoRA adapter, or it is damaged; download it again."
                )
            if length > size - 8:
                raise AdapterError(f"{path} is cut off inside its header. Download it again.")
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except AdapterError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise AdapterError(f"{path} cannot be read ({reason}). Give yourself access to it.") from error
    raw = whole[8 : 8 + length]
    # an honest entry has about 12 of these; a header of nothing else would need gigabytes once it is decoded
    if sum(raw.count(mark) for mark in (b"{", b"[", b":", b",")) > 16 * MAX_TENSORS:
        raise AdapterError(
            f"{path}: the header of {length:,} bytes describes more than {MAX_TENSORS:,} tensors. It is no LoRA "
            "adapter, or it is damaged; download it again."
        )
    return whole, raw


def _tensor_info(path: Path, name: str, info: Any) -> TensorInfo:
    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_FILE_BYTES

    if len(name) > MAX_NAME:
        raise AdapterError(
            f"{path}: a tensor's name has {len(name):,} characters ({shown(name, 40)}), the limit is {MAX_NAME}. "
            "It is no LoRA adapter; download it again."
        )

    def tensor() -> str:
        return f"{path}: tensor {shown(name)}"

    if not isinstance(info, dict):
        raise AdapterError(f"{tensor()} is not described by an object. Download it again.")
    dtype, shape, span = info.get("dtype"), info.get("shape"), info.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise AdapterError(
            f"{tensor()} has dtype {shown(dtype, 20)!r}, expected one of {', '.join(DTYPES)}. "
            "Save it again in one of them."
        )
    if not isinstance(shape, list) or len(shape) > 8 or not all(whole(s) for s in shape):
        raise AdapterError(
            f"{tensor()} has shape {shown(shape, 60)}, expected up to 8 whole numbers. Download it again."
        )
    if not isinstance(span, list) or len(span) != 2 or not all(whole(s) for s in span):
        raise AdapterError(f"{tensor()} has no valid data_offsets. Download it again.")
    count = 1
    for side in shape:
        count *= side
    if span[1] - span[0] != count * DTYPES[dtype].itemsize:
        raise AdapterError(
            f"{tensor()} of shape {shape} and dtype {dtype} needs {count * DTYPES[dtype].itemsize:,} bytes, "
            f"its offsets give {span[1] - span[0]:,}. Download it again."
        )
    return TensorInfo(dtype, tuple(shape), (span[0], span[1]))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the same key stands twice")
    return result


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def _short(error: BaseException) -> str:
    return shown((str(error).splitlines() or [type(error).__name__])[0], 120)
