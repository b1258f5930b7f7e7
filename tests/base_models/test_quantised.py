"""Bases in 8 and 4 bits: composed, trained, saved and loaded, and never taken for the weights they stand for."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import radargate
from conftest import make_adapter, tiny_tokenizer
from radargate.base_models.loading import load_base
from radargate.errors import BundleError, OptionError
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> dict:
    """A llama whose widths bitsandbytes can pack on a CPU (multiples of 32), and two adapters."""
    root = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 258,
    }
    LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=1, pad_token_id=0, bos_token_id=None)).save_pretrained(
        root / "base"
    )
    tiny_tokenizer().save_pretrained(root / "base")
    adapters = {
        name: make_adapter(root / "base", root / name, seed, r=4, target_modules=["q_proj", "v_proj"])
        for seed, name in enumerate(("math", "law"))
    }
    return {"base": root / "base", "adapters": adapters}


@pytest.mark.parametrize("dtype", ["8bit", "4bit"])
def test_a_gate_is_trained_on_a_quantised_base_and_its_bundle_knows(wide, tasks, tmp_path, dtype):
    tiny, out = wide, tmp_path / "bundle"
    options = GateTraining(gate="radar", steps=4, batch_size=4, max_length=64)
    train_gates(str(tiny["base"]), tiny["adapters"], str(tasks), out, options, dtype=dtype, device="cpu")
    assert json.loads((out / "record.json").read_text())["metrics"]["mean_angle"] > 0
    ids = torch.arange(2, 12).unsqueeze(0)
    again = radargate.load(str(tiny["base"]), out, dtype=dtype)
    base = load_base(str(tiny["base"]), dtype=dtype)
    kinds = {type(p).__name__ for p in base.parameters()}
    assert ("Int8Params" if dtype == "8bit" else "Params4bit") in kinds, "the base really is quantised"
    with torch.no_grad():
        composed, alone = again(input_ids=ids).logits, base(input_ids=ids).logits
    assert torch.isfinite(composed).all() and not torch.equal(composed, alone)
    with pytest.raises(BundleError, match="fingerprint"):
        radargate.load(str(tiny["base"]), out)


def test_a_bundle_of_a_plain_base_is_refused_on_a_quantised_one(wide, tasks, tmp_path):
    tiny, out = wide, tmp_path / "bundle"
    train_gates(str(tiny["base"]), tiny["adapters"], str(tasks), out, GateTraining(gate="uniform"), device="cpu")
    with pytest.raises(BundleError, match=r"this one is quantised: .* allow_other_base=True"):
        radargate.load(str(tiny["base"]), out, dtype="4bit")
    assert radargate.load(str(tiny["base"]), out, dtype="4bit", allow_other_base=True) is not None


def test_a_missing_package_is_said(zoo, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        OptionError, match=r"dtype='4bit' needs bitsandbytes. Install it with: pip install 'radargate\[quant\]'"
    ):
        load_base(str(zoo["llama"]["base"]), dtype="4bit")
