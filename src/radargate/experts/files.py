"""Reading adapter files from strangers: headers first, with caps, and never a pickle."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radargate.errors import AdapterError

try:  # the regex parser moved in Python 3.11
    from re import _constants as sre_constants  # type: ignore[attr-defined]
    from re import _parser as sre_parse  # type: ignore[attr-defined]
except ImportError:  # pragma: no cover
    import sre_constants
    import sre_parse

MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_RANK = 8_192
MAX_FILE_BYTES = 64 << 30
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object of bounded size, without duplicate keys.

    Raises:
        AdapterError: it is missing, too large, too deep, or not a JSON object.
    """
    if not path.is_file():
        raise AdapterError(f"{path} does not exist. Expected a folder saved by PEFT, with {CONFIG_FILE} in it.")
    size = path.stat().st_size
    if size > limit:
        raise AdapterError(f"{path} has {size:,} bytes, expected at most {limit:,}. This is no adapter config.")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON: {_short(error)}") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path} holds {type(value).__name__}, expected a JSON object.")
    return value


def weights_file(folder: Path) -> Path:
    """The safetensors file of an adapter folder.

    Raises:
        AdapterError: there is none; a pickled file is named and refused.
    """
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    pickled = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"})
    if pickled:
        raise AdapterError(
            f"{folder / pickled[0]} is a pickled file, which can run code when read. Expected {WEIGHTS_FILE}. "
            "Ask for a safetensors version, or re-save it with PEFT where you trust it (safe_serialization=True)."
        )
    raise AdapterError(f"{folder} has no {WEIGHTS_FILE}. Re-download the adapter, or save it again with PEFT.")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check a safetensors header without touching the data.

    Offsets must cover the data exactly, in order and without overlap; shape times dtype must equal bytes.

    Raises:
        AdapterError: anything else; the file and the fault are named.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise AdapterError(f"{path} has {size} bytes; it is cut off. Download it again.")
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise AdapterError(
                f"{path} is a pickle or zip archive under a safetensors name; it was not opened. "
                "Ask for a real safetensors file."
            )
        (length,) = struct.unpack("<Q", start)
        if length > MAX_HEADER_BYTES or size > MAX_FILE_BYTES:
            raise AdapterError(
                f"{path} announces a header of {length:,} bytes in a file of {size:,}; the limit is "
                f"{MAX_HEADER_BYTES:,}. It is no LoRA adapter, or it is damaged; download it again."
            )
        if length > size - 8:
            raise AdapterError(f"{path} is cut off inside its header. Download it again.")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: the header is not valid JSON ({_short(error)}). Download it again.") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise AdapterError(f"{path}: the header is not a table of at most {MAX_TENSORS:,} tensors.")
    header.pop("__metadata__", None)
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorInfo] = {}
    for name, info in header.items():
        tensors[name], span = _tensor_info(path, name, info)
        spans.append((*span, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise AdapterError(f"{path}: tensor {name} starts at byte {begin}, expected {position}. Download it again.")
        position = end
    if position != size - 8 - length:
        raise AdapterError(
            f"{path}: the header describes {position:,} bytes of data, the file holds {size - 8 - length:,}; "
            "it is cut off or padded. Download it again."
        )
    return tensors


def check_pattern(pattern: str, where: str) -> None:
    """Refuse a regular expression that is invalid, very long, or could take exponential time.

    Raises:
        AdapterError: with the field that holds it.
    """
    if len(pattern) > 2_000:
        raise AdapterError(f"{where} is a pattern of {len(pattern):,} characters; the limit is 2,000.")
    try:
        parsed = sre_parse.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterError(f"{where} is not a valid pattern: {_short(error)}") from error
    if _nested_repeat(parsed, inside=False):
        raise AdapterError(
            f"{where} is {pattern[:60]!r}, a pattern with a repeat inside a repeat, which can take exponential "
            "time. List the module names instead."
        )


def _nested_repeat(parsed: Any, inside: bool) -> bool:
    for operation, argument in parsed:
        if operation in (sre_constants.MAX_REPEAT, sre_constants.MIN_REPEAT):
            _, high, body = argument
            unbounded = high > 32
            if (unbounded and inside) or _nested_repeat(body, inside or unbounded):
                return True
        elif operation is sre_constants.SUBPATTERN:
            if _nested_repeat(argument[-1], inside):
                return True
        elif operation is sre_constants.BRANCH:
            if any(_nested_repeat(branch, inside) for branch in argument[1]):
                return True
        elif operation in (sre_constants.ASSERT, sre_constants.ASSERT_NOT) and _nested_repeat(argument[1], inside):
            return True
    return False


def _tensor_info(path: Path, name: str, info: Any) -> tuple[TensorInfo, tuple[int, int]]:
    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_FILE_BYTES

    if not isinstance(info, dict):
        raise AdapterError(f"{path}: tensor {name} is not described by an object. Download it again.")
    dtype, shape, span = info.get("dtype"), info.get("shape"), info.get("data_offsets")
    if dtype not in DTYPE_BYTES:
        raise AdapterError(
            f"{path}: tensor {name} has dtype {str(dtype)[:20]!r}, expected one of {', '.join(DTYPE_BYTES)}."
        )
    if not isinstance(shape, list) or len(shape) > 8 or not all(whole(s) for s in shape):
        raise AdapterError(f"{path}: tensor {name} has shape {str(shape)[:60]}, expected up to 8 whole numbers.")
    if not isinstance(span, list) or len(span) != 2 or not all(whole(s) for s in span):
        raise AdapterError(f"{path}: tensor {name} has no valid data_offsets.")
    count = 1
    for side in shape:
        count *= side
    if span[1] - span[0] != count * DTYPE_BYTES[dtype]:
        raise AdapterError(
            f"{path}: tensor {name} of shape {shape} and dtype {dtype} needs {count * DTYPE_BYTES[dtype]:,} bytes, "
            f"its offsets give {span[1] - span[0]:,}. Download it again."
        )
    return TensorInfo(dtype, tuple(shape)), (span[0], span[1])


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the same key stands twice")
    return result


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
