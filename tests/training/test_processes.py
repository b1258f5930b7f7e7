"""Several processes train one gate as one process does: DDP, and FSDP2 with base and experts shared out."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import fresh
from conftest import HANG
from radargate.errors import OptionError
from radargate.training import processes

OPTIONS = ["--steps", "4", "--batch-size", "4", "--save-every", "2", "--device", "cpu", "--max-length", "64"]
LONGER = ("--steps", "12")

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = (
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_machines",
    "1",
    "--num_processes",
    "2",
    "--dynamo_backend",
    "no",
    "--mixed_precision",
    "no",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(zoo, tasks, out, *more: str) -> list[str]:
    """The words after ``python``."""
    tiny = zoo["llama"]
    adapters = [f"{name}={path}" for name, path in tiny["adapters"].items()]
    return [
        "-m",
        "radargate.cli",
        "train",
        str(tiny["base"]),
        *adapters,
        "--data",
        str(tasks),
        "--out",
        str(out),
        *OPTIONS,
        *more,
    ]


def train(words: list[str], launcher: tuple[str, ...] = ()) -> tuple[int, str]:
    """Train in one process, or in two that a launcher starts: exit code and what was said."""
    if launcher:
        words = [sys.executable, "-m", *launcher, *words]
        done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=HANG)
    else:
        done = fresh.run(*words, env=ENVIRONMENT)
    return done.returncode, done.stderr


def two(words: list[str]) -> list[fresh.Process]:
    """Two processes as a launcher would start them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        fresh.Process(*words, env={**ENVIRONMENT, **group, "RANK": rank, "LOCAL_RANK": rank}, stderr=fresh.PIPE)
        for rank in "01"
    ]


def outcome(out) -> tuple[list[float], dict[str, torch.Tensor]]:
    record = json.loads((out / "record.json").read_text())
    return [loss for _, loss in record["metrics"]["curve"]], load_file(out / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def alone(zoo, tasks, tmp_path_factory):
    """What one process ends with after 4 steps."""
    out = tmp_path_factory.mktemp("alone") / "bundle"
    code, said = train(command(zoo, tasks, out))
    assert code == 0, said
    return outcome(out)


@pytest.fixture(scope="module")
def whole(zoo, tasks, tmp_path_factory):
    """What one undisturbed process ends with after 12 steps."""
    out = tmp_path_factory.mktemp("whole") / "bundle"
    code, said = train(command(zoo, tasks, out, *LONGER))
    assert code == 0, said
    return outcome(out)


def ended_alike(out, said: str, expected) -> None:
    assert said.count("saved to") == 1, "one process speaks"
    losses, tensors = outcome(out)
    assert losses == pytest.approx(expected[0], abs=1e-5)
    same(tensors, expected[1])


def test_two_processes_of_torchrun_train_as_one_does(zoo, tasks, tmp_path, alone):
    code, said = train(command(zoo, tasks, tmp_path / "bundle"), TORCHRUN)
    assert code == 0, said[-3000:]
    ended_alike(tmp_path / "bundle", said, alone)


def test_two_processes_with_base_and_experts_shared_out_train_as_one_does(zoo, tasks, tmp_path, alone):
    running = two(command(zoo, tasks, tmp_path / "bundle", "--shard"))
    said = "".join(process.communicate()[1] for process in running)
    assert [process.returncode for process in running] == [0, 0], said[-3000:]
    ended_alike(tmp_path / "bundle", said, alone)


def same(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("first,then", [("fsdp2", "one"), pytest.param("one", "accelerate", marks=pytest.mark.whole)])
def test_a_checkpoint_of_any_number_of_processes_serves_any_other(zoo, tasks, tmp_path, whole, first, then):
    out, words = tmp_path / "stopped", command(zoo, tasks, tmp_path / "stopped", *LONGER)
    if first == "one":
        running = [fresh.Process(*words, env=ENVIRONMENT, stderr=fresh.DEVNULL)]
    else:
        running = two([*words, "--shard"])
    while not list(out.glob("checkpoints/checkpoint-*")) and running[0].poll() is None:
        time.sleep(0.005)
    for process in running:
        process.kill()
        process.wait()
    code, said = train([*words, "--resume"], ACCELERATE if then == "accelerate" else ())
    assert code == 0, said[-3000:]
    assert "resuming from checkpoint-" in said
    ended_alike(out, said, whole)


def test_rows_must_be_shared_evenly(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(OptionError, match="batch_size is 8 rows a step, which 3 processes cannot share evenly"):
        processes.share_of(8)
    assert processes.share_of(9) == 3
