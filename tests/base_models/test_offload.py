"""Bases of which accelerate keeps parts in memory or on disk: composed, trained, saved and loaded as if they were here."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import radargate
from conftest import build
from radargate.base_models.loading import fingerprint
from radargate.base_models.offload import device_of

IDS = torch.arange(2, 14)[None]


@pytest.fixture(scope="module", params=["llama", "gpt2"])  # GPT-2 ties its head to its embeddings
def made(request, tmp_path_factory):
    """A base's folder, two adapters, and the layers' place in a map."""
    folder = tmp_path_factory.mktemp("offload")
    base = build(request.param)
    with torch.no_grad():  # no twin of the shared tiny base: a bundle finds its base again by the hash of its weights
        next(base.parameters()).mul_(1.01)
    base.save_pretrained(folder / "base")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}[request.param]
        model = AutoModelForCausalLM.from_pretrained(folder / "base")
        config = LoraConfig(target_modules=targets, init_lora_weights=False, fan_in_fan_out=request.param == "gpt2")
        get_peft_model(model, config).save_pretrained(folder / name)
    parts = {
        "llama": (
            "model.embed_tokens",
            "model.layers.0",
            "model.layers.1",
            "model.norm",
            "model.rotary_emb",
            "lm_head",
        ),
        "gpt2": (
            "transformer.wte",
            "transformer.wpe",
            "transformer.h.0",
            "transformer.h.1",
            "transformer.ln_f",
            "lm_head",
        ),
    }[request.param]
    return folder, {name: folder / name for name in "ab"}, parts


def offloaded(folder, parts, how):
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    if how == "memory":
        return cpu_offload(model, execution_device=torch.device("cpu"))
    place = {part: "disk" if part.rsplit(".", 1)[-1] == "1" else "cpu" for part in parts}
    return AutoModelForCausalLM.from_pretrained(folder / "base", device_map=place, offload_folder=str(folder / "off"))


def told(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("how", ["memory", "disk"])
def test_an_offloaded_base_is_composed_trained_saved_and_loaded(how, made, tmp_path):
    folder, adapters, parts = made
    whole = AutoModelForCausalLM.from_pretrained(folder / "base")
    known = fingerprint(whole)
    want = told(radargate.compose(whole, adapters))
    base = offloaded(folder, parts, how)
    assert any(p.is_meta for p in base.parameters()), "nothing is elsewhere"
    assert fingerprint(base) == known and device_of(base).type == "cpu"
    model = radargate.compose(base, adapters)
    torch.testing.assert_close(told(model), want)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path / "bundle")
    again = radargate.load(offloaded(folder, parts, how), tmp_path / "bundle")
    torch.testing.assert_close(told(again), want)
    assert again.generate(input_ids=IDS, max_new_tokens=2, do_sample=False).shape[1] == IDS.shape[1] + 2
