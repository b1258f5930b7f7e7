"""Gates train, and nothing else: contract, dense start, exact resume, dropped rows, any Trainer."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import fresh
import radargate
from conftest import HANG
from radargate.base_models.loading import load_tokenizer
from radargate.data.batches import AnswerCollator, encode_rows
from radargate.data.options import Batching
from radargate.data.rows import Row
from radargate.data.sources import load_rows
from radargate.errors import DataError, RadarGateError, TrainContractError
from radargate.training.contract import TrainContract, frozen_hash
from radargate.training.experts import train_experts
from radargate.training.gates import train_gates
from radargate.training.loop import AnswerTrainer, training_arguments
from radargate.training.options import ExpertOptions, GateTraining, Training


def run(zoo, tasks, out, family="llama", **changes):
    resume = changes.pop("resume", False)
    options = GateTraining(**{"steps": 6, "batch_size": 4, "save_every": 2, "max_length": 64, **changes})
    tiny = zoo[family]
    return train_gates(str(tiny["base"]), tiny["adapters"], str(tasks), out, options, resume=resume, device="cpu")


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_training_moves_gates_only_and_saves_a_bundle_that_loads_equal(zoo, tasks, tmp_path, family):
    record = run(zoo, tasks, tmp_path / "bundle", family, gate="radar")
    assert record["metrics"]["trained_parameters"] > 0
    assert record["metrics"]["mean_angle"] > 0
    stored = load_file(tmp_path / "bundle" / "adapter_model.safetensors")
    turned = [t for name, t in stored.items() if name.endswith("rotation_up")]
    assert turned and all(t.any() for t in turned)
    fresh = radargate.compose(str(zoo[family]["base"]), zoo[family]["adapters"])
    for name, tensor in fresh.state_dict().items():
        if "radar_bank" in name:
            assert torch.equal(tensor, stored[name.replace("radar_bank.default", "radar_bank")])
    metrics = [json.loads(line) for line in (tmp_path / "bundle" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 6


def test_whoever_names_no_gate_gets_the_one_that_leads_and_a_run_of_before_keeps_its_own(zoo, tasks, tmp_path):
    record = run(zoo, tasks, tmp_path / "b")
    assert record["options"]["gate"] == "stretch"
    assert record["options"]["gate_options"] == {"router": "prompt", "router_start": "select"}
    assert run(zoo, tasks, tmp_path / "paper", preset="paper")["options"]["gate"] == "radar"
    tiny = zoo["llama"]
    options = GateTraining(steps=2, batch_size=4, max_length=64)
    before = replace(options, gate="radar")
    train_gates(str(tiny["base"]), tiny["adapters"], str(tasks), tmp_path / "c", before, device="cpu")
    (tmp_path / "c" / "record.json").unlink()  # as if it had been killed
    again = train_gates(
        str(tiny["base"]), tiny["adapters"], str(tasks), tmp_path / "c", options, resume=True, device="cpu"
    )
    assert again["options"]["gate"] == "radar" and not again["options"]["gate_options"]


def test_a_rule_has_nothing_to_train_and_is_saved_as_it_is(zoo, tasks, tmp_path):
    assert run(zoo, tasks, tmp_path / "b", gate="uniform")["metrics"]["trained_parameters"] == 0
    assert radargate.load(str(zoo["llama"]["base"]), tmp_path / "b").peft_config["default"].gate == "uniform"


def test_paper_preset_uses_the_printed_form_and_rates(zoo, tasks, tmp_path):
    record = run(zoo, tasks, tmp_path / "b", preset="paper")
    assert record["options"]["lr"] == record["options"]["rotation_lr"] == 1e-4
    assert record["options"]["dense_start"] == 0
    assert radargate.load(str(zoo["llama"]["base"]), tmp_path / "b").peft_config["default"].gate_options == {
        "angle_norm": "none",
        "renormalize": "always",
    }


def test_an_output_folder_is_never_overwritten_and_resume_wants_the_same_options(zoo, tasks, tmp_path):
    run(zoo, tasks, tmp_path / "b", steps=2)
    with pytest.raises(RadarGateError, match="already holds a run"):
        run(zoo, tasks, tmp_path / "b", steps=2)
    with pytest.raises(RadarGateError, match="another options"):
        run(zoo, tasks, tmp_path / "b", steps=4, resume=True)
    assert run(zoo, tasks, tmp_path / "b", steps=2, resume=True)["metrics"]["trained_parameters"] > 0


def test_resume_refuses_other_rows_and_other_adapters_under_the_same_names(zoo, tasks, tmp_path):
    data, adapters = tmp_path / "tasks", tmp_path / "adapters"
    shutil.copytree(tasks, data)
    own = {name: str(shutil.copytree(path, adapters / name)) for name, path in zoo["llama"]["adapters"].items()}
    mine = {"llama": {**zoo["llama"], "adapters": own}}
    run(mine, data, tmp_path / "b", steps=2)
    first, other = list(own.values())[:2]
    shutil.copyfile(f"{other}/adapter_model.safetensors", f"{first}/adapter_model.safetensors")
    shutil.copyfile(f"{other}/adapter_config.json", f"{first}/adapter_config.json")
    with pytest.raises(RadarGateError, match="another experts"):
        run(mine, data, tmp_path / "b", steps=2, resume=True)
    file = next(data.glob("even.train.jsonl*"))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(RadarGateError, match="another data_hash"):
        run(mine, data, tmp_path / "b", steps=2, resume=True)


def test_two_steps_do_not_claim_a_gradient_for_every_tensor(zoo, tasks, tmp_path, caplog):
    caplog.set_level("INFO", logger="radargate")
    run(zoo, tasks, tmp_path / "b", steps=1, gate="radar")
    assert "had no gradient in so few steps" in caplog.text
    run(zoo, tasks, tmp_path / "c", steps=4, gate="radar")
    assert "each had a finite, non-zero gradient" in caplog.text


def test_a_step_of_fewer_rows_than_a_batch_holds_each_once(zoo, tasks, load_tiny, tmp_path):
    rows = load_rows(str(tasks), "train", ["even"])["even"][:5]
    encoded = encode_rows(
        rows, load_tokenizer(str(zoo["llama"]["base"])), Batching(max_length=64), encoder_decoder=False
    ).rows
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"])
    arguments = training_arguments(tmp_path, Training(steps=2, batch_size=8, lr=1e-3, seed=0), device="cpu")
    trainer = AnswerTrainer(model, encoded, arguments, AnswerCollator(0, False))
    assert [batch["input_ids"].shape[0] for batch in trainer.get_train_dataloader()] == [5, 5]


def test_what_a_kill_at_the_very_end_leaves_goes_when_the_run_is_resumed(zoo, tasks, tmp_path):
    out = tmp_path / "b"
    run(zoo, tasks, out, steps=2)
    for left in (out / ".bundle.tmp", out / "checkpoints" / "checkpoint-2"):
        left.mkdir(parents=True)
        (left / "file").write_text("left")
    run(zoo, tasks, out, steps=2, resume=True)
    assert not (out / ".bundle.tmp").exists() and not list((out / "checkpoints").glob("checkpoint-*"))


def test_rows_longer_than_the_limit_are_dropped_whole_and_reported(zoo, tasks, tmp_path):
    record = run(zoo, tasks, tmp_path / "b", steps=2, max_length=8)
    assert record["dropped"]["even"] == 48
    with pytest.raises(DataError, match="No row is left"):
        run(zoo, tasks, tmp_path / "c", steps=2, max_length=2)


def test_an_expert_that_no_row_is_left_for_is_said_before_any_is_trained(zoo, tmp_path):
    data = {
        "short": [Row("is 1 odd?", "yes", task="short")] * 4,
        "long": [Row("is 1 odd? " * 40, "yes", task="long")] * 4,
    }
    options = ExpertOptions(steps=1, batch_size=2, max_length=32)
    with pytest.raises(DataError, match=r"all 4 of long are longer than `max_length` 32 tokens\. Raise it"):
        train_experts(str(zoo["llama"]["base"]), data, tmp_path / "experts", options, device="cpu")
    assert not (tmp_path / "experts").exists()


def test_the_contract_refuses_anything_but_gates(zoo):
    model = radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"])
    model.get_base_model().lm_head.weight.requires_grad_(True)
    with pytest.raises(TrainContractError, match=r"lm_head|embed_tokens"):
        TrainContract(model)
    model = radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"])
    contract, before = TrainContract(model), frozen_hash(model)
    with torch.no_grad():
        model.get_base_model().model.layers[0].self_attn.q_proj.radar_bank["default"].A[0, 0] += 1
    assert frozen_hash(model) != before
    with pytest.raises(TrainContractError, match="changed"):
        contract.finish(model)


def test_a_users_own_trainer_gets_dense_start_and_two_rates_in_two_lines(zoo, tmp_path, load_tiny):
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], top_k=1)
    ids = torch.randint(2, 250, (16, 9), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    args = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_steps=4
    )
    optimizer = torch.optim.AdamW(radargate.parameter_groups(model, lr=5e-3, rotation_lr=2e-2))
    before = frozen_hash(model)
    trainer = Trainer(
        model, args, train_dataset=rows, callbacks=[radargate.DenseStart(0.5)], optimizers=(optimizer, None)
    )
    trainer.train()
    assert frozen_hash(model) == before
    model.eval()
    with torch.no_grad():
        expected = model(ids).logits
        again = radargate.load(load_tiny(), tmp_path / "checkpoint-4")(ids).logits
    assert torch.equal(expected, again)


KILLED = """
import sys, time, torch
torch.set_num_threads(1)
from radargate.cli import main
from radargate.training import loop
original = loop.AnswerTrainer.training_step
def slow(self, *args, **kwargs):
    time.sleep(0.15)  # so that kills land inside the run
    return original(self, *args, **kwargs)
loop.AnswerTrainer.training_step = slow
flags = "--steps 16 --batch-size 4 --save-every 3 --max-length 64 --device cpu --resume".split()
sys.exit(main(["train", *sys.argv[1:], *flags]))
"""


def test_a_run_killed_three_times_ends_bit_equal_to_an_undisturbed_one(zoo, tasks, tmp_path):
    tiny = zoo["llama"]
    adapters = [f"{name}={path}" for name, path in tiny["adapters"].items()]

    def start(out):
        words = ["-c", KILLED, tiny["base"], *adapters, "--data", tasks, "--out", out]
        return fresh.Process(*words, stdout=fresh.DEVNULL, stderr=fresh.PIPE)

    kills = 0
    undisturbed = start(tmp_path / "whole")
    for wanted in (3, 7, 11):  # wait until the run has passed this step, then kill it somewhere after
        process = start(tmp_path / "killed")
        metrics = tmp_path / "killed" / "checkpoints" / "metrics.jsonl"
        while process.poll() is None:
            steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []
            if steps and steps[-1] >= wanted:
                time.sleep(0.07 * wanted % 0.4)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.02)
        process.wait()
    assert kills == 3
    last = start(tmp_path / "killed")
    assert last.wait(HANG) == 0, last.stderr.read()
    assert undisturbed.wait(HANG) == 0, undisturbed.stderr.read()
    whole = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    killed = load_file(tmp_path / "killed" / "adapter_model.safetensors")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert [json.loads(x)["step"] for x in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()] == list(
        range(1, 17)
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("forget", [False, True])
def test_the_loss_is_the_mean_over_answer_tokens_whatever_the_model_can_slice(
    zoo, tasks, tmp_path, load_tiny, family, forget
):
    tokenizer, seq2seq = load_tokenizer(str(zoo[family]["base"])), family == "t5"
    rows = [row for task in load_rows(tasks, "train", limit=3).values() for row in task]
    encoded = encode_rows(rows, tokenizer, Batching(max_length=64), encoder_decoder=seq2seq).rows
    model = radargate.compose(load_tiny(family), zoo[family]["adapters"]).eval()
    collator = AnswerCollator(0, seq2seq)
    trainer = AnswerTrainer(
        model,
        encoded,
        training_arguments(tmp_path, Training(steps=1, batch_size=6, lr=1.0, seed=0), device="cpu"),
        collator,
    )
    if forget:  # a model that cannot slice its logits
        trainer.slices_logits = False
    with torch.no_grad():
        loss = trainer.compute_loss(model, collator(encoded))
        total, count = 0.0, 0
        for row in encoded:  # one by one, without padding
            ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels)
            logits = (
                model(input_ids=ids, labels=labels[None]).logits[0] if seq2seq else model(input_ids=ids).logits[0, :-1]
            )
            labels = labels if seq2seq else labels[1:]
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            count += int((labels != -100).sum())
    assert float(loss) == pytest.approx(total / count, rel=1e-5)
