"""Several processes train one gate as one process does: DDP, and FSDP2 with base and experts shared out."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from radargate.errors import OptionError
from radargate.training import processes

OPTIONS = ["--steps", "4", "--batch-size", "4", "--save-every", "2", "--device", "cpu", "--max-length", "64"]


def train(zoo, tasks, out, count: int, *more: str, family: str = "llama") -> subprocess.CompletedProcess:
    adapters = [f"{name}={path}" for name, path in zoo[family]["adapters"].items()]
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"] if count > 1 else ["-m"]
    )
    command = [sys.executable, *launcher, "radargate.cli", "train", str(zoo[family]["base"]), *adapters, "--data", str(tasks),
               "--out", str(out), *OPTIONS, *more]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def outcome(out) -> tuple[list[float], dict[str, torch.Tensor]]:
    record = json.loads((out / "record.json").read_text())
    return [loss for _, loss in record["metrics"]["curve"]], load_file(out / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def alone(zoo, tasks, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "bundle"
    done = train(zoo, tasks, out, 1)
    assert done.returncode == 0, done.stderr
    return outcome(out)


@pytest.mark.parametrize("more", [[], ["--shard"]], ids=["ddp", "fsdp2"])
def test_two_processes_train_as_one_does(zoo, tasks, tmp_path, alone, more):
    out = tmp_path / "bundle"
    done = train(zoo, tasks, out, 2, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("saved to") == 1, "one process speaks"
    losses, tensors = outcome(out)
    assert losses == pytest.approx(alone[0], abs=1e-5)
    assert tensors.keys() == alone[1].keys()
    for name, tensor in alone[1].items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-3, atol=1e-5)


def test_rows_must_be_shared_evenly(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(OptionError, match="batch_size is 8 rows a step, which 3 processes cannot share evenly"):
        processes.share_of(8)
    assert processes.share_of(9) == 3
