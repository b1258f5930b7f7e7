"""The dtype that a base model is loaded in, where the user names none.

Most processors imitate half precision: with AVX2 alone, a training step in bfloat16 takes fifty times as long as in
float32. So a checkpoint's bfloat16 or float16 is kept on a CPU only where a product measured here is at least as fast.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from radargate.errors import OptionError, OutOfMemoryError, first_line
from radargate.io.cache import cache_folder
from radargate.io.records import provenance, write_atomic
from radargate.registry import unknown_name

PLAIN = ("float32", "bfloat16", "float16")
QUANTISED = ("8bit", "4bit")
CHECKPOINT = "auto"  # the checkpoint's own, whatever it costs
HALF = (torch.bfloat16, torch.float16)
WIDTH = 1024  # of a base whose config names none
PRODUCT = 1.2e8  # multiply-adds of the measured product: a second at the slowest rate seen
MOST_ROUNDS, ROUNDS_SECONDS = 60, 0.1  # of a measurement; the best round counts, as others may use the processor too
CRAWLS = 0.2  # seconds of a product that float32 does in milliseconds
ENOUGH = 0.9  # share of the free memory that weights may take
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speed:
    """How fast a processor multiplies half precision, float32 = 1.

    Attributes:
        forward: of ``x Wᵀ``, a layer's output.
        backward: of ``g W``, the gradient to a layer's input.
    """

    forward: float
    backward: float

    @property
    def native(self) -> bool:
        """Whether half precision is at least as fast as float32 both ways."""
        return min(self.forward, self.backward) >= 1

    @property
    def slowdown(self) -> float:
        """Time of a forward and a backward product, float32 = 1."""
        return (1 / self.forward + 1 / self.backward) / 2


@dataclass(frozen=True)
class DtypeChoice:
    """A base's dtype, and why.

    Attributes:
        name: one of `PLAIN` or `QUANTISED`.
        reason: in words.
        slowdown: time of a training step, float32 on the same device = 1, as far as products decide it.
        own: whether it is the checkpoint's own.
    """

    name: str
    reason: str
    slowdown: float = 1.0
    own: bool = True

    def __str__(self) -> str:
        return f"dtype: {self.name} ({self.reason})."


def choose_dtype(
    config: Any, asked: torch.dtype | str | None, device: str | None, parameters: Callable[[], int]
) -> DtypeChoice:
    """The dtype to load a base in.

    Args:
        config: the base's config.
        asked: what the user named, ``"auto"`` for the checkpoint's own; None follows the rule.
        device: where the base will be; None means PyTorch's default device.
        parameters: counts the base's parameters, where that is asked.

    Raises:
        OptionError: no such dtype or device, or one that cannot be computed in here.
        OutOfMemoryError: the weights do not fit into the free memory of a CPU.
    """
    where = _device(device)
    own = _name(getattr(config, "dtype", None) or torch.float32)
    name = own if asked in (None, CHECKPOINT) else _name(asked)
    check_name(name)
    _check_computes(name, where)
    if name in QUANTISED:
        return DtypeChoice(name, "as asked", own=False)
    if where.type != "cpu":
        return DtypeChoice(name, "as asked" if asked else f"the checkpoint's own, on {where.type}", own=name == own)
    speed = half_speed(base_width(config), name) if getattr(torch, name) in HALF else None
    choice = _on_cpu(name, own, bool(asked), speed, parameters)
    _check_memory(choice.name, parameters)
    return choice


def _on_cpu(name: str, own: str, asked: bool, speed: Speed | None, parameters: Callable[[], int]) -> DtypeChoice:
    if speed is None:
        return DtypeChoice(name, "as asked" if asked else "the checkpoint's own", own=name == own)
    if asked:
        slow = (
            "" if speed.native else f"; this processor trains {speed.slowdown:,.0f} times as long in it as in float32"
        )
        return DtypeChoice(name, f"as asked{slow}", speed.slowdown, name == own)
    if speed.native:
        gain = f"this processor multiplies it {min(speed.forward, speed.backward):.1f} times as fast as float32"
        return DtypeChoice(name, f"the checkpoint's own; {gain}", speed.slowdown)
    needed, free = 4 * parameters(), free_memory()
    if needed <= ENOUGH * free:
        return DtypeChoice(
            "float32",
            f"this processor only imitates the checkpoint's {name}: a step would take "
            f"{speed.slowdown:,.0f} times as long",
            own=False,
        )
    return DtypeChoice(
        name,
        f"the checkpoint's own: float32 takes {_gb(needed)} and {_gb(free)} are free. This processor only "
        f"imitates {name}: a step takes about {speed.slowdown:,.0f} times as long",
        speed.slowdown,
    )


def warn_if_slow(model: nn.Module) -> None:
    """Warn about a user's own model whose half precision this processor imitates; it is never converted."""
    first = next(model.parameters(), None)
    if first is None or first.device.type != "cpu" or first.dtype not in HALF:
        return
    name = _name(first.dtype)
    speed = half_speed(base_width(getattr(model, "config", None)), name)
    if not speed.native:
        warnings.warn(
            f"The given model is in {name}, which this processor only imitates: training takes about {speed.slowdown:,.0f} times "
            "as long as in float32. Convert it with model.float() first.",
            stacklevel=3,
        )


def half_speed(width: int, name: str) -> Speed:
    """How fast this processor multiplies half precision at a base's width, measured once for each machine and torch version."""
    file = cache_folder() / "half-precision.json"
    processor = "|".join(
        (
            provenance()["machine"]["cpu"],
            torch.backends.cpu.get_cpu_capability(),
            os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
            torch.__version__,
            f"{torch.get_num_threads()} threads",
        )
    )
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        known = found if isinstance(found, dict) else {}
    key = f"{processor}|{name}|{width}"
    with contextlib.suppress(TypeError, ValueError):
        forward, backward = known.get(key, ())
        if 0 < float(forward) < math.inf and 0 < float(backward) < math.inf:
            return Speed(float(forward), float(backward))
    speed = measure_half_speed(width, getattr(torch, name))
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({**known, key: [round(speed.forward, 4), round(speed.backward, 4)]}, indent=1))
    return speed


def measure_half_speed(width: int, dtype: torch.dtype) -> Speed:
    """Time a layer's two products in float32 and in half precision, the best of a few; a fraction of a second."""
    tokens = max(1, min(256, round(PRODUCT / width**2)))
    x, weight = torch.randn(tokens, width), torch.randn(width, width)
    half = x.to(dtype), weight.to(dtype)
    with torch.inference_mode():
        forward = _ratio(F.linear, (x, weight), half)
        backward = _ratio(torch.mm, (x, weight), half)
    return Speed(forward, backward)


def _ratio(
    product: Callable[[Tensor, Tensor], Tensor], full: tuple[Tensor, Tensor], half: tuple[Tensor, Tensor]
) -> float:
    """Best time in float32 over best time in half precision."""
    _seconds(product, full)
    first = _seconds(product, half)  # which also prepares kernels, so that it counts only where it is slow beyond doubt
    best_full, best_half, begun = math.inf, first if first > CRAWLS else math.inf, time.perf_counter()
    for number in range(MOST_ROUNDS):
        best_full = min(best_full, _seconds(product, full))
        if first <= CRAWLS:
            best_half = min(best_half, _seconds(product, half))
        if number >= 2 and time.perf_counter() - begun > ROUNDS_SECONDS:
            break
    return best_full / best_half


def _seconds(product: Callable[[Tensor, Tensor], Tensor], pair: tuple[Tensor, Tensor]) -> float:
    begun = time.perf_counter()
    product(*pair)
    return time.perf_counter() - begun


def base_width(config: Any) -> int:
    """Width of a base's hidden states, from its config."""
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    found = next((getattr(config, name, None) for name in ("hidden_size", "d_model", "n_embd")), None)
    return found if isinstance(found, int) and 0 < found <= 65536 else WIDTH


def free_memory() -> int:
    """Bytes that this process may still take: free memory and swap, less what a container does not allow."""
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        free = min(free, int(limit) - int(used))  # "max" raises: no limit
    return free


def check_name(name: str) -> None:
    """Raise `OptionError` with the nearest names unless a base can be loaded in that dtype."""
    if name not in (*PLAIN, *QUANTISED):
        raise OptionError(unknown_name("dtype", name, [*PLAIN, *QUANTISED]))


def _device(name: str | None) -> torch.device:
    """The device of that name, PyTorch's default without one.

    Raises:
        OptionError: it is not there.
    """
    try:
        device = torch.device(name or torch.get_default_device())
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise OptionError(
            f"device {name!r} cannot be used here ({first_line(error)[:120]}). Use cpu"
            f"{', or cuda' if torch.cuda.is_available() else ''}."
        ) from error
    return device


def _check_computes(name: str, device: torch.device) -> None:
    """Raise `OptionError` unless a device computes in that dtype."""
    if name in QUANTISED and importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError(f"dtype={name!r} needs bitsandbytes. Install it with: pip install 'radargate[quant]'.")
    if name in PLAIN and name != "float32":
        try:
            one = torch.ones(1, 1, device=device, dtype=getattr(torch, name))
            (one @ one).item()
        except (TypeError, RuntimeError) as error:
            raise OptionError(
                f"{device.type} cannot compute in {name} here ({first_line(error)[:120]}). Use float32."
            ) from error


def _check_memory(name: str, parameters: Callable[[], int]) -> None:
    needed, free = getattr(torch, name).itemsize * parameters(), free_memory()
    if needed > free:
        smaller = "4bit" if name != "float32" else f"bfloat16 ({_gb(needed // 2)}), or 4bit"
        raise OutOfMemoryError(
            f"the base's weights take {_gb(needed)} in {name}, and {_gb(free)} of memory are free. Load it in {smaller}, or take a "
            "smaller base."
        )


def _name(dtype: torch.dtype | str | None) -> str:
    return str(dtype).removeprefix("torch.")


def _gb(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
