"""Kinds of sound and unsound adapters beside those of `test_sound`: names in configs, wrappers of trainers, parts and pointers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import radargate
from radargate.base_models.limits import Limits
from radargate.cli import main
from radargate.composition.composing import expert_bank
from radargate.errors import AdapterError
from radargate.experts.adapters import read_adapter
from radargate.experts.bank import load_bank, write_expert

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
P = "base_model.model."
IDS = torch.arange(2, 14)[None]


@pytest.fixture
def adapter(load_tiny, tmp_path):
    """A function that saves an adapter, with other names of tensors, another config or other tensors beside its own."""

    def make(rename=lambda name: name, config=None, keep=lambda name: True, add=None, **options):
        torch.manual_seed(3)
        wanted = {"r": 4, "target_modules": ["q_proj", "v_proj"], **options}
        model = get_peft_model(load_tiny(), LoraConfig(init_lora_weights=False, **wanted))
        folder = tmp_path / "adapter"
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        tensors = {rename(k): v.contiguous() for k, v in load_file(folder / WEIGHTS).items() if keep(k)}
        save_file({**tensors, **(add or {})}, folder / WEIGHTS, metadata={"format": "pt"})
        told = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**told, **(config or {})}))
        with torch.no_grad():
            return folder, model.eval()(input_ids=IDS).logits

    return make


def layers(folder):
    return [name.removeprefix(P).removesuffix(".lora_A.weight") for name in load_file(folder / WEIGHTS) if "_A" in name]


def check_as_peft(load_tiny, folder, want, tmp_path):
    """The composition answers as PEFT, and so does its expert when it is written out and read by PEFT."""
    model = radargate.compose(load_tiny(), {"a": folder}, gate="uniform").eval()
    write_expert(expert_bank(model), "a", tmp_path / "out")
    again = PeftModel.from_pretrained(load_tiny(), tmp_path / "out").eval()
    with torch.no_grad():
        for each in (model, again):
            torch.testing.assert_close(each(input_ids=IDS).logits, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("word", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "module._orig_mod."])
def test_targets_and_patterns_of_wrapped_models_are_the_layers(adapter, load_tiny, tmp_path, word):
    full = layers(adapter()[0])
    odd = {"rank_pattern": {full[0]: 2}, "alpha_pattern": {full[1]: 32}}
    unwrapped = word.replace("module._", "_") if "_orig" in word else word
    patterns = {f: {unwrapped + k: v for k, v in t.items()} for f, t in odd.items()} if "_" in unwrapped else odd
    config = {"target_modules": [word + name for name in full], **patterns}
    folder, want = adapter(lambda k: k.replace(P, P + word), config, **odd)
    assert any("target_modules" in note for note in read_adapter("a", folder).notes)
    check_as_peft(load_tiny, folder, want, tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        r"_orig_mod\.model\.layers\.\d+\.self_attn\.(q|v)_proj",
        r"_orig_mod.model.layers.\d+.self_attn.(q|v)_proj",
        r"(_orig_mod\.)?model.*(q_proj|v_proj)",
        r".*_fsdp_wrapped_module\.self_attn\.(q|v)_proj",
    ],
)
def test_one_pattern_over_names_of_a_wrapped_model_is_read(adapter, load_tiny, tmp_path, pattern):
    folder, want = adapter(lambda k: k.replace(P, P + "_orig_mod."), {"target_modules": pattern})
    check_as_peft(load_tiny, folder, want, tmp_path)


def test_a_repeat_behind_a_wrapper_word_stays_a_valid_pattern(adapter, load_tiny):
    folder, _ = adapter(config={"target_modules": r"(_orig_mod.*)?model.*(q_proj|v_proj)"})
    assert load_bank({"a": folder}, load_tiny()).sites


def test_a_pattern_for_a_layer_with_and_without_its_wrapper_is_refused(adapter):
    folder, _ = adapter(config={"alpha_pattern": {"q_proj": 4, "_orig_mod.q_proj": 8}})
    with pytest.raises(AdapterError, match="alpha_pattern names a layer twice"):
        read_adapter("a", folder)


@pytest.mark.parametrize("lead", ["model.", "pretrained_model.", "actor.module.", "_forward_module.", "module."])
def test_what_a_trainer_holds_the_model_under_is_left_out(adapter, load_tiny, tmp_path, lead, capsys, zoo):
    folder, want = adapter(lambda k: lead + k)
    check_as_peft(load_tiny, folder, want, tmp_path)
    assert main(["doctor", str(zoo["llama"]["base"]), str(folder)]) == 0
    assert ("DDP" if lead == "module." else f"a wrapper called {lead[:-1]}") in capsys.readouterr().out


def test_ddp_outside_and_inside_is_left_out(adapter, load_tiny, tmp_path):
    folder, want = adapter(lambda k: "module." + k.replace(P, P + "module."))
    check_as_peft(load_tiny, folder, want, tmp_path)


def test_two_tensors_that_come_to_one_name_are_refused(adapter, load_tiny):
    name = f"{P}model.layers.0.self_attn.q_proj.lora_A.weight"
    folder, _ = adapter(add={f"policy.{name}": torch.zeros(4, 64)})
    with pytest.raises(AdapterError, match="twice"):
        read_adapter("a", folder)


def test_layers_that_are_lost_show_where_the_config_leaves_the_choice_to_peft(adapter, load_tiny):
    folder, _ = adapter(config={"target_modules": None})
    assert load_bank({"a": folder}, load_tiny()).sites
    folder, _ = adapter(config={"target_modules": None}, keep=lambda k: "layers.0" in k)
    with pytest.raises(AdapterError, match="are missing from its file"):
        load_bank({"a": folder}, load_tiny())


def test_kinds_of_modules_that_only_a_pattern_names_are_noted(adapter, load_tiny, caplog):
    folder, _ = adapter(config={"target_modules": r".*\.(q_proj|k_proj|v_proj)"})
    with caplog.at_level("INFO", logger="radargate"):
        load_bank({"a": folder}, load_tiny())
    assert "adapter 'a': no tensors of k_proj, which the pattern in its config names too." in caplog.text


@pytest.mark.parametrize(("saved", "held"), [("float16", "bfloat16"), ("float32", "float16"), ("bfloat16", "float32")])
def test_a_copy_that_was_rounded_otherwise_is_equal(adapter, load_tiny, saved, held):
    base, name = load_tiny(), "model.embed_tokens.weight"
    own = base.get_parameter(name)
    own.data = own.data.to(getattr(torch, saved))
    copy = own.detach().clone()
    folder, _ = adapter(add={P + name: copy})
    assert load_bank({"a": folder}, base.to(getattr(torch, held))).sites


def test_a_copy_is_compared_with_a_base_that_is_offloaded(adapter, load_tiny):
    name = "model.embed_tokens.weight"
    for change, fits in ((0.0, True), (0.5, False)):
        base = load_tiny()
        folder, _ = adapter(add={P + name: base.get_parameter(name).detach() + change})
        cpu_offload(base, execution_device="cpu")
        if fits:
            assert load_bank({"a": folder}, base).sites
            continue
        with pytest.raises(AdapterError, match="differs from the base's"):
            load_bank({"a": folder}, base)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234\n"


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
def test_a_pointer_of_git_lfs_is_named(adapter, file):
    folder, _ = adapter()
    (folder / file).write_text(POINTER)
    with pytest.raises(AdapterError, match=rf"{file} is a pointer of Git LFS.*git lfs pull"):
        read_adapter("a", folder)


def test_a_damaged_header_is_told_once(adapter):
    folder, _ = adapter()
    (folder / WEIGHTS).write_bytes(b"\xff" * 64)
    with pytest.raises(AdapterError) as raised:
        read_adapter("a", folder)
    assert "download it again" in str(raised.value)
    assert "access" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model_fsdp_0/__0_0.distcp", "parts of an FSDP checkpoint. Gather the weights"),
        ("global_step20/zero_pp_rank_0_mp_rank_00_model_states.pt", "a DeepSpeed checkpoint. Gather the weights"),
        ("adapters.npz", "an MLX adapter"),
        ("pytorch_lora_weights.safetensors", "an adapter of diffusers"),
        ("math.gguf", "for llama.cpp"),
    ],
)
def test_folders_of_other_moments_and_tools_are_named(tmp_path, file, message):
    (tmp_path / "x" / file).parent.mkdir(parents=True)
    (tmp_path / "x" / file).write_bytes(b"x")
    with pytest.raises(AdapterError, match=message):
        read_adapter("a", tmp_path / "x")


def test_weights_without_a_config_and_adapters_further_down_are_named(adapter, tmp_path):
    folder, _ = adapter()
    shutil.copytree(folder, tmp_path / "runs" / "law" / "checkpoint-20")
    with pytest.raises(AdapterError, match=r"adapters are in law/checkpoint-20\. Give one"):
        read_adapter("a", tmp_path / "runs")
    (folder / CONFIG).unlink()
    with pytest.raises(AdapterError, match=f"{CONFIG} does not exist beside {WEIGHTS}"):
        read_adapter("a", folder)


def test_a_bundle_is_no_adapter(adapter, load_tiny, tmp_path):
    radargate.compose(load_tiny(), {"a": adapter()[0]}).save_pretrained(str(tmp_path / "bundle"))
    with pytest.raises(AdapterError, match="that of a RadarGate bundle"):
        read_adapter("a", tmp_path / "bundle")


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default"}, 32),
        ({"rope_type": "linear", "factor": 4.0}, 32),
        ({"rope_type": "dynamic", "factor": 4.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 32),
    ],
)
def test_stretched_rotary_embeddings_have_the_positions_they_are_stretched_to(rope, positions):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=16, max_position_embeddings=32, rope_parameters={"rope_theta": 1e4, **rope}, **sizes
    )
    assert Limits.of(LlamaForCausalLM(config)).positions == positions


@pytest.mark.parametrize("lead", ["module.", "policy.", "_orig_mod."])
def test_a_trained_head_is_read_under_wrapper_words(tmp_path, lead):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=32, num_labels=3, pad_token_id=0, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "base")

    def base():
        return LlamaForSequenceClassification.from_pretrained(tmp_path / "base").eval()

    made = get_peft_model(
        base(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    made.base_model.model.score.modules_to_save["default"].weight.data.add_(0.5)
    made.save_pretrained(tmp_path / "a")
    tensors = {lead + name: tensor for name, tensor in load_file(tmp_path / "a" / WEIGHTS).items()}
    save_file(tensors, tmp_path / "a" / WEIGHTS, metadata={"format": "pt"})
    ours = radargate.compose(base(), {"a": tmp_path / "a"}, gate="uniform").eval()
    with torch.no_grad():
        want = made.eval()(input_ids=IDS).logits
        torch.testing.assert_close(ours(input_ids=IDS).logits, want, atol=1e-5, rtol=1e-5)


def test_a_copy_under_the_name_of_an_older_layout_is_compared(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "llama", "vocab_size": 64, **sizes}
    vision = {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4, "projection_dim": 8, **sizes}
    base = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision)).eval()
    own = base.get_parameter("model.language_model.embed_tokens.weight").detach().clone()
    made = get_peft_model(base, LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False))
    made.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    base = made.unload()
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    older = {k.replace("model.model.language_model.", "model.language_model.model."): v for k, v in tensors.items()}
    for change in (0.0, 0.5):
        copy = {f"{P}language_model.model.embed_tokens.weight": own + change}
        save_file({**older, **copy}, tmp_path / "a" / WEIGHTS, metadata={"format": "pt"})
        if not change:
            bank = load_bank({"a": tmp_path / "a"}, base)
            assert bank.configs["a"]["target_modules"] == list(bank.sites)
            continue
        with pytest.raises(AdapterError, match="differs from the base's"):
            load_bank({"a": tmp_path / "a"}, base)
