"""The preset ``paper`` is the printed form at every k, and bundles of before keep what it meant for them."""

from __future__ import annotations

import math

import pytest
import torch

import radargate
from radargate.composition.composing import radar_config, radar_layers
from radargate.composition.config import PRESETS, gate_class
from radargate.experts.adapters import read_adapter
from radargate.gates import GATES
from radargate.training.contract import GRACE_STEPS
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining

RENORMALISING = [name for name in GATES if "renormalize" in gate_class(name).Options.__dataclass_fields__]


def printed(x, experts, theta, down, up, k):
    """Eq. 1, 5, 8, 13 and 18 for one token, in float64: y = Σ_{i ∈ top-k} g_i ṽ_i with g = softmax over the kept."""
    v = [scale * (B @ (A @ x)) for A, B, scale in experts]
    logits = [float(row @ x) for row in theta]
    kept = sorted(range(len(v)), key=lambda i: -logits[i])[:k]
    total = sum(math.exp(logits[i]) for i in kept)
    update = torch.zeros_like(v[0])
    for i in kept:
        others = sum((v[j] for j in range(len(v)) if j != i), torch.zeros_like(v[i]))
        angle = ((v[i] * others) @ down) @ up
        for m in range(len(v[i]) // 2):
            a, b, turn = v[i][2 * m], v[i][2 * m + 1], angle[m]
            gain = math.exp(logits[i]) / total
            update[2 * m] += gain * (a * torch.cos(turn) - b * torch.sin(turn))
            update[2 * m + 1] += gain * (a * torch.sin(turn) + b * torch.cos(turn))
    return update


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_composition_is_the_printed_form_at_every_k(zoo, load_tiny, k):
    folders = zoo["llama"]["adapters"]
    model = radargate.compose(load_tiny(dtype=torch.float64), folders, gate="radar", preset="paper", top_k=k)
    layer = next(la for la in radar_layers(model) if len(la.entries["default"][1]["experts"]) == 3)
    gate, generator = layer.gate("default"), torch.Generator().manual_seed(k)
    with torch.no_grad():  # far from the start, so that weights and turns say something
        gate.softmax_theta.normal_(std=0.5, generator=generator)
        gate.rotation_up.normal_(std=0.5, generator=generator)
    found = {name: read_adapter(name, folder) for name, folder in folders.items()}
    experts = [(*(part.double() for part in a.read(layer.site)), a.sites[layer.site].scale) for a in found.values()]
    x = torch.randn(6, layer.base_layer.in_features, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        update = layer.update(x, "default")
        down = gate.rotation_down.double() / math.sqrt(layer.base_layer.out_features)  # it is kept as √d · P
        parts = (gate.softmax_theta.double(), down, gate.rotation_up.double())
        wanted = torch.stack([printed(row, experts, *parts, k) for row in x])
    torch.testing.assert_close(update.double(), wanted, rtol=1e-9, atol=1e-9)
    if k == 1:  # which the default is not: there the kept weight stays the softmax's
        plain = radargate.compose(load_tiny(dtype=torch.float64), folders, gate="radar", angle_norm="none", top_k=1)
        other = next(la for la in radar_layers(plain) if la.site == layer.site)
        other.gate("default").load_state_dict(gate.state_dict())
        with torch.no_grad():
            assert float((other.update(x, "default") - update).abs().max()) > 1e-3


@pytest.mark.parametrize("name", RENORMALISING)
def test_every_gate_with_that_option_takes_it_and_can_be_trained_at_top_one(zoo, tasks, tmp_path, name):
    options = GateTraining(gate=name, preset="paper", top_k=1, steps=GRACE_STEPS + 1, batch_size=2)
    base, adapters = str(zoo["llama"]["base"]), zoo["llama"]["adapters"]
    record = train_gates(base, adapters, str(tasks), tmp_path / "b", options, device="cpu")
    assert record["metrics"]["trained_parameters"] > 0
    config = radar_config(radargate.load(base, tmp_path / "b"))
    assert config.gate_options["renormalize"] == "always" and config.preset == "paper"


def test_an_option_that_is_given_wins_over_the_preset(zoo, load_tiny):
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], preset="paper", renormalize="never")
    assert radar_config(model).gate_options == {"angle_norm": "none", "renormalize": "never"}


def test_a_bundle_of_before_keeps_what_the_preset_meant_for_it(zoo, load_tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "paper", {"angle_norm": "none"})
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="radar", preset="paper", top_k=1)
    for layer in radar_layers(model):
        for parameter in layer.gate("default").parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
    model.save_pretrained(str(tmp_path / "old"))
    monkeypatch.undo()
    assert PRESETS["paper"]["renormalize"] == "always"
    loaded = radargate.load(load_tiny(), tmp_path / "old")
    assert radar_config(loaded).gate_options == {"angle_norm": "none"} and radar_config(loaded).preset == "paper"
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, before)
        loaded.save_pretrained(str(tmp_path / "again"))
        again = radargate.load(load_tiny(), tmp_path / "again")
        assert torch.equal(again(input_ids=ids).logits, before)
