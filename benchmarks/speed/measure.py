"""Time and memory of pieces of work, side by side: every ratio comes from one run that takes all of them by turns."""

from __future__ import annotations

import contextlib
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from radargate.training.live_bytes import LiveBytes

Run = Callable[[], Any]


def by_turns(runs: Mapping[str, Run], rounds: int, seconds: float = 0.0, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each run, taken by turns: at least ``rounds`` rounds, more until ``seconds`` are over.

    Each round has an order of its own, so that none is always the one after the slowest.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(warmup):
            runs[name]()
    synchronize()
    gc.collect()
    end, done = time.perf_counter() + seconds, 0
    while done < rounds or (time.perf_counter() < end and done < 50 * rounds):
        for name in random.Random(done).sample(names, len(names)):
            begun = time.perf_counter()
            runs[name]()
            synchronize()
            times[name].append(time.perf_counter() - begun)
        done += 1
    return times


def ratio(times: Mapping[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Median of the ratios of each round, with quartiles."""
    ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"value": middle, "low": low, "high": high}


def median(times: list[float]) -> float:
    """The middle one, in seconds."""
    return statistics.median(times)


def synchronize() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def half_of_free(device: str) -> int:
    """Half of the device's free memory, in bytes."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0] // 2
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 512 for line in lines if line.startswith("MemAvailable"))


def peak_bytes(run: Run) -> int:
    """Bytes that a run needs at its peak beyond what was there: tensors on the CPU, everything on a GPU."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        run()
    return live.peak


def saved_bytes(forward: Run, known: set[int]) -> int:
    """Bytes that a forward pass keeps for its backward pass, beyond the storages in ``known`` (see `storages`)."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = forward()
    del result
    return sum(kept.values())


def storages(*tensors: Tensor) -> set[int]:
    """What `saved_bytes` leaves out: inputs and parameters."""
    return {t.untyped_storage()._cdata for t in tensors}


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def launches(run: Run) -> int:
    """Kernels that a run launches on a GPU; on the CPU, operations that PyTorch dispatches."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            synchronize()
        return sum(1 for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    with _Count() as count:
        run()
    return count.operations


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Use so many threads inside the block; None leaves them as they are."""
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
