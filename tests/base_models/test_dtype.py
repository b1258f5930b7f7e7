"""The base's dtype where nobody names one: the rule, the line that says it, records, and runs that go on."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import radargate
from radargate.base_models import dtype as base_dtype
from radargate.base_models import loading as base_models
from radargate.base_models.dtype import Speed
from radargate.cli import main
from radargate.errors import OptionError, OutOfMemoryError, RadarGateError
from radargate.io.records import read_records
from radargate.training import checkpoints
from radargate.training.experts import train_experts
from radargate.training.gates import train_gates
from radargate.training.options import ExpertOptions, GateTraining
from radargate.training.plan import plan_training

SLOW, FAST = Speed(0.1, 0.01), Speed(6.0, 4.0)


@pytest.fixture(scope="module")
def half_base(zoo, tmp_path_factory):
    """A tiny base whose checkpoint is in bfloat16."""
    folder = shutil.copytree(zoo["llama"]["base"], tmp_path_factory.mktemp("half") / "base")
    AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def processor(monkeypatch):
    """A function that makes this processor multiply half precision at a given speed."""
    return lambda speed: monkeypatch.setattr(base_dtype, "half_speed", lambda width, name: speed)


@pytest.mark.parametrize(
    "speed, expected", [(SLOW, torch.float32), (FAST, torch.bfloat16), (Speed(5.0, 0.5), torch.float32)]
)
def test_half_precision_stays_only_where_it_is_as_fast_both_ways(half_base, processor, speed, expected):
    processor(speed)
    assert base_models.load_base(str(half_base)).dtype == expected
    assert base_models.load_base(str(half_base), dtype="bfloat16").dtype == torch.bfloat16
    assert base_models.load_base(str(half_base), dtype="auto").dtype == torch.bfloat16


def test_float32_checkpoints_are_never_measured(zoo, monkeypatch):
    monkeypatch.setattr(base_dtype, "half_speed", None)
    assert base_models.load_base(str(zoo["llama"]["base"])).dtype == torch.float32


def test_what_does_not_fit_in_float32_keeps_its_dtype_and_says_what_that_costs(half_base, processor, monkeypatch):
    processor(SLOW)
    bytes_half = 2 * sum(p.numel() for p in base_models.meta_base(str(half_base)).parameters())
    monkeypatch.setattr(base_dtype, "free_memory", lambda: int(1.5 * bytes_half))
    choice = base_models.base_dtype(str(half_base))
    assert choice.name == "bfloat16" and choice.slowdown == pytest.approx(55)
    assert "float32 takes" in choice.reason and "55 times as long" in choice.reason
    monkeypatch.setattr(base_dtype, "free_memory", lambda: bytes_half // 2)
    with pytest.raises(OutOfMemoryError, match=r"in bfloat16, and .* free\. Load it in 4bit"):
        base_models.load_base(str(half_base))
    with pytest.raises(OutOfMemoryError, match=r"in float32, .* Load it in bfloat16"):
        base_models.load_base(str(half_base), dtype="float32")


def test_names_and_devices_that_cannot_be_are_one_line_with_the_nearest_choice(half_base, capsys):
    for words, expected in (
        (("--dtype", "bf16"), "Unknown dtype 'bf16'. Did you mean 'bfloat16'"),
        (("--dtype", "float64"), "Known: float32, bfloat16, float16, 8bit, 4bit"),
        (("--device", "cuda:7"), "device 'cuda:7' cannot be used here"),
        (("--device", "gpu"), "device 'gpu' cannot be used here"),
    ):
        assert main(["generate", str(half_base), "--prompt", "x", *words]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and expected in lines[0]
    with pytest.raises(OptionError, match=r"dtype bf16|Unknown dtype 'bf16'"):
        base_models.plain_dtype("bf16", "weights are plain here")


def test_a_model_of_the_users_own_is_never_converted_and_warned_about_once_it_crawls(half_base, processor, zoo):
    own = AutoModelForCausalLM.from_pretrained(half_base, dtype=torch.bfloat16)
    processor(SLOW)
    with pytest.warns(UserWarning, match=r"given model is in bfloat16, .* about 55 times as long"):
        composed = radargate.compose(own, zoo["llama"]["adapters"])
    assert composed.dtype == torch.bfloat16
    processor(FAST)
    loaded = base_models.load_base(str(half_base))
    processor(SLOW)  # what was loaded here has had its line already
    assert base_models.load_base(loaded) is loaded


def test_the_measurement_is_kept_for_each_processor_torch_and_width(monkeypatch, tmp_path):
    monkeypatch.setenv("RADARGATE_CACHE", str(tmp_path))
    measured = []
    monkeypatch.setattr(
        base_dtype, "measure_half_speed", lambda width, dtype: measured.append(width) or Speed(2.0, 1.0)
    )
    for width in (24, 24, 32, 24):
        assert base_dtype.half_speed(width, "bfloat16") == Speed(2.0, 1.0)
    assert measured == [24, 32]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")  # as no machine of the tests has it
    base_dtype.half_speed(24, "bfloat16")
    (tmp_path / "half-precision.json").write_text("[")
    base_dtype.half_speed(24, "bfloat16")
    assert measured == [24, 32, 24, 24]
    monkeypatch.undo()
    speed = base_dtype.measure_half_speed(64, torch.bfloat16)
    assert speed.forward > 0 and speed.backward > 0


def train(base, zoo, tasks, out, **more):
    options = GateTraining(steps=4, batch_size=4, save_every=1, max_length=64)
    return train_gates(str(base), zoo["llama"]["adapters"], str(tasks), out, options, device="cpu", **more)


@pytest.mark.parametrize("speed, name", [(SLOW, "float32"), (FAST, "bfloat16")])
def test_commands_say_the_dtype_and_records_hold_it(half_base, zoo, tasks, tmp_path, processor, capsys, speed, name):
    processor(speed)
    base = str(half_base)
    adapters = [f"{key}={path}" for key, path in zoo["llama"]["adapters"].items()]
    out = tmp_path / "b"
    assert main(["train", base, *adapters, "--data", str(tasks), "--steps", "2", "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert f"dtype: {name} (" in printed.err
    assert json.loads(printed.out)["dtype"] == json.loads((out / "run.json").read_text())["dtype"] == name
    assert main(["eval", str(out), "--data", str(tasks), "--limit", "2", "--out", str(tmp_path / "s.jsonl")]) == 0
    assert {json.loads(line)["dtype"] for line in (tmp_path / "s.jsonl").read_text().splitlines()} == {name}
    assert main(["doctor", base, *adapters]) == 0
    assert main(["doctor", base, *adapters, "--no-probe"]) == 0
    assert capsys.readouterr().err.count(f"dtype: {name} (") == 3
    assert main(["plan", base, *adapters]) == 0
    assert f"dtype: {name} (" in capsys.readouterr().out
    plan = plan_training(base, zoo["llama"]["adapters"], GateTraining(), dtype="bfloat16")
    fast = plan_training(base, zoo["llama"]["adapters"], GateTraining(), dtype="float32")
    assert plan.seconds == pytest.approx(fast.seconds * max(speed.slowdown, 1))


def test_a_run_that_goes_on_keeps_the_dtype_it_began_with_bit_for_bit(
    half_base, zoo, tasks, tmp_path, processor, monkeypatch
):
    processor(FAST)
    train(half_base, zoo, tasks, tmp_path / "whole")
    save = checkpoints.save

    def save_and_stop(trainer):
        save(trainer)
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(half_base, zoo, tasks, tmp_path / "cut")
    monkeypatch.setattr(checkpoints, "save", save)
    processor(SLOW)  # as on another machine
    record = train(half_base, zoo, tasks, tmp_path / "cut", resume=True)
    assert record["dtype"] == "bfloat16"
    whole, cut = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    assert train(half_base, zoo, tasks, tmp_path / "fresh")["dtype"] == "float32"
    with pytest.raises(RadarGateError, match="another dtype"):
        train(half_base, zoo, tasks, tmp_path / "cut", resume=True, dtype="float32")


def test_a_run_of_a_version_that_wrote_no_dtype_down_goes_on_in_the_checkpoints_own(
    half_base, zoo, tasks, tmp_path, processor
):
    processor(FAST)
    record = train(half_base, zoo, tasks, tmp_path / "b")
    run = json.loads((tmp_path / "b" / "run.json").read_text())
    (tmp_path / "b" / "run.json").write_text(json.dumps({**run, "dtype": None}))
    (tmp_path / "b" / "record.json").unlink()
    processor(SLOW)
    again = train(half_base, zoo, tasks, tmp_path / "b", resume=True)
    assert again["dtype"] == "bfloat16" and again["gate_sha256"] == record["gate_sha256"]


@pytest.mark.parametrize("command", ["compare", "experiment"])
def test_a_grid_that_goes_on_keeps_its_dtype_and_its_cells(half_base, zoo, tasks, tmp_path, processor, capsys, command):
    out = tmp_path / "grid"
    common = ["--data", str(tasks), "--limit", "2", "--out", str(out), "--steps", "2", "--seeds", "1"]
    if command == "compare":
        adapters = [f"{key}={path}" for key, path in zoo["llama"]["adapters"].items()]
        words = [
            "compare",
            str(half_base),
            *adapters,
            "--gates",
            "stretch",
            "--max-new-tokens",
            "2",
            "--union-steps",
            "2",
            *common,
        ]
    else:
        words = ["experiment", "ablation", "--smoke", "--base", str(half_base), "--gates", "stretch", *common]
    processor(SLOW)
    assert main(words) == 0
    before = len(read_records(out / "records.jsonl"))
    processor(FAST)
    assert main([*words, "--resume"]) == 0
    capsys.readouterr()
    records = read_records(out / "records.jsonl")
    cells = [r for r in records if r["suite"] == "cell"]
    assert {r["conditions"]["dtype"] for r in cells} == {"float32"}
    assert (
        len(cells) == len({r["case"] for r in cells}) and len(records) - before <= 2
    )  # plans and notes of a run, no cell


def test_experts_that_are_trained_later_are_trained_as_the_first_were(half_base, tasks, tmp_path, processor):
    options = ExpertOptions(steps=2, batch_size=4, max_length=64, target_modules=("q_proj",))
    for speed, task in ((FAST, ["add"]), (SLOW, None)):
        processor(speed)
        train_experts(str(half_base), str(tasks), tmp_path, options, tasks=task, resume=True, device="cpu")
    assert [r["dtype"] for r in read_records(tmp_path / "records.jsonl")] == ["bfloat16", "bfloat16"]
