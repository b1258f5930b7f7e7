"""Trained heads that adapters bring: one is kept with the composition, where the experts agree or the user says whose."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

import radargate
from model_classes import IDS, SMALL, TEXT
from radargate.composition.composing import expert_bank, radar_config
from radargate.errors import AdapterError, BundleError, OptionError
from radargate.experts.bank import write_expert


def classifier(labels: int = 3, seed: int = 0):
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**SMALL, **TEXT, num_labels=labels)).eval()


def adapter(base, folder, seed: int, head: int | None, task: str | None = "SEQ_CLS"):
    """An adapter whose head has the values of one seed; None leaves the head out."""
    torch.manual_seed(seed)
    own = None if head is None or task else ["classifier"]
    config = LoraConfig(
        task_type=None if head is None else task,
        target_modules=["query", "value"],
        init_lora_weights=False,
        modules_to_save=own,
    )
    model = get_peft_model(copy.deepcopy(base), config)
    if head is not None:
        torch.manual_seed(head)
        torch.nn.init.normal_(model.base_model.model.classifier.modules_to_save["default"].weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture()
def made(tmp_path):
    base = classifier()
    plan = {"same": 7, "also": 7, "other": 8, "none": None}
    return base, {name: adapter(base, tmp_path / name, i, head) for i, (name, head) in enumerate(plan.items())}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def pick(adapters, *names):
    return {name: adapters[name] for name in names}


def test_a_head_that_all_agree_on_is_kept_saved_and_loaded_onto_a_base_with_another(made, tmp_path):
    base, adapters = made
    model = radargate.compose(copy.deepcopy(base), pick(adapters, "same", "also"), gate="uniform")
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), adapters["same"])
    head = model.base_model.model.classifier
    assert torch.equal(head.weight, theirs.base_model.model.classifier.weight)
    assert not any(p.requires_grad for p in head.parameters())
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base))
    assert not any(p.requires_grad for p in head.parameters()), "PEFT would train it after disable_adapter"
    model.save_pretrained(tmp_path / "bundle")
    # whoever starts from a checkpoint without a head gets a random one each time
    other = copy.deepcopy(base)
    torch.nn.init.normal_(other.classifier.weight)
    assert torch.equal(logits(radargate.load(other, tmp_path / "bundle")), logits(model))
    again = tmp_path / "again"
    radargate.load(copy.deepcopy(base), tmp_path / "bundle").save_pretrained(again)
    assert radar_config(radargate.load(copy.deepcopy(base), again)).modules_to_save == ["classifier"]
    unloaded = model.unload()
    assert torch.equal(logits(unloaded), logits(base))


@pytest.mark.parametrize("names, fault", [(("same", "other"), "each its own"), (("same", "none"), "'none' has none")])
def test_other_heads_are_refused_in_one_line_that_says_how_to_name_one(made, names, fault):
    base, adapters = made
    with pytest.raises(AdapterError, match="trained head") as error:
        radargate.compose(base, pick(adapters, *names))
    assert fault in str(error.value) and "head='same'" in str(error.value) and "\n" not in str(error.value)


def test_the_named_experts_head_is_kept(made):
    base, adapters = made
    model = radargate.compose(copy.deepcopy(base), pick(adapters, "same", "other", "none"), head="other")
    torch.manual_seed(8)
    assert torch.equal(model.base_model.model.classifier.weight, torch.randn(3, 16))
    plain = radargate.compose(copy.deepcopy(base), pick(adapters, "same", "none"), head="none")
    assert torch.equal(plain.base_model.model.classifier.weight, base.classifier.weight)
    with pytest.raises(OptionError, match="Did you mean 'other'"):
        radargate.compose(base, pick(adapters, "same", "other"), head="othr")


def test_a_head_that_does_not_fit_is_named_with_its_shapes(made):
    _, adapters = made
    with pytest.raises(
        AdapterError, match=r"classifier.weight of its trained head has shape \(3, 16\), the base's has \(5, 16\)"
    ):
        radargate.compose(classifier(labels=5), pick(adapters, "same"), top_k=1)
    torch.manual_seed(0)
    with pytest.raises(AdapterError, match="which BertForMaskedLM does not have"):
        radargate.compose(BertForMaskedLM(BertConfig(**SMALL, **TEXT)), pick(adapters, "same"), top_k=1)


def test_modules_to_save_without_a_task_are_kept_too(made, tmp_path):
    base, _ = made
    folder = adapter(base, tmp_path / "plain", 3, 9, task=None)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), folder)
    ours = radargate.compose(copy.deepcopy(base), {"plain": folder}, gate="uniform", top_k=None)
    torch.testing.assert_close(logits(ours), logits(theirs))


def test_a_peft_models_own_head_is_kept_and_the_base_gets_its_own_back(made):
    base, adapters = made
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), adapters["same"])
    said = logits(theirs)
    ours = radargate.compose(theirs, gate="uniform", top_k=None)
    torch.testing.assert_close(logits(ours), said)
    with ours.disable_adapter():
        assert torch.equal(logits(ours), logits(base))


def test_an_expert_is_written_back_without_the_head_and_more_experts_join_with_it(made, tmp_path):
    base, adapters = made
    model = radargate.compose(copy.deepcopy(base), pick(adapters, "same", "also"), gate="nexus")
    write_expert(expert_bank(model), "same", tmp_path / "back")
    back = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "back")
    assert torch.equal(back.base_model.model.classifier.weight, base.classifier.weight)
    larger = radargate.add_experts(model, pick(adapters, "none"))
    torch.manual_seed(7)
    assert torch.equal(larger.base_model.model.classifier.weight, torch.randn(3, 16))


def test_a_bundle_that_lost_its_head_is_refused(made, tmp_path):
    from safetensors.torch import load_file, save_file

    base, adapters = made
    radargate.compose(copy.deepcopy(base), pick(adapters, "same"), top_k=1).save_pretrained(tmp_path / "bundle")
    (tmp_path / "bundle" / "radargate.lock.json").unlink()
    file = tmp_path / "bundle" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "classifier" not in k}, file)
    with pytest.raises(BundleError, match="no tensor of it"):
        radargate.load(base, tmp_path / "bundle")


def test_by_folder_adapters_with_a_head_make_a_classifier_of_a_language_model(tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL, **TEXT)).save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    base = LlamaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=4)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False)
    theirs = get_peft_model(base, config)
    theirs.save_pretrained(tmp_path / "adapter")
    model = radargate.compose(str(tmp_path / "base"), {"a": tmp_path / "adapter"}, gate="uniform", top_k=None)
    assert type(model.get_base_model()) is LlamaForSequenceClassification
    torch.testing.assert_close(logits(model), logits(theirs))
    model.save_pretrained(tmp_path / "bundle")
    assert torch.equal(logits(radargate.load(None, tmp_path / "bundle")), logits(model))
    auto = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "bundle", num_labels=4)
    assert torch.equal(logits(auto), logits(model))


def test_one_lora_of_a_composition_has_its_head(made, tmp_path):
    base, adapters = made
    model = radargate.compose(copy.deepcopy(base), pick(adapters, "same", "also"), gate="uniform", top_k=None)
    radargate.save_as_lora(model, tmp_path / "lora")
    lora = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "lora")
    torch.testing.assert_close(logits(lora), logits(model), rtol=1e-5, atol=1e-6)
