"""Every class of model that PEFT adapts: composed, trained with Trainer, saved and loaded, and equal to PEFT's own sums."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, Trainer, TrainingArguments

import radargate
from model_classes import CASES, Case
from radargate.cli import main
from radargate.composition.composing import radar_config, radar_layers
from radargate.errors import InactiveExpertError, OptionError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A class by name with its base and three adapters, each made once."""

    @functools.cache
    def make(name):
        case: Case = CASES[name]
        folder = tmp_path_factory.mktemp("kind")
        torch.manual_seed(0)
        # frozen, as it will be in a composition: torch computes some attention in another way where nothing is trained
        base = case.build().eval().requires_grad_(False)
        adapters = {}
        for seed, expert in enumerate(("math", "law", "art")):
            torch.manual_seed(seed + 1)
            config = LoraConfig(
                r=seed + 2, lora_alpha=8, target_modules=case.targets, init_lora_weights=False, task_type=case.lora_task
            )
            get_peft_model(copy.deepcopy(base), config).save_pretrained(folder / expert)
            adapters[expert] = folder / expert
        return case, base, adapters

    return make


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def kind(request, made):
    """Every class."""
    return made(request.param)


def first(outputs) -> torch.Tensor:
    """What a model says, as one tensor."""
    names = ("logits", "start_logits", "logits_per_image", "last_hidden_state")
    return next(outputs[name] for name in names if name in outputs)


def told(model, case: Case) -> torch.Tensor:
    with torch.no_grad():
        return first(model(**case.inputs))


class LossTrainer(Trainer):
    """Trains what computes no loss of its own on the size of its features."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return outputs["loss"] if outputs.get("loss") is not None else first(outputs).square().mean()


def train(model, case: Case, folder) -> None:
    arguments = TrainingArguments(
        str(folder),
        max_steps=2,
        learning_rate=0.05,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        per_device_train_batch_size=1,
    )
    LossTrainer(model, arguments, train_dataset=[0, 1], data_collator=lambda rows: dict(case.inputs)).train()


def test_one_expert_answers_as_peft_does(kind):
    case, base, adapters = kind
    name, folder = next(iter(adapters.items()))
    theirs = told(PeftModel.from_pretrained(copy.deepcopy(base), folder).eval(), case)
    ours = radargate.compose(copy.deepcopy(base), {name: folder}, gate="uniform", top_k=None).eval()
    torch.testing.assert_close(told(ours, case), theirs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(theirs, told(base, case))


def test_uniform_adds_the_mean_of_peft_updates_at_every_layer(kind):
    _, base, adapters = kind
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), adapters["math"], adapter_name="math")
    for name in ("law", "art"):
        theirs.load_adapter(adapters[name], name)
    modules = {n.removeprefix("base_model.model."): m for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    ours = radargate.compose(copy.deepcopy(base), adapters, gate="uniform", top_k=None).eval()
    layers = radar_layers(ours)
    assert {layer.site for layer in layers} == set(modules)
    for layer in layers:
        x = torch.randn(3, radar_config(ours).sites[layer.site]["shape"][0])
        lora = modules[layer.site]
        mean = sum(lora.lora_B[n](lora.lora_A[n](x)) * lora.scaling[n] for n in adapters) / 3
        torch.testing.assert_close(layer.update(x, "default"), mean, rtol=1e-5, atol=1e-6)


def test_disabled_it_is_the_base_and_trained_it_loads_as_it_was(kind, tmp_path):
    case, base, adapters = kind
    before = told(base, case)
    model = radargate.compose(copy.deepcopy(base), adapters)
    assert radar_config(model).task_type == case.task
    with model.disable_adapter():
        assert torch.equal(told(model.eval(), case), before)
    untrained = told(model, case)
    gates = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gates and all(".radar_gate." in name for name in gates)
    train(model.train(), case, tmp_path / "run")
    trained = told(model.eval(), case)
    assert not torch.equal(trained, untrained)
    traced = radargate.trace(model, case.inputs)
    assert len(list(traced.sites())) >= 2 and set(traced.effect()) == set(adapters)
    assert all(change > 0 for change in traced.effect().values())
    model.save_pretrained(tmp_path / "bundle")
    for load in (radargate.load, PeftModel.from_pretrained):
        assert torch.equal(told(load(copy.deepcopy(base), tmp_path / "bundle").eval(), case), trained)
    unloaded: nn.Module = model.unload()
    assert torch.equal(told(unloaded, case), before)


ROUTED = (
    "bert classifier, all linear",
    "bert tagger",
    "bert masked",
    "llama reward",
    "llama features",
    "modernbert classifier",
)


@pytest.mark.parametrize("name", ROUTED)
def test_a_text_router_serves_whatever_reads_text_only(name, made, tmp_path):
    case, base, adapters = made(name)
    model = radargate.compose(copy.deepcopy(base), adapters, router="text")
    texts = [row[row > 0].tolist() for row in case.inputs["input_ids"]]
    radargate.describe_texts(model, texts)
    before = told(model.eval(), case)
    train(model.train(), case, tmp_path / "run")
    assert not torch.equal(told(model.eval(), case), before)
    model.save_pretrained(tmp_path / "bundle")
    assert torch.equal(told(radargate.load(copy.deepcopy(base), tmp_path / "bundle").eval(), case), told(model, case))


@pytest.mark.parametrize("name", ("vit classifier", "clip", "whisper", "llava"))
def test_a_text_router_is_refused_at_once_where_the_input_is_not_only_text(name, made):
    _, base, adapters = made(name)
    with pytest.raises(
        OptionError, match=r"router='text' decides by the text that a model reads, and .* reads (pixel|input)_"
    ):
        radargate.compose(copy.deepcopy(base), adapters, router="text")


FOLDERS = (
    "llama",
    "t5",
    "llama reward",
    "bert masked",
    "bert features",
    "vit classifier",
    "clip",
    "wav2vec2 ctc",
    "llava",
)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_loads_as_the_class_it_was_saved_from(name, made, tmp_path):
    case, base, adapters = made(name)
    base.save_pretrained(tmp_path / "base")
    model = radargate.compose(str(tmp_path / "base"), adapters).eval()
    assert type(model.get_base_model()) is type(base)
    model.save_pretrained(tmp_path / "bundle")
    again = radargate.load(None, tmp_path / "bundle").eval()
    assert type(again.get_base_model()) is type(base) and torch.equal(told(again, case), told(model, case))


def test_a_backbone_with_all_weights_of_a_language_model_is_what_its_adapters_name(tmp_path):
    """BART's checkpoints are saved as backbones, and used with the head that is tied to their embeddings."""
    torch.manual_seed(0)
    shape = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, eos_token_id=1, bos_token_id=1)
    GPT2Model(shape).save_pretrained(tmp_path / "base")
    for kind in (GPT2Model, GPT2LMHeadModel):
        config = LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
        folder = tmp_path / kind.__name__
        get_peft_model(kind.from_pretrained(tmp_path / "base"), config).save_pretrained(folder)
        composed = radargate.compose(str(tmp_path / "base"), {"a": folder}, top_k=1)
        assert type(composed.get_base_model()) is kind
        composed.save_pretrained(tmp_path / f"{kind.__name__} bundle")
        assert type(radargate.load(None, tmp_path / f"{kind.__name__} bundle").get_base_model()) is kind


def test_a_layer_of_one_output_is_adapted_with_nothing_to_turn(tmp_path):
    base = CASES["llama reward"].build().eval()
    for name in "ab":
        config = LoraConfig(target_modules=["score", "q_proj"], init_lora_weights=False)
        get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / name)
    model = radargate.compose(base, {name: tmp_path / name for name in "ab"})
    train(model.train(), CASES["llama reward"], tmp_path / "run")
    assert told(model.eval(), CASES["llama reward"]).isfinite().all()


def test_any_module_is_composed_and_a_part_of_the_base_is_named(tmp_path):
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
    whole = nn.Sequential(part, nn.Tanh())
    for name in "ab":
        config = LoraConfig(target_modules=["0"], init_lora_weights=False)
        get_peft_model(copy.deepcopy(part), config).save_pretrained(tmp_path / name)
    adapters, x = {name: tmp_path / name for name in "ab"}, torch.randn(3, 4)
    model = radargate.compose(copy.deepcopy(part), adapters)
    with model.disable_adapter():
        assert torch.equal(model(x), part(x))
    assert not torch.equal(model(x), part(x))
    model.save_pretrained(tmp_path / "bundle")
    torch.testing.assert_close(radargate.load(copy.deepcopy(part), tmp_path / "bundle")(x), model(x))
    with pytest.raises(InactiveExpertError, match=r"its layers stand below 0 there. Give that part as the base"):
        radargate.compose(whole, adapters)


@pytest.mark.parametrize("name", ("vit classifier", "clip", "bert features", "llava"))
def test_doctor_examines_adapters_of_any_class(name, made, tmp_path, capsys):
    _, base, adapters = made(name)
    base.save_pretrained(tmp_path / "base")
    assert main(["doctor", str(tmp_path / "base"), *(f"{n}={folder}" for n, folder in adapters.items())]) == 0
    assert "3 of 3 adapters can be used" in capsys.readouterr().out
