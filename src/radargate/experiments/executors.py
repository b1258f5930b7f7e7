"""Ways to run an experiment's cells: in this process, in several on this machine, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from radargate.errors import OptionError, RadarGateError
from radargate.experiments.planning import Place
from radargate.experiments.workshop import Workshop

Results = Iterator[tuple[Place, list[dict[str, Any]]]]
Say = Callable[[str], None]
MOST_TRIES = 3  # of a cell whose worker was lost


def here(shop: Workshop, places: Sequence[Place]) -> Results:
    """One after the other in this process."""
    for place in places:
        yield place, shop.run(place)


def in_slots(shop: Workshop, places: Sequence[Place], slots: int, say: Say) -> Results:
    """In so many processes of this machine, which share its cores; a lost process costs the cells under way."""
    waiting, tries = deque(places), dict.fromkeys((place.id for place in places), 0)
    threads = max(1, (os.cpu_count() or 1) // slots)
    while waiting:
        with _pool(shop.close(), slots, threads) as pool:
            running: dict[Future[Any], Place] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < slots:  # no more: what waits in a pool is lost with it
                        place = waiting.popleft()
                        running[pool.submit(_run_in_slot, place)] = place
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        records = future.result()
                        yield running.pop(future), records
            except BrokenProcessPool:
                for future, place in running.items():
                    if future.done() and future.exception() is None:
                        yield place, future.result()
                    else:
                        _again(place, tries, waiting, say)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def on_ray(shop: Workshop, places: Sequence[Place], address: str, workers: int | None, say: Say) -> Results:
    """On a Ray cluster; ``address`` as ``ray.init`` takes it, or ``"local"`` for one on this machine.

    Adapters are read from the experiment's folder, which every machine must see under the same path. A cell whose worker is
    lost goes to a new one.

    Raises:
        OptionError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise OptionError("--ray needs Ray: pip install 'radargate[ray]'.") from error
    started = not ray.is_initialized()
    if started:
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False,
                 configure_logging=False)  # fmt: skip
    gpus = 1 if (shop.device or "").startswith("cuda") else 0
    remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_RayWorker)
    count = workers or max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))
    waiting, tries = deque(places), dict.fromkeys((place.id for place in places), 0)
    running: dict[Any, tuple[Any, Place]] = {}
    try:
        held = ray.put(shop.close())
        idle = [remote.remote(held) for _ in range(min(count, len(places)))]
        while waiting or running:
            while waiting and idle:
                worker, place = idle.pop(), waiting.popleft()
                running[worker.run.remote(place)] = (worker, place)
            done, _ = ray.wait(list(running))
            for reference in done:
                worker, place = running.pop(reference)
                try:
                    records = ray.get(reference)
                except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError):
                    _again(place, tries, waiting, say)
                    idle.append(remote.remote(held))
                    continue
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, RadarGateError) else error from None
                idle.append(worker)
                yield place, records
    finally:
        if started:
            ray.shutdown()


def _again(place: Place, tries: dict[str, int], waiting: deque[Place], say: Say) -> None:
    tries[place.id] += 1
    if tries[place.id] >= MOST_TRIES:
        raise RadarGateError(
            f"{place.cell.label}: its worker was lost {MOST_TRIES} times, most likely for want of memory. Use fewer "
            "--slots; finished cells stay, and --resume goes on."
        )
    say(f"{place.cell.label}: its worker was lost, so it goes to another")
    waiting.appendleft(place)


def _pool(shop: Workshop, slots: int, threads: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")  # a forked process would inherit locks of PyTorch's threads
    return ProcessPoolExecutor(slots, mp_context=spawn, initializer=_open_slot, initargs=(shop, threads))


_shop: Workshop | None = None  # of this process, where it is a slot


def _open_slot(shop: Workshop, threads: int) -> None:
    global _shop
    import torch

    torch.set_num_threads(threads)
    _shop = shop


def _run_in_slot(place: Place) -> list[dict[str, Any]]:
    assert _shop is not None
    return _shop.run(place)


class _RayWorker:
    """A workshop on a machine of the cluster."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop

    def run(self, place: Place) -> list[dict[str, Any]]:
        """All records of one cell."""
        return self.shop.run(place)
