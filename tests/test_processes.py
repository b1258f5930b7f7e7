"""Several processes train one gate as one process does: DDP, and FSDP2 with base and experts shared out."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from conftest import HANG
from radargate.errors import OptionError
from radargate.training import processes

OPTIONS = ["--steps", "4", "--batch-size", "4", "--save-every", "2", "--device", "cpu", "--max-length", "64"]


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


def command(zoo, tasks, out, launcher: tuple[str, ...], *more: str, family: str = "llama") -> list[str]:
    adapters = [f"{name}={path}" for name, path in zoo[family]["adapters"].items()]
    through = ["-m", *launcher, "-m"] if launcher else ["-m"]
    return [
        sys.executable,
        *through,
        "radargate.cli",
        "train",
        str(zoo[family]["base"]),
        *adapters,
        "--data",
        str(tasks),
        "--out",
        str(out),
        *OPTIONS,
        *more,
    ]


def train(zoo, tasks, out, launcher: tuple[str, ...], *more: str, family: str = "llama") -> subprocess.CompletedProcess:
    words = command(zoo, tasks, out, launcher, *more, family=family)
    return subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=HANG)


def outcome(out) -> tuple[list[float], dict[str, torch.Tensor]]:
    record = json.loads((out / "record.json").read_text())
    return [loss for _, loss in record["metrics"]["curve"]], load_file(out / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def alone(zoo, tasks, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "bundle"
    done = train(zoo, tasks, out, ())
    assert done.returncode == 0, done.stderr
    return outcome(out)


@pytest.mark.parametrize(
    "launcher,more", [(TORCHRUN, []), (TORCHRUN, ["--shard"]), (ACCELERATE, [])], ids=["ddp", "fsdp2", "accelerate"]
)
def test_two_processes_train_as_one_does(zoo, tasks, tmp_path, alone, launcher, more):
    out = tmp_path / "bundle"
    done = train(zoo, tasks, out, launcher, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("saved to") == 1, "one process speaks"
    losses, tensors = outcome(out)
    assert losses == pytest.approx(alone[0], abs=1e-5)
    same(tensors, alone[1])


def same(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "first,then",
    [((TORCHRUN, "--shard"), ((),)), (((),), (ACCELERATE,))],
    ids=["fsdp2-then-one", "one-then-accelerate"],
)
def test_a_checkpoint_of_any_number_of_processes_serves_any_other(zoo, tasks, tmp_path, first, then):
    steps = ("--steps", "12")
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    assert train(zoo, tasks, whole, (), *steps).returncode == 0
    launcher, *more = first
    words = command(zoo, tasks, out, launcher, *more, *steps)
    with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as running:
        while not list(out.glob("checkpoints/checkpoint-*")) and running.poll() is None:
            time.sleep(0.005)
        agent = psutil.Process(running.pid)
        for process in [*agent.children(recursive=True), agent]:  # workers have sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself just now
                process.kill()
    launcher, *more = then
    done = train(zoo, tasks, out, launcher, *more, *steps, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from checkpoint-" in done.stderr
    (losses, tensors), expected = outcome(out), outcome(whole)
    assert losses == pytest.approx(expected[0], abs=1e-5)
    same(tensors, expected[1])


def test_rows_must_be_shared_evenly(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(OptionError, match="batch_size is 8 rows a step, which 3 processes cannot share evenly"):
        processes.share_of(8)
    assert processes.share_of(9) == 3
