"""Ways to run an experiment's cells: in this process, in several on this machine, or on a Ray cluster."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from radargate.errors import OptionError, RadarGateError
from radargate.io.progress import Progress
from radargate.paper.planning import Place
from radargate.paper.workshop import Workshop

logger = logging.getLogger(__name__)

Results = Iterator[tuple[Place, list[dict[str, Any]]]]
MOST_TRIES = 3  # of a cell whose worker was lost


# runs one cell at a time, somewhere else; None only asks whether the worker is there
Worker = Callable[[Place | None], "Future[list[dict[str, Any]]]"]


def here(shop: Workshop, places: Sequence[Place], work: Progress) -> Results:
    """One after the other in this process; each moves ``work`` along while it runs."""
    for place in places:
        with work.part(place.seconds):
            records = shop.run(place)
        yield place, records


def in_slots(shop: Workshop, places: Sequence[Place], slots: int) -> Results:
    """In several processes of this machine, which share its cores."""
    shop.close()
    threads, pools = max(1, (os.cpu_count() or 1) // slots), list[ProcessPoolExecutor]()

    def hire() -> Worker:
        pools.append(pool := _pool(shop, threads))
        return functools.partial(_submitted, pool)

    finished = False
    try:
        yield from _spread(hire, slots, places, (BrokenProcessPool,))
        finished = True
    finally:
        for pool in pools:
            pool.shutdown(wait=finished, cancel_futures=True)


def on_ray(shop: Workshop, places: Sequence[Place], address: str, workers: int | None) -> Results:
    """On a Ray cluster; ``address`` as ``ray.init`` takes it, or ``"local"`` for one on this machine.

    Adapters are read from the experiment's folder, which every machine must see under the same path.

    Raises:
        OptionError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise OptionError("`ray` needs the package Ray: pip install 'radargate[ray]'.") from error
    started = not ray.is_initialized()
    if started:
        where = None if address == "local" else address
        ray.init(address=where, log_to_driver=False, include_dashboard=False, configure_logging=False)
    gpus = 1 if (shop.device or "").startswith("cuda") else 0
    actor: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_RayWorker)
    count = workers or max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))
    faults = ray.exceptions
    lost = (faults.RayActorError, faults.WorkerCrashedError, faults.OutOfMemoryError, faults.NodeDiedError)
    try:
        held = ray.put(shop.close())
        yield from _spread(lambda: _calls(actor.remote(held)), count, places, lost)
    except faults.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, RadarGateError) else error) from None
    finally:
        if started:
            ray.shutdown()


def _spread(
    hire: Callable[[], Worker], count: int, places: Sequence[Place], lost: tuple[type[BaseException], ...]
) -> Results:
    """Hand cells to workers. A cell whose worker is lost goes to another one.

    A cell that fails on its own ends the run, once the others under way have brought their results.

    Args:
        hire: makes a worker.
        count: workers at a time.
        places: the cells.
        lost: errors that say that a worker is gone.
    """
    waiting, tries, hired = deque(places), Counter[str](), 0
    idle: list[Worker] = []
    busy: dict[Future[Any], tuple[Worker, Place | None]] = {}
    failed: BaseException | None = None

    def start() -> None:
        nonlocal hired
        hired += 1
        worker = hire()
        busy[worker(None)] = worker, None  # it gets a cell once it is there: a cluster may have no room for it

    def running() -> int:
        return sum(place is not None for _, place in busy.values())

    for _ in range(min(count, len(places))):
        start()
    while running() or (waiting and failed is None):
        while idle and waiting and failed is None:
            worker, next_place = idle.pop(), waiting.popleft()
            busy[worker(next_place)] = worker, next_place
        for future in wait(busy, return_when=FIRST_COMPLETED).done:
            worker, place = busy.pop(future)
            error = future.exception()
            if isinstance(error, lost):
                if place is not None:
                    _again(place, tries, waiting)
                elif hired >= MOST_TRIES * count + len(places):
                    raise RadarGateError(f"workers do not stay up: {error}") from error
                else:
                    logger.info("a worker was lost before it had a cell, so another takes its place")
                start()
                continue
            idle.append(worker)
            if error is not None:
                failed = failed or error
                logger.info(f"{place.cell.label if place else 'a worker'} failed; cells still under way: {running()}")
            elif place is not None:
                yield place, future.result()
    if failed is not None:
        raise failed


def _again(place: Place, tries: Counter[str], waiting: deque[Place]) -> None:
    tries[place.id] += 1
    if tries[place.id] >= MOST_TRIES:
        raise RadarGateError(
            f"{place.cell.label}: its worker was lost {MOST_TRIES} times, most likely for want of memory. Use fewer "
            "`slots`; finished cells stay, and `resume` goes on."
        )
    logger.info(f"{place.cell.label}: its worker was lost, so it goes to another")
    waiting.appendleft(place)


def _submitted(pool: ProcessPoolExecutor, place: Place | None) -> Future[Any]:
    try:
        return pool.submit(_run_in_slot, place)
    except BrokenProcessPool as error:  # it broke while it was idle
        future: Future[Any] = Future()
        future.set_exception(error)
        return future


def _pool(shop: Workshop, threads: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")  # a forked process would inherit locks of PyTorch's threads
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=_open_slot, initargs=(shop, threads))


_shop: Workshop | None = None  # of this process, where it is a slot


def _open_slot(shop: Workshop, threads: int) -> None:
    global _shop
    import torch

    torch.set_num_threads(threads)
    _shop = shop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent tells nobody: its slots would wait for work for ever, each with a base in memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_slot(place: Place | None) -> list[dict[str, Any]]:
    assert _shop is not None
    return [] if place is None else _shop.run(place)


class _RayWorker:
    """A workshop on a machine of the cluster."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop

    def run(self, place: Place | None) -> list[dict[str, Any]]:
        """All records of one cell."""
        return [] if place is None else self.shop.run(place)


def _calls(actor: Any) -> Worker:
    return lambda place: actor.run.remote(place).future()
