"""Runs that are killed lose nothing that was finished; checkpoints that a power cut tore are passed over by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fresh
import kills
import sweeps
from radargate.io.records import read_records
from radargate.training import checkpoints
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining


def test_kills_lose_nothing_and_resumed_runs_end_bit_equal(tmp_path):
    wanted = 10 if sweeps.everything else 4
    result = fresh.run(kills.__file__, "--kills", wanted, "--seed", "3", "--record", tmp_path / "r.jsonl")
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    record = read_records(tmp_path / "r.jsonl")[0]
    assert record["metrics"]["kills"] == wanted and record["problems"] == []


@pytest.fixture(scope="module")
def halfway(zoo, tasks, tmp_path_factory):
    """A run that was stopped after its second checkpoint, and what an undisturbed one ends with."""
    root = tmp_path_factory.mktemp("halfway")
    train(zoo, tasks, root / "whole")

    class Stop(Exception):
        pass

    def stop(trainer):
        folder = save(trainer)
        if trainer.state.global_step == 4:
            raise Stop
        return folder

    save, checkpoints.save = checkpoints.save, stop
    try:
        with pytest.raises(Stop):
            train(zoo, tasks, root / "stopped")
    finally:
        checkpoints.save = save
    return root


def train(zoo, tasks, out, **more):
    options = GateTraining(steps=6, batch_size=2, save_every=2, max_length=64)
    tiny = zoo["llama"]
    return train_gates(str(tiny["base"]), tiny["adapters"], str(tasks), out, options, device="cpu", **more)


def cut(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


TORN = {
    "trained tensors cut off": (
        lambda c: cut(c / "trained.safetensors", 0.5),
        "trained.safetensors was cut off or changed",
    ),
    "optimizer empty": (lambda c: cut(c / "optimizer.safetensors", 0), "optimizer.safetensors was cut off or changed"),
    "optimizer missing": (lambda c: (c / "optimizer.json").unlink(), "optimizer.json is missing"),
    "no word that it is whole": (lambda c: (c / "complete.json").unlink(), "complete.json is missing"),
    "that word cut off": (lambda c: cut(c / "complete.json", 0.7), "complete.json was cut off or changed"),
    "that word empty": (lambda c: (c / "complete.json").write_text('{"sha256": {}}'), "complete.json does not list"),
}


@pytest.mark.parametrize("case", TORN)
def test_a_torn_checkpoint_is_named_and_the_one_before_it_taken(case, halfway, zoo, tasks, tmp_path, caplog):
    out = shutil.copytree(halfway / "stopped", tmp_path / "out")
    tear, reason = TORN[case]
    tear(out / "checkpoints" / "checkpoint-4")
    caplog.set_level("INFO", logger="radargate")
    train(zoo, tasks, out, resume=True)
    lines = caplog.messages
    assert any("checkpoint-4 is damaged" in line and reason in line for line in lines), lines
    assert "resuming from checkpoint-2." in lines
    whole, torn = (load_file(f / "adapter_model.safetensors") for f in (halfway / "whole", out))
    assert all(torch.equal(whole[name], torn[name]) for name in whole)


def test_where_every_checkpoint_is_torn_training_says_so_and_begins_anew(halfway, zoo, tasks, tmp_path, caplog):
    out = shutil.copytree(halfway / "stopped", tmp_path / "out")
    for folder in (out / "checkpoints").glob("checkpoint-*"):
        cut(folder / "trained.safetensors", 0.9)
    caplog.set_level("INFO", logger="radargate")
    train(zoo, tasks, out, resume=True)
    lines = caplog.messages
    assert any("is whole: training begins again" in line for line in lines)
    whole, torn = (load_file(f / "adapter_model.safetensors") for f in (halfway / "whole", out))
    assert all(torch.equal(whole[name], torn[name]) for name in whole)


def test_a_damaged_note_of_the_run_is_refused_by_name(halfway, zoo, tasks, tmp_path):
    out = shutil.copytree(halfway / "stopped", tmp_path / "out")
    cut(out / "run.json", 0.5)
    with pytest.raises(ValueError, match=r"run\.json is damaged .*Delete it"):
        train(zoo, tasks, out, resume=True)
