"""Preference training with TRL, which keeps the starting point of a model as a second composition ``ref``."""

from __future__ import annotations

import importlib

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import radargate
from conftest import tiny_tokenizer

COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "report_to": [],
    "use_cpu": True,
    "save_strategy": "no",
    "learning_rate": 1e-2,
    "disable_tqdm": True,
}
PAIRS = [{"prompt": "a b", "chosen": " yes.", "rejected": " no."}] * 4
JUDGED = [{"prompt": "a b", "completion": c, "label": c == " yes."} for c in (" yes.", " no.")] * 2
METHODS = {
    "dpo": ("trl", "DPO", {"max_length": 32}, PAIRS),
    "kto": ("trl.experimental.kto", "KTO", {"max_length": 32}, JUDGED),
    "grpo": (
        "trl",
        "GRPO",
        {"beta": 0.1, "num_generations": 2, "max_completion_length": 4},
        [{"prompt": "a b"}] * 4,
    ),
}
TEXTS = [[70, 71, 72], [90, 91], [100, 101, 102, 103]]


@pytest.fixture
def composed(load_tiny, zoo):
    return radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="stretch", router="text")


def trainer(method: str, model, tmp_path, tokenizer):
    module, name, options, rows = METHODS[method]
    library = importlib.import_module(module)
    args = getattr(library, f"{name}Config")(output_dir=str(tmp_path / "out"), **COMMON, **options)
    more = {"reward_funcs": lambda completions, **_: [float(len(set(c))) for c in completions]}
    return getattr(library, f"{name}Trainer")(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **(more if method == "grpo" else {}),
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_knows_the_texts_and_stays_where_training_began(method, composed, tmp_path):
    radargate.describe_texts(composed, TEXTS)
    begun = trainer(method, composed, tmp_path, tiny_tokenizer())
    before = {name: p.detach().clone() for name, p in composed.named_parameters()}
    begun.train()
    moved = {name for name, p in composed.named_parameters() if not torch.equal(before[name], p)}
    assert moved
    assert all(".default." in name for name in moved)
    assert list(composed.peft_config) == ["default", "ref"]
    composed.save_pretrained(tmp_path / "saved")


def test_texts_described_after_the_reference_was_made_reach_it_too(composed):
    composed.add_adapter("ref", composed.peft_config["default"])
    radargate.describe_texts(composed, TEXTS)
    spreads = {name: float(b) for name, b in composed.named_buffers() if "text_spread" in name}
    assert len(spreads) == 2
    assert len(set(spreads.values())) == 1
    assert min(spreads.values()) > 0


def test_a_described_composition_keeps_its_texts_when_another_is_described(composed, zoo):
    radargate.describe_texts(composed, TEXTS)
    composed.add_adapter("other", composed.peft_config["default"])
    kept = {name: b.clone() for name, b in composed.named_buffers() if "text_mean" in name and ".default." in name}
    composed.set_adapter("other")
    radargate.describe_texts(composed, [[5, 6], [7, 8, 9], [10]])
    after = dict(composed.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in kept.items())


def test_one_adapter_needs_no_top_k(load_tiny, zoo):
    model = radargate.compose(load_tiny(), {"math": zoo["llama"]["adapters"]["math"]})
    assert model.peft_config["default"].top_k == 1


@pytest.mark.parametrize("options", [{}, {"gate": "stretch", "router": "text"}])
def test_a_reward_model_is_trained_with_trl(options, tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_labels=1, pad_token_id=0, eos_token_id=1)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "base")

    def base():
        return LlamaForSequenceClassification.from_pretrained(tmp_path / "base")

    adapters = {name: tmp_path / name for name in "ab"}
    for folder in adapters.values():
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(base(), lora).save_pretrained(folder)
    model = radargate.compose(base(), adapters, **options)
    if options:
        radargate.describe_texts(model, TEXTS)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    args = RewardConfig(output_dir=str(tmp_path / "out"), max_length=32, **COMMON)
    RewardTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(PAIRS), processing_class=tiny_tokenizer()
    ).train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert moved
    assert all("radar_gate" in name for name in moved)
