"""Threads, processes and readers at once: each gets its own answer, a second writer is refused, nobody reads half a file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import radargate
from conftest import HANG
from radargate.cli import main
from radargate.errors import StorageError
from radargate.io.disk import HELD, alone


def test_threads_that_call_one_model_with_different_masks_get_their_own_answers(zoo, load_tiny):
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], top_k=None).eval()
    masks = [
        {},
        {"math": 0.0},
        {"law": 0.0},
        {"code": 0.25},
        {"math": 2.0, "law": 0.5},
        {"math": 0.0, "law": 0.0, "code": 0.0},
    ]
    ids = torch.randint(2, 250, (1, 24), generator=torch.Generator().manual_seed(0))

    def answer(mask, by_keyword):
        with torch.no_grad():
            if by_keyword:
                return model(input_ids=ids, experts=mask or None).logits
            with radargate.using(model, mask):
                return model(input_ids=ids).logits

    expected = [answer(mask, False) for mask in masks]
    assert all(not torch.equal(a, b) for i, a in enumerate(expected) for b in expected[:i]), (
        "masks that tell nothing apart"
    )
    start = threading.Barrier(len(masks))

    def many(index):
        start.wait()
        return [torch.equal(answer(masks[index], turn % 2), expected[index]) for turn in range(20)]

    with ThreadPoolExecutor(len(masks)) as pool:
        assert all(all(right) for right in pool.map(many, range(len(masks))))


HOLD = """
import sys, time
from radargate.io.disk import alone
with alone(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes into a folder."""
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out), str(HANG)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield out, process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_whatever_it_wants_to_write_there(holder, zoo, tasks, capsys):
    out, process = holder
    tiny = zoo["llama"]
    adapters = [f"{name}={path}" for name, path in tiny["adapters"].items()]
    common = ["--data", str(tasks), "--out", str(out), "--device", "cpu"]
    for words in (
        ["train", str(tiny["base"]), *adapters, *common, "--resume"],
        ["experts", str(tiny["base"]), *common, "--resume"],
        ["compare", str(tiny["base"]), *adapters, *common, "--resume"],
        ["experiment", "modules", "--smoke", "--base", str(tiny["base"]), *common, "--resume"],
    ):
        assert main(words) == 1
        err = capsys.readouterr().err
        assert f"{out} is being written by another run (process {process.pid})" in err and "choose another --out" in err
    assert os.listdir(out) == [HELD]


def test_a_killed_process_holds_nothing_and_its_half_written_files_go(holder):
    out, process = holder
    (out / ".run.json.123.tmp").write_text("{")
    process.kill()
    process.wait()
    (out / HELD).write_text("99999999")  # a longer number than ours
    with alone(out):
        assert os.listdir(out) == [HELD] and (out / HELD).read_text() == str(os.getpid())
    assert os.listdir(out) == []


def test_a_folder_is_held_by_one_thread_at_a_time_and_left_as_it_was(tmp_path):
    out, counts = tmp_path / "out", {"in": 0, "most": 0, "refused": 0, "held": 0}
    lock = threading.Lock()

    def work(_):
        for _ in range(30):
            try:
                with alone(out):
                    with lock:
                        counts["in"] += 1
                        counts["most"] = max(counts["most"], counts["in"])
                        counts["held"] += 1
                    time.sleep(0.001)
                    with lock:
                        counts["in"] -= 1
            except StorageError:
                with lock:
                    counts["refused"] += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert counts["most"] == 1 and counts["held"] > 0 and counts["held"] + counts["refused"] == 120
    assert not out.exists() or not os.listdir(out), "nothing is left behind"


def test_a_folder_that_goes_while_it_is_being_made_is_held_all_the_same(tmp_path, monkeypatch):
    out, mkdir, calls = tmp_path / "out", os.mkdir, []

    def gone_since(path, mode=0o777):
        calls.append(path)
        if len(calls) == 1:  # it was there, and its holder removed it before anybody could look
            raise FileExistsError(path)
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", gone_since)
    with alone(out):
        assert os.listdir(out) == [HELD]
    assert len(calls) == 2 and not out.exists()
