"""Benchmarks count what they say they count, refuse wrong results, and goals are read from records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from radargate.cli import main
from radargate.errors import RadarGateError
from radargate.io.records import read_records
from speed import measure, ops, peers, serve, targets
from speed.models import Bases, write_adapters
from speed.site import Site


def test_every_round_takes_each_run_once_in_an_order_of_its_own():
    order = []
    times = measure.by_turns({name: lambda name=name: order.append(name) for name in "abc"}, 8, warmup=0)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 24, 3)]
    assert all(sorted(found) == list("abc") for found in rounds) and all(len(found) == 8 for found in times.values())
    assert {"ab", "ba", "cb", "bc"} <= {found[i : i + 2] for found in rounds for i in (0, 1)}, "neighbours change"


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    found = measure.ratio({"a": [2.0, 30.0, 8.0], "b": [1.0, 10.0, 2.0]}, "a", "b")
    assert found["value"] == 3.0 and found["low"] <= 3.0 <= found["high"]


def test_peak_bytes_count_tensors_while_they_live():
    def run():
        first = torch.ones(1000)  # 4000 bytes
        second = first + 1
        del first
        return (second * 2).view(10, 100)[1:]  # the product lives beside `second`; views hold nothing more

    assert measure.peak_bytes(run) == 8000
    assert measure.peak_bytes(lambda: torch.ones(10).view(2, 5)) == 40
    given = torch.ones(1000)
    assert measure.peak_bytes(lambda: given.view(-1)[:10].add_(1)) == 0


def test_saved_bytes_leave_inputs_out():
    x, w = torch.ones(100, requires_grad=True), torch.ones(100, requires_grad=True)
    known = measure.storages(x, w)
    assert measure.saved_bytes(lambda: x * w, known) == 0
    assert measure.saved_bytes(lambda: (x * w) * w, known) == 400
    assert measure.saved_bytes(lambda: (x * w).exp(), known) == 400


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_forms_of_a_site_agree_and_a_wrong_one_is_refused(top_k, monkeypatch):
    ops.check(5, 24, 9, top_k, "cpu", torch.float32)
    literal = Site.update
    monkeypatch.setattr(Site, "update", lambda self, form: literal(self, form) * (1.01 if form == "ours" else 1))
    with pytest.raises(RadarGateError, match=r"n=5 d=24 T=9 k=\d: the update is off by"):
        ops.check(5, 24, 9, top_k, "cpu", torch.float32)


def test_the_literal_form_is_scaled_up_from_as_many_tokens_as_fit(monkeypatch, caplog):
    ten = ops.LITERAL_TENSORS * 4 * 24 * 4 * 10
    monkeypatch.setattr(measure, "half_of_free", lambda device: ten)
    assert ops.literal_tokens(4, 24, 8, ten) == 8
    assert ops.literal_tokens(4, 24, 100, ten) == 10
    grid = [
        {"experts": 4, "width": 24, "tokens": 40, "top_k": 2},
        {"experts": 4, "width": 24, "tokens": 10**9, "top_k": 2},
    ]
    results = ops.bench(grid, device="cpu", dtype=torch.float32, rounds=1, most_gigaflops=1)
    with caplog.at_level("INFO", logger="radargate.bench"):
        (forward, step) = list(results)
    assert forward["literal_on_tokens"] == step["literal_on_tokens"] == 10
    assert step["metrics"]["saved_bytes"]["literal"] > step["metrics"]["saved_bytes"]["ours"]
    assert len(caplog.messages) == 1 and "left out: n=4 d=24 T=1000000000 k=2" in caplog.messages[0]


def test_every_system_is_built_over_the_same_weights_and_acts(tmp_path):
    bases = Bases("smollm2-135m", layers=1, dtype=torch.float32, device="cpu")
    adapters = write_adapters(bases, 2, tmp_path)
    table = bases.first.model.embed_tokens.weight
    for name in ("base", "lora", "xlora", "arrow", "loramoe", "literal", "radar"):
        model = peers.build(name, bases, adapters)
        assert any(p.data_ptr() == table.data_ptr() for p in model.parameters()), "the base is held once"
    for path in adapters.values():
        file = next(iter(Path(path).glob("*.safetensors")))
        tensors = load_file(file)
        save_file({k: v * 0 for k, v in tensors.items()}, file)
    with pytest.raises(RadarGateError, match="answers as the bare base model does"):
        peers.build("lora", bases, adapters)


def test_goals_are_read_from_records_and_missing_ones_stay_open():
    record = {
        "suite": "bench-step",
        "experts": 8,
        "device": "cpu",
        "metrics": {"times_lora": {"radar": {"value": 1.9, "low": 1.8, "high": 2.0}}, "over_radar": {}},
    }
    found = {f.text: f for f in targets.figures([record])}
    step = found["training step / one PEFT LoRA, n = 8, compiled"]
    assert (step.found, step.met) == (1.9, False)
    assert found["training step / one PEFT LoRA, n = 40, compiled"].met is None
    assert "MISSED" in targets.table(found.values()) and "n = 40" not in targets.table(found.values())


def test_the_servers_goal_asks_for_eight_experts_and_sixteen_clients():
    ratio = {"value": 0.7, "low": 0.6, "high": 0.8}
    record = {"suite": "bench-serve", "experts": 8, "clients": 16, "metrics": {"bundle_over_base": ratio}}
    text = "radar bundle / base, 16 requests at once"
    for changed, met in (({}, True), ({"clients": 4}, None), ({"experts": 2}, None)):
        assert next(f for f in targets.figures([{**record, **changed}]) if f.text == text).met is met


def test_a_served_bundle_is_measured_against_its_base_on_one_server(tmp_path, capsys):
    out = tmp_path / "records.jsonl"
    assert main(["bench", "serve", "--quick", "--layers", "1", "--experts", "2", "--batch", "3", "--rounds", "2", "--device", "cpu",
                 "--json", "--out", str(out)]) == 0  # fmt: skip
    (record,) = read_records(out)
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == record
    assert (record["suite"], record["experts"], record["clients"], record["answered"]) == ("bench-serve", 2, 3, 8)
    metrics = record["metrics"]
    for name in ("bundle", "base"):
        assert metrics["tokens_per_second"][name] == pytest.approx(3 * 8 / metrics["seconds"][name])
    assert metrics["bundle_over_base"]["low"] <= metrics["bundle_over_base"]["high"] and metrics["rounds"] == 2


def test_a_bundle_that_answers_as_its_base_and_a_refusal_are_not_measured(monkeypatch):
    load = serve.Load("smollm2-135m", 1, "cpu", torch.float32, 1, clients=2, answered=3)
    monkeypatch.setattr(serve, "ask_all", lambda port, load, factors: [[1, 2, 3]] * 2)
    with pytest.raises(RadarGateError, match="nothing to measure"):
        serve.check_differ(0, load, {"0": 0.0})
    bases = Bases("smollm2-135m", layers=1, dtype=torch.float32, device="cpu")
    tokenizer = serve.stand_in(bases)
    assert len(tokenizer) == bases.config.vocab_size and tokenizer.decode([300, 301]) == " w300 w301"


def test_the_command_prints_and_stores_records(tmp_path, capsys):
    out = tmp_path / "records.jsonl"
    assert (
        main(
            [
                "bench",
                "ops",
                "--experts",
                "3",
                "--widths",
                "24",
                "--tokens",
                "5",
                "--top-k",
                "2",
                "--rounds",
                "2",
                "--json",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["case"] for r in lines[:-1]] == ["n=3 d=24 T=5 k=2 forward", "n=3 d=24 T=5 k=2 step"]
    assert read_records(out) == lines[:-1] and lines[-1] == {"goals": []}
    assert main(["bench", "decode", "--experts", "2", "--layers", "1", "--rounds", "1", "--systems", "radar"]) == 0
    assert "times_lora radar" in capsys.readouterr().out


def test_an_installed_package_says_how_to_get_the_benchmarks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("radargate.cli.bench.FOLDER", tmp_path)
    assert main(["bench", "ops", "--quick"]) == 1
    shown = capsys.readouterr().err
    assert "clone RadarGate's repository" in shown and len(shown.splitlines()) == 1
