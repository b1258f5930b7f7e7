"""Gate ``cat``: one learned weight for each expert and layer is the concatenated LoRA, and leaves as one."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel

import radargate
from radargate.cli import main
from radargate.composition.composing import radar_layers
from radargate.errors import OptionError
from test_rules import factors, inputs

F64 = torch.float64


ALPHA = {"math": 1.7, "law": -0.4, "code": 0.9}


def cat_model(zoo, load_tiny, dtype=None):
    model = radargate.compose(load_tiny(dtype=dtype), zoo["llama"]["adapters"], gate="cat").eval()
    with torch.no_grad():
        for depth, layer in enumerate(radar_layers(model)):
            gate = layer.gate("default")
            assert torch.equal(gate.weights, torch.full((gate.site.n,), 1 / gate.site.n)), "as uniform"
            gate.to(dtype)
            gate.weights.copy_(torch.tensor([ALPHA[name] + 0.1 * depth for name in gate.site.experts]))
    return model


@torch.no_grad()
def test_cat_is_the_concatenated_lora_in_float64(zoo, load_tiny):
    model, table = cat_model(zoo, load_tiny, F64), factors(zoo["llama"]["adapters"])
    base = load_tiny(dtype=F64)
    modules = dict(base.named_modules())
    for depth, layer in enumerate(radar_layers(model)):
        experts = table[layer.site]
        alphas = [float(torch.tensor(ALPHA[name] + 0.1 * depth)) for name in experts]
        A = torch.cat([A for A, _, _ in experts.values()])
        B = torch.cat([a * s * B for a, (_, B, s) in zip(alphas, experts.values(), strict=True)], 1)
        modules[layer.site].weight += B @ A
        x = torch.randn(5, A.shape[1], dtype=F64, generator=torch.Generator().manual_seed(depth))
        torch.testing.assert_close(layer.update(x, "default"), x @ A.T @ B.T, atol=1e-10, rtol=0)
    torch.testing.assert_close(model(**inputs()).logits, base(**inputs()).logits, atol=1e-10, rtol=0)


@torch.no_grad()
def test_cat_exports_exactly_saves_and_scales(zoo, load_tiny, tmp_path):
    model = cat_model(zoo, load_tiny)
    radargate.save_as_lora(model, tmp_path / "lora")
    peer = PeftModel.from_pretrained(load_tiny(), tmp_path / "lora").eval()
    torch.testing.assert_close(model(**inputs()).logits, peer(**inputs()).logits, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "bundle")
    again = radargate.load(load_tiny(), tmp_path / "bundle").eval()
    assert torch.equal(model(**inputs()).logits, again(**inputs()).logits)
    words = {"max_new_tokens": 6, "do_sample": False}
    uncached = again.generate(**inputs(batch=1), **words, use_cache=False)
    assert torch.equal(model.generate(**inputs(batch=1), **words), uncached)
    scaled = model(**inputs(), experts={"law": 0.5, "code": 0.0}).logits
    for layer in radar_layers(model):
        for i, name in enumerate(layer.gate("default").site.experts):
            layer.gate("default").weights[i] *= {"law": 0.5, "code": 0.0}.get(name, 1.0)
    torch.testing.assert_close(scaled, model(**inputs()).logits, atol=1e-6, rtol=0)


def test_cat_trains_one_weight_for_each_expert_and_layer(zoo, tasks, tmp_path, capsys):
    words = ["--data", str(tasks), "--gate", "cat", "--steps", "6", "--batch-size", "4", "--device", "cpu", "--json"]
    adapters = map(str, zoo["llama"]["adapters"].values())
    assert main(["train", str(zoo["llama"]["base"]), *adapters, *words, "--out", str(tmp_path / "b")]) == 0
    record = json.loads(capsys.readouterr().out)
    layers = radar_layers(radargate.load(None, tmp_path / "b"))
    assert record["metrics"]["trained_parameters"] == sum(layer.gate("default").site.n for layer in layers)
    assert all(bool((gate.weights != 1 / gate.site.n).all()) for gate in (layer.gate("default") for layer in layers))
    assert main(["export", str(tmp_path / "b"), "--out", str(tmp_path / "lora")]) == 0


def test_it_has_no_options(zoo):
    with pytest.raises(OptionError, match="option of CatGate"):
        radargate.compose("no/such/base", zoo["llama"]["adapters"], gate="cat", init_std=0.1)
