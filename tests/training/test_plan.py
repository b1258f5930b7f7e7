"""``radargate plan``: memory from shapes alone is what training then takes, and an error for want of it says what to lower."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

import radargate
from radargate.cli import main
from radargate.composition.composing import radar_layers
from radargate.errors import OptionError, OutOfMemoryError
from radargate.io.disk import enough_memory
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining
from radargate.training.plan import plan_training
from radargate.training.schedule import set_dense
from speed import measure

NOTHING = {"dense_start": 0.0}


def options(**changes):
    return GateTraining(**{"gate": "radar", "batch_size": 3, "max_length": 48, "steps": 5, **changes})


def measured(model, batch, length, answer, dense):
    """Peak bytes of one real step beyond what was there, without compiled operations, which the plan does not know."""
    model.train()
    set_dense(model, dense)
    ids = torch.randint(2, 250, (batch, length))

    def step():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=answer).logits[:, -answer:-1]
        F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:answer].reshape(-1), reduction="sum"
        ).backward()

    return measure.peak_bytes(step)


@pytest.mark.parametrize(
    "gate,more", [("radar", {}), ("stretch", {}), ("radar", NOTHING), ("mole", {}), ("radar", {"architecture": "omoe"})]
)
def test_the_parts_are_exact_and_the_step_is_within_15_percent(zoo, load_tiny, gate, more, monkeypatch):
    monkeypatch.setenv("RADARGATE_FUSED", "0")
    adapters = zoo["llama"]["adapters"]
    chosen = options(gate=gate, **more)
    plan = plan_training(str(zoo["llama"]["base"]), adapters, chosen, answer_tokens=10)
    base = load_tiny()
    assert plan.base_bytes == sum(p.nbytes for p in base.parameters())
    model = radargate.compose(base, adapters, gate=gate, architecture=more.get("architecture", "mole"))
    layers = radar_layers(model)
    assert plan.expert_bytes == sum(p.nbytes for layer in layers for p in layer.bank("default").parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert plan.trained_parameters == sum(p.numel() for p in trained)
    assert plan.optimizer_bytes == 2 * sum(p.nbytes for p in trained)
    found = measured(model, 3, 48, 12, dense="dense_start" not in more)
    assert plan.step_bytes == pytest.approx(found, rel=0.15)
    assert plan.peak_bytes == sum(
        (plan.base_bytes, plan.expert_bytes, plan.gate_bytes, plan.optimizer_bytes, plan.step_bytes, plan.kept_bytes)
    )


def test_planning_reads_no_weights_and_leaves_nothing_behind(zoo, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    monkeypatch.setattr("radargate.experts.files.WeightsFile.tensor", None)
    before = F.scaled_dot_product_attention
    tiny = zoo["llama"]
    small, long, wide = (
        plan_training(str(tiny["base"]), tiny["adapters"], options(**more))
        for more in ({}, {"max_length": 96}, {"batch_size": 9})
    )
    assert small.step_bytes < long.step_bytes and 2.5 < wide.step_bytes / small.step_bytes < 3.5
    assert 1.8 < long.seconds / small.seconds < 2.6
    half = plan_training(str(tiny["base"]), tiny["adapters"], options(), dtype="bfloat16")
    assert half.base_bytes * 2 == small.base_bytes
    assert F.scaled_dot_product_attention is before


def test_the_command_prints_a_plan_of_every_family(zoo, capsys):
    for tiny in zoo.values():
        adapters = [f"{name}={path}" for name, path in tiny["adapters"].items()]
        assert (
            main(["plan", str(tiny["base"]), *adapters, "--batch-size", "2", "--max-length", "32", "--device", "cpu"])
            == 0
        )
        out = capsys.readouterr().out
        assert "a step of 2 rows of 32 tokens" in out and "parameters to train" in out and "--batch-size" in out
    words = ["plan", str(tiny["base"]), *adapters, "--device", "cpu", "--max-length", "32", "--json"]
    assert main([*words, "--runs", "1"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert main([*words, "--runs", "6"]) == 0
    six = json.loads(capsys.readouterr().out)
    assert six["seconds"] == pytest.approx(6 * one["seconds"]) and six["peak_bytes"] == one["peak_bytes"]


def test_a_plan_of_what_cannot_be_trained_is_refused(zoo):
    tiny = zoo["llama"]
    with pytest.raises(OptionError, match="top_k is 4, expected 1 to 3"):
        plan_training(str(tiny["base"]), tiny["adapters"], options(top_k=4))
    with pytest.raises(ValueError, match="Did you mean 'radar'"):
        plan_training(str(tiny["base"]), tiny["adapters"], options(gate="radr"))
    with pytest.raises(OptionError, match=r"^dtype 4bit: a plan knows the sizes of plain weights\. Use float32"):
        plan_training(str(tiny["base"]), tiny["adapters"], options(), dtype="4bit")


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."
    ),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_running_out_of_memory_says_what_to_lower(error, zoo, tasks, tmp_path, monkeypatch, capsys):
    from radargate.training import loop

    def full(*_, **__):
        raise error

    monkeypatch.setattr(loop.AnswerTrainer, "training_step", full)
    tiny = zoo["llama"]
    with pytest.raises(OutOfMemoryError, match=r"`batch_size` \(now 3\) or `max_length` \(now 48\).*radargate plan"):
        train_gates(str(tiny["base"]), tiny["adapters"], str(tasks), tmp_path / "out", options(), device="cpu")
    words = [
        "experts",
        str(tiny["base"]),
        "--data",
        str(tasks),
        "--target-modules",
        "q_proj",
        "--out",
        str(tmp_path / "e"),
        "--batch-size",
        "3",
        "--max-length",
        "48",
        "--device",
        "cpu",
    ]
    assert main(words) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("radargate: error: training needs more memory") and "Lower --batch-size (now 3)" in line


def test_real_memory_that_is_not_there_is_recognised():
    with pytest.raises(OutOfMemoryError, match="Lower this"), enough_memory("work", "this"):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), enough_memory("work", "this"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
