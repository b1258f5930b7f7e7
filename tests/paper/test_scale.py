"""Cells side by side, in processes of this machine and on a Ray cluster: the same records, and a lost worker loses nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest

import fresh
from conftest import logged
from radargate.errors import OptionError, RadarGateError
from radargate.io.records import read_records
from radargate.paper import executors
from radargate.paper.run_experiment import run_experiment
from test_experiment import cells, command, sources  # noqa: F401

# what takes time or memory, and so is another number every time
PASSING = ("train_seconds", "score_seconds", "peak_memory_mb", "search")


def run(zoo, sources, out, say=lambda line: None, **how):  # noqa: F811
    changes = {"bases": (str(zoo["llama"]["base"]),), "steps": 2, "limit": 3, "gates": ("stretch", "radar"), "seeds": 2}
    with logged(say):
        return run_experiment("ablation", "cpu", str(sources), out, smoke=True, changes=changes, device="cpu", **how)


def results(out):
    """Cell → what it found, without what is another number every time."""
    found = {}
    for case, record in cells(out).items():
        found[case] = {key: value for key, value in record["metrics"].items() if key not in PASSING}
    scores = [
        (r["system"], r["task"], r["metrics"]["nll"])
        for r in read_records(out / "records.jsonl")
        if r["suite"] == "eval"
    ]
    return found, sorted(scores, key=str)


@pytest.fixture(scope="module")
def plain(zoo, sources, tmp_path_factory, alone):  # noqa: F811
    """What cells side by side must equal: one process with the same experts."""
    out = tmp_path_factory.mktemp("plain") / "out"
    run(zoo, sources, out, experts=next((alone / "experts").iterdir()))
    return results(out)


@pytest.fixture(scope="module")
def alone(zoo, sources, tmp_path_factory):  # noqa: F811
    """The same experiment in one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    run(zoo, sources, out)
    return out


def test_slots_give_the_same_records_and_a_killed_one_loses_nothing(zoo, sources, tmp_path, alone, plain):  # noqa: F811
    killed, lines = [], []

    def say(line):
        lines.append(line)
        if line.startswith("[1]"):  # every slot, so that the next cell is surely handed to a lost one
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                killed.append(child.pid)

    out = tmp_path / "slots"
    run(zoo, sources, out, say, slots=2, experts=next((alone / "experts").iterdir()))
    assert killed and any("its worker was lost" in line for line in lines)
    assert results(out) == plain


def test_slots_end_with_the_process_that_runs_them(zoo, sources, tmp_path, alone):  # noqa: F811
    words = command(
        "ablation",
        zoo,
        sources,
        tmp_path / "killed",
        "--gates",
        "stretch",
        "--slots",
        "2",
        "--experts",
        str(next((alone / "experts").iterdir())),
    )
    running = fresh.Process("-m", "radargate.cli", *words, stderr=fresh.DEVNULL, stdout=fresh.DEVNULL)
    known = psutil.Process(running.pid)
    slots: list[psutil.Process] = []
    while len(slots) < 2 and running.poll() is None:
        slots = [child for child in known.children() if "spawn_main" in " ".join(child.cmdline())]
        time.sleep(0.05)
    running.kill()
    running.wait()
    assert len(slots) == 2
    gone = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}  # nobody may be there to reap them
    while any(slot.is_running() and slot.status() not in gone for slot in slots):
        time.sleep(0.05)


@pytest.mark.whole
def test_a_ray_cluster_gives_the_same_records_and_a_killed_worker_loses_nothing(zoo, sources, tmp_path, alone, plain):  # noqa: F811
    ray = pytest.importorskip("ray")
    killed, lines = [], []

    def say(line):
        lines.append(line)
        if line.startswith("[1]"):  # every worker, so that the next cell is surely handed to a lost one
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if "_RayWorker" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)

    out = tmp_path / "ray"
    experts = next((alone / "experts").iterdir())
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:  # more workers are asked for than there is room for: the others must not wait with cells in their hands
        run(zoo, sources, out, say, ray="local", slots=4, experts=experts)
    finally:
        ray.shutdown()
    assert killed and any("its worker was lost" in line for line in lines)
    assert results(out) == plain


def test_a_cell_that_kills_its_worker_every_time_ends_the_run_in_words():
    tries, waiting = executors.Counter(), executors.deque()
    cell = dataclasses.make_dataclass("Cell", ["label"])("radar")
    place = dataclasses.make_dataclass("Place", ["id", "cell"])("a", cell)
    for _ in range(executors.MOST_TRIES - 1):
        executors._again(place, tries, waiting)
    with pytest.raises(RadarGateError, match=r"radar: its worker was lost 3 times.*`resume` goes on"):
        executors._again(place, tries, waiting)


class Shop:
    """A workshop that has nothing to close."""

    def close(self):
        return self


@dataclasses.dataclass
class Cell:
    label: str


@dataclasses.dataclass
class Spot:
    id: str

    @property
    def cell(self):
        return Cell(self.id)


class ThreadPool(ThreadPoolExecutor):
    """Slots that are threads, and break when told to."""

    breaks_at = 0
    submitted = 0

    def submit(self, *args):
        ThreadPool.submitted += 1
        if ThreadPool.submitted == ThreadPool.breaks_at:
            raise BrokenProcessPool
        return super().submit(*args)


def in_threads(monkeypatch, work, breaks_at=0):
    """The cells a to e in two slots; ``work`` is what a slot does."""
    monkeypatch.setattr(executors, "_pool", lambda shop, threads: ThreadPool(1))
    monkeypatch.setattr(executors, "_run_in_slot", lambda place: [] if place is None else work(place))
    monkeypatch.setattr(ThreadPool, "breaks_at", breaks_at)
    monkeypatch.setattr(ThreadPool, "submitted", 0)
    return executors.in_slots(Shop(), [Spot(name) for name in "abcde"], 2)


@pytest.mark.parametrize("breaks_at", [1, 2, 3, 4, 5, 6, 7])
def test_a_pool_that_breaks_while_a_cell_is_handed_over_loses_none(monkeypatch, breaks_at):
    found = [place.id for place, _ in in_threads(monkeypatch, lambda place: [place.id], breaks_at)]
    assert sorted(found) == list("abcde")


def test_a_cell_that_fails_ends_the_run_after_those_under_way_are_in(monkeypatch):
    both, ran = threading.Barrier(2), []

    def work(place):
        ran.append(place.id)
        if place.id in "ab":
            both.wait()  # a and b run at once
        if place.id == "a":
            raise RadarGateError("no memory for a")
        time.sleep(0.05)
        return [place.id]

    found, results = [], in_threads(monkeypatch, work)
    with pytest.raises(RadarGateError, match="no memory for a"):
        for place, _ in results:
            found.append(place.id)
    assert found == ["b"] and sorted(ran) == ["a", "b"]


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(OptionError, match=r"radargate\[ray\]"):
        next(executors.on_ray(None, [], "local", None))
