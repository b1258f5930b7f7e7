"""Ways to run an experiment's cells: in this process, in several on this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from radargate.errors import OptionError, RadarGateError
from radargate.paper.planning import Place
from radargate.paper.workshop import Workshop

logger = logging.getLogger(__name__)

Results = Iterator[tuple[Place, list[dict[str, Any]]]]
MOST_TRIES = 3  # of a cell whose worker was lost


def here(shop: Workshop, places: Sequence[Place]) -> Results:
    """One after the other in this process."""
    for place in places:
        yield place, shop.run(place)


def in_slots(shop: Workshop, places: Sequence[Place], slots: int) -> Results:
    """In so many processes of this machine, which share its cores; a lost process costs the cells under way.

    A cell that fails on its own ends the run, once the others under way have brought their results.
    """
    waiting, tries = deque(places), dict.fromkeys((place.id for place in places), 0)
    threads = max(1, (os.cpu_count() or 1) // slots)
    failed: BaseException | None = None
    while waiting and failed is None:
        with _pool(shop.close(), slots, threads) as pool:
            running: dict[Future[Any], Place] = {}
            try:
                while running or (waiting and failed is None):
                    # no more than there are slots: what waits in a pool is lost with it
                    while waiting and failed is None and len(running) < slots:
                        place = waiting[0]
                        running[pool.submit(_run_in_slot, place)] = place
                        waiting.popleft()  # now: a pool that has broken since takes nothing
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        error = future.exception()
                        if isinstance(error, BrokenProcessPool):
                            raise error
                        place = running.pop(future)
                        if error is None:
                            yield place, future.result()
                        else:
                            failed = _first(failed, error, place, len(running))
            except BrokenProcessPool:
                for future, place in running.items():
                    if future.done() and future.exception() is None:
                        yield place, future.result()
                    else:
                        _again(place, tries, waiting)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if failed is not None:
        raise failed


def on_ray(shop: Workshop, places: Sequence[Place], address: str, workers: int | None) -> Results:
    """On a Ray cluster; ``address`` as ``ray.init`` takes it, or ``"local"`` for one on this machine.

    Adapters are read from the experiment's folder, which every machine must see under the same path. A cell whose worker is
    lost goes to a new one.

    Raises:
        OptionError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise OptionError("`ray` needs the package Ray: pip install 'radargate[ray]'.") from error
    started = not ray.is_initialized()
    if started:
        ray.init(
            address=None if address == "local" else address,
            log_to_driver=False,
            include_dashboard=False,
            configure_logging=False,
        )
    gpus = 1 if (shop.device or "").startswith("cuda") else 0
    remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_RayWorker)
    count = workers or max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))
    waiting, tries = deque(places), dict.fromkeys((place.id for place in places), 0)
    running: dict[Any, tuple[Any, Place]] = {}
    failed: BaseException | None = None
    lost = (
        ray.exceptions.RayActorError,
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.NodeDiedError,
    )
    try:
        held = ray.put(shop.close())
        crew = _RayCrew(lambda: remote.remote(held), MOST_TRIES * count + len(places))
        for _ in range(min(count, len(places))):
            crew.start()
        while running or (waiting and failed is None):
            while waiting and crew.idle and failed is None:
                worker, place = crew.idle.pop(), waiting.popleft()
                running[worker.run.remote(place)] = (worker, place)
            for reference in ray.wait([*running, *crew.starting])[0]:
                if reference in crew.starting:
                    crew.stands(reference, lost)
                    continue
                worker, place = running.pop(reference)
                try:
                    records = ray.get(reference)
                except lost:
                    _again(place, tries, waiting)
                    crew.start()
                except ray.exceptions.RayTaskError as error:
                    own = error.cause if isinstance(error.cause, RadarGateError) else error
                    failed = _first(failed, own, place, len(running))
                else:
                    crew.idle.append(worker)
                    yield place, records
        if failed is not None:
            raise failed from None
    finally:
        if started:
            ray.shutdown()


def _first(failed: BaseException | None, error: BaseException, place: Place, running: int) -> BaseException:
    """The first error of a run; what other workers are at is waited for, so that no finished cell is lost."""
    if running:
        logger.info(f"{place.cell.label} failed; {running} more under way {'is' if running == 1 else 'are'} waited for")
    return failed or error


def _again(place: Place, tries: dict[str, int], waiting: deque[Place]) -> None:
    tries[place.id] += 1
    if tries[place.id] >= MOST_TRIES:
        raise RadarGateError(
            f"{place.cell.label}: its worker was lost {MOST_TRIES} times, most likely for want of memory. Use fewer "
            "`slots`; finished cells stay, and `resume` goes on."
        )
    logger.info(f"{place.cell.label}: its worker was lost, so it goes to another")
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
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool whose process was killed tells nobody: its slots would wait for work for ever, each with a base in memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_slot(place: Place) -> list[dict[str, Any]]:
    assert _shop is not None
    return _shop.run(place)


class _RayCrew:
    """Workers of a cluster. A cell goes to one that stands: one for which the cluster has no room keeps none waiting.

    Args:
        hire: makes a worker.
        most: workers that may be hired before the cluster is given up.
    """

    def __init__(self, hire: Callable[[], Any], most: int) -> None:
        self.hire, self.most, self.hired = hire, most, 0
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []

    def start(self) -> None:
        """Hire one more."""
        self.hired += 1
        worker = self.hire()
        self.starting[worker.stands.remote()] = worker

    def stands(self, reference: Any, lost: tuple[type[BaseException], ...]) -> None:
        """A worker has started, or was lost on the way."""
        import ray

        worker = self.starting.pop(reference)
        try:
            ray.get(reference)
        except lost as error:
            if self.hired >= self.most:
                raise RadarGateError(f"workers of the Ray cluster do not stay up: {error}") from error
            self.start()
        else:
            self.idle.append(worker)


class _RayWorker:
    """A workshop on a machine of the cluster."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop

    def stands(self) -> None:
        """Answers once the cluster has made room for it."""

    def run(self, place: Place) -> list[dict[str, Any]]:
        """All records of one cell."""
        return self.shop.run(place)
