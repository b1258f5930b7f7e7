"""Many adapters become one: ties and dare as PEFT's own functions have them, and static rules as one ordinary LoRA."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraModel, PeftModel
from peft.tuners.lora import LoraLayer

import radargate
from conftest import adapters_for, make_adapter
from radargate.cli import main
from radargate.errors import AdapterError, RadarGateError
from radargate.experts.adapters import read_adapter
from test_rules import CASES, FAMILIES, NAMES, WEIGHTS, inputs, three


def peft_model(base, adapters, names=None):
    model = None
    for name, folder in adapters.items():
        if model is None:
            model = PeftModel.from_pretrained(base, folder, adapter_name=name)
        else:
            model.load_adapter(folder, name)
    return model.eval()


@torch.no_grad()
def test_uniform_equals_peft_cat(same_sites, load_tiny):
    peer = peft_model(load_tiny(), three(same_sites))
    peer.add_weighted_adapter(list(NAMES), [1 / 3] * 3, "merged", combination_type="cat")
    peer.set_adapter("merged")
    ours = radargate.compose(load_tiny(), three(same_sites), gate="uniform")
    torch.testing.assert_close(ours(**inputs()).logits, peer(**inputs()).logits, atol=1e-5, rtol=0)


MERGES = [
    ("ties", {"density": 0.5}, "ties", False),
    ("ties", {"density": 0.4, "space": "delta", "sign_method": "frequency"}, "ties_svd", False),
    ("ties", {"density": 0.5, "weights": {"math": 0.5, "law": 1.0, "code": -0.7}}, "ties", False),
    ("dare", {"density": 0.6}, "dare_linear", False),
    ("dare", {"density": 0.6, "combination": "ties", "space": "delta", "rank": 6}, "dare_ties_svd", False),
    ("ties", {"density": 0.5}, "ties", True),
]


@pytest.mark.parametrize(("method", "options", "peft_name", "rslora"), MERGES)
@torch.no_grad()
def test_ties_and_dare_equal_add_weighted_adapter_without_its_rslora_slip(
    zoo, same_sites, load_tiny, tmp_path, monkeypatch, method, options, peft_name, rslora
):
    adapters = three(same_sites)
    if rslora:
        adapters["math"] = make_adapter(
            zoo["llama"]["base"],
            tmp_path / "math",
            seed=9,
            r=4,
            lora_alpha=8,
            use_rslora=True,
            target_modules=["q_proj", "v_proj", "down_proj"],
        )
    peer = peft_model(load_tiny(), adapters)
    weights = list(options.get("weights", dict.fromkeys(NAMES, 1 / 3 if peft_name == "dare_linear" else 1.0)).values())
    inject = LoraModel.inject_adapter

    def inject_and_seed(*args, **kwargs):  # making the new adapter draws initial values; what is dropped comes after
        inject(*args, **kwargs)
        torch.manual_seed(5)

    monkeypatch.setattr(LoraModel, "inject_adapter", inject_and_seed)
    peer.add_weighted_adapter(
        list(NAMES),
        weights,
        "merged",
        combination_type=peft_name,
        density=options["density"],
        majority_sign_method=options.get("sign_method", "total"),
        svd_rank=options.get("rank"),
    )
    monkeypatch.undo()
    peer.set_adapter("merged")
    ours = radargate.compose(load_tiny(), adapters, gate=method, seed=5, **options).eval()
    found = ours(**inputs()).logits
    if rslora:
        assert (peer(**inputs()).logits - found).abs().max() > 1e-2, "PEFT scales the merged adapter by √r"
        for module in peer.modules():
            if isinstance(module, LoraLayer):
                assert module.scaling["merged"] == pytest.approx(2.0)
                module.scaling["merged"] = 1.0
    torch.testing.assert_close(found, peer(**inputs()).logits, atol=2e-5, rtol=0)
    radargate.merge_adapters(adapters, str(zoo["llama"]["base"]), tmp_path / "folder", method=method, seed=5, **options)
    plain = PeftModel.from_pretrained(load_tiny(), tmp_path / "folder").eval()
    torch.testing.assert_close(plain(**inputs()).logits, found, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_merged_composition_knows_its_sources_and_finds_them_again(zoo, load_tiny, tmp_path):
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="dare", seed=3, weights=WEIGHTS)
    config = model.peft_config["default"]
    assert config.experts == ["dare"] and list(config.adapter_facts()) == list(NAMES)
    expected = model(**inputs()).logits
    assert not torch.equal(
        radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="dare", seed=4, weights=WEIGHTS)(
            **inputs()
        ).logits,
        expected,
    )
    state = torch.random.get_rng_state()
    radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="dare")
    assert torch.equal(torch.random.get_rng_state(), state), "the drop leaves the global random state alone"
    config.gate_only = True
    model.save_pretrained(tmp_path / "b")
    assert torch.equal(radargate.load(load_tiny(), tmp_path / "b")(**inputs()).logits, expected)
    lock = json.loads((tmp_path / "b" / "radargate.lock.json").read_text())
    assert set(lock["experts"]) == {"dare", *NAMES}


EXPORTS = {
    "uniform": ("uniform", {}),
    "single": ("single", {"expert": "code"}),
    "ties": ("ties", {"density": 0.5}),
    "knots": ("knots", {"calibration": "pico"}),
    "tsv": ("tsv", {}),
    "iso": ("iso", {"common_space_fraction": 0.8}),
    **{name: (gate, options) for name, (gate, options, _, _) in CASES.items()},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", EXPORTS)
@torch.no_grad()
def test_a_static_rule_is_one_ordinary_lora(zoo, load_tiny, tmp_path, family, case):
    gate, options = EXPORTS[case]
    adapters = adapters_for(zoo[family], gate, options)
    wide = {"dtype": torch.float64}  # T5's logits are large enough for float32's rounding to show
    model = radargate.compose(load_tiny(family, **wide), adapters, gate=gate, **options).eval()
    radargate.save_as_lora(model, tmp_path / "lora")
    plain = PeftModel.from_pretrained(load_tiny(family, **wide), tmp_path / "lora").eval()
    torch.testing.assert_close(plain(**inputs(family)).logits, model(**inputs(family)).logits, atol=1e-5, rtol=0)
    ranks = [tensors.rank for tensors in read_adapter("lora", tmp_path / "lora").sites.values()]
    if gate == "pems" or case == "faithful":
        assert set(ranks) == {4}, "mixed apart, the rank stays"
    if case == "uniform":
        assert {4 + 8 + 3, 4 + 8, 8} == set(ranks)
    if case == "single":
        assert set(ranks) == {3}
    with pytest.raises(AdapterError, match="already holds an adapter"):
        radargate.save_as_lora(model, tmp_path / "lora")


@torch.no_grad()
def test_a_static_rule_under_a_shared_a_is_one_lora_of_one_rank(zoo, load_tiny, tmp_path):
    model = radargate.compose(
        load_tiny(), zoo["llama"]["equal"], gate="uniform", architecture="hydra", architecture_options={"convert": True}
    ).eval()
    radargate.save_as_lora(model, tmp_path / "lora")
    plain = PeftModel.from_pretrained(load_tiny(), tmp_path / "lora").eval()
    torch.testing.assert_close(plain(**inputs()).logits, model(**inputs()).logits, atol=1e-5, rtol=0)
    assert {t.rank for t in read_adapter("lora", tmp_path / "lora").sites.values()} == {4}


def test_what_depends_on_the_token_is_not_exported(zoo, load_tiny, tmp_path):
    adapters = zoo["llama"]["adapters"]
    for gate in ("radar", "arrow"):
        with pytest.raises(RadarGateError, match="differently for each token"):
            radargate.save_as_lora(radargate.compose(load_tiny(), adapters, gate=gate), tmp_path / "lora")
    with pytest.raises(RadarGateError, match="orthogonal"):
        model = radargate.compose(load_tiny(), adapters, gate="uniform", architecture="omoe")
        radargate.save_as_lora(model, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_train_and_export_from_the_command_line(zoo, tasks, tmp_path, capsys):
    base, adapters = str(zoo["llama"]["base"]), [f"{n}={p}" for n, p in zoo["llama"]["equal"].items()]
    words = ["train", base, *adapters, "--data", str(tasks), "--steps", "2", "--device", "cpu"]
    options = ["--gate", "pems", "--option", "weights={math: 1, law: 2, code: 1}", "--out", str(tmp_path / "bundle")]
    assert main([*words, *options, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["options"]["gate_options"] == {"weights": {"math": 1, "law": 2, "code": 1}}
    assert main(["export", str(tmp_path / "bundle"), "--to", "lora", "--out", str(tmp_path / "lora")]) == 0
    assert main(["doctor", base, str(tmp_path / "lora")]) == 0
    assert main([*words, "--gate", "radar", "--out", str(tmp_path / "radar")]) == 0
    assert main(["export", str(tmp_path / "radar"), "--out", str(tmp_path / "no")]) == 1
    assert "differently for each token" in capsys.readouterr().err
