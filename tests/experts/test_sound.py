"""Sound adapters as other tools, wrappers and moments leave them: each is read as what it is, or named as what it is not."""

from __future__ import annotations

import codecs
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
)

import radargate
from radargate.cli import main
from radargate.errors import AdapterError
from radargate.experts.adapters import read_adapter
from radargate.experts.bank import load_bank

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
P = "base_model.model."


@pytest.fixture
def changed(zoo, tmp_path):
    """A function that copies the adapter ``law`` with other names of tensors, other tensors, or another config."""

    def make(rename=lambda name: name, config=None, keep=lambda name: True, add=None, turn=lambda t: t):
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(zoo["llama"]["adapters"]["law"], folder)
        tensors = {rename(k): turn(v).contiguous() for k, v in load_file(folder / WEIGHTS).items() if keep(k)}
        save_file({**tensors, **(add or {})}, folder / WEIGHTS, metadata={"format": "pt"})
        told = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**told, **(config or {})}))
        return folder

    return make


RENAMES = {
    "compiled, outside": lambda k: "_orig_mod." + k,
    "compiled, inside": lambda k: k.replace(P, f"{P}_orig_mod."),
    "compiled, every block": lambda k: k.replace("layers.0.", "layers.0._orig_mod."),
    "DDP": lambda k: "module." + k,
    "DDP of DDP": lambda k: "module.module." + k,
    "DDP inside": lambda k: k.replace(P, f"{P}module."),
    "FSDP, every block": lambda k: k.replace("self_attn.", "_fsdp_wrapped_module.self_attn."),
    "checkpointed blocks": lambda k: k.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."),
    "FSDP of a compiled model": lambda k: "_fsdp_wrapped_module._orig_mod." + k,
    "the adapter's name": lambda k: k.replace(".weight", ".default.weight"),
    "a name with a dot": lambda k: k.replace(".weight", ".my.law.weight"),
    "all at once": lambda k: "module._orig_mod." + k.replace(".weight", ".law.weight"),
    "no prefix": lambda k: k.removeprefix(P),
}


@pytest.mark.parametrize("case", RENAMES)
def test_wrapper_words_are_left_out_and_the_bank_has_the_same_bits(zoo, load_tiny, changed, case):
    base = load_tiny()
    want = load_bank({"law": zoo["llama"]["adapters"]["law"]}, base)
    folder = changed(RENAMES[case])
    found = load_bank({"law": folder}, base)
    assert found.sites.keys() == want.sites.keys()
    for site, bank in want.sites.items():
        assert torch.equal(bank.A, found.sites[site].A)
        assert torch.equal(bank.B, found.sites[site].B)
    assert bool(read_adapter("law", folder).notes) == (case != "no prefix")


def test_the_doctor_says_what_it_left_out(zoo, changed, capsys):
    assert main(["doctor", str(zoo["llama"]["base"]), str(changed(RENAMES["all at once"]))]) == 0
    out = capsys.readouterr().out
    for word in ("torch.compile", "DDP", "the adapter's name law"):
        assert word in out


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda k: k.replace(".weight", f".{'a' if 'layers.0' in k else 'b'}.weight"), "several adapters: a, b"),
        (lambda k: k.replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b"), "MLX or torchtune"),
        (lambda k: k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"), "diffusion tools"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_tool(changed, rename, message):
    with pytest.raises(AdapterError, match=message):
        read_adapter("law", changed(rename))


@pytest.mark.parametrize("turn", [lambda t: t[:0], lambda t: t.flatten()[:0]])
def test_empty_tensors_are_named_as_ungathered(changed, turn):
    with pytest.raises(AdapterError, match="without gathering"):
        read_adapter("law", changed(turn=turn))
    with pytest.raises(AdapterError, match=r"holds no tensor.*ZeRO-3"):
        read_adapter("law", changed(keep=lambda name: False))


def test_numbers_with_a_point_and_byte_order_marks_are_taken(changed, zoo, load_tiny):
    folder = changed(config={"r": 8.0, "lora_alpha": 16.0, "layers_to_transform": [0.0, 1.0]})
    (folder / CONFIG).write_bytes(codecs.BOM_UTF8 + (folder / CONFIG).read_bytes())
    assert load_bank({"law": folder}, load_tiny()).sites
    (folder / CONFIG).write_bytes((folder / CONFIG).read_text("utf-8-sig").encode("utf-16"))
    with pytest.raises(AdapterError, match="UTF-16, expected UTF-8"):
        read_adapter("law", folder)
    with pytest.raises(AdapterError, match=r"r = '8', expected a whole number"):
        read_adapter("law", changed(config={"r": "8"}))


def test_targets_with_pefts_prefix_are_the_layers(changed, load_tiny, zoo):
    sites = list(read_adapter("law", zoo["llama"]["adapters"]["law"]).sites)
    assert load_bank({"law": changed(config={"target_modules": [P + s for s in sites]})}, load_tiny()).sites


@pytest.mark.parametrize(
    "keep",
    [
        lambda name: "layers.1" not in name,
        lambda name: "down_proj" not in name,
        lambda name: "layers.0.mlp" not in name,
    ],
)
def test_lost_layers_are_a_fault_and_allowed_on_request(zoo, load_tiny, changed, keep, capsys):
    folder, base = changed(keep=keep), str(zoo["llama"]["base"])
    with pytest.raises(AdapterError, match=r"layers that its config names are missing from its file.*allow_inactive"):
        radargate.compose(load_tiny(), {"law": folder})
    assert main(["doctor", base, str(folder)]) == 1
    assert "missing from its file" in capsys.readouterr().out
    assert radargate.compose(load_tiny(), {"law": folder}, allow_inactive=True).peft_config["default"].sites


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["model.layers.1.mlp.up_proj"]},
        {"target_modules": r".*\.1\.self_attn\.(q|k)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": r"(?:.*?(?:attn|mlp).*?(?:q_proj|k_proj|gate_up).*?)|(?:.*\.o_proj)"},
    ],
)
def test_partial_targets_that_peft_makes_are_whole(zoo, load_tiny, tmp_path, config):
    model = get_peft_model(load_tiny(), LoraConfig(r=2, init_lora_weights=False, **config))
    model.save_pretrained(tmp_path / "part")
    ids = torch.arange(12)[None]
    ours = radargate.compose(load_tiny(), {"part": tmp_path / "part"}, gate="uniform").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, model.eval()(ids).logits, atol=1e-5, rtol=1e-5)


def copies(base) -> dict[str, torch.Tensor]:
    own = base.state_dict()
    return {f"{P}{name}": own[name].clone() for name in ("model.embed_tokens.weight", "lm_head.weight")}


def test_copies_of_base_tensors_are_compared_and_left_out(load_tiny, changed, tmp_path, zoo, capsys):
    base = load_tiny()
    bank = load_bank({"law": changed(add=copies(base))}, base)
    assert not any("embed" in site or "lm_head" in site for site in bank.sites)
    half = {name: tensor.bfloat16() for name, tensor in copies(base).items()}
    assert load_bank({"law": changed(add=half)}, base).sites
    trained = copies(base)
    trained[f"{P}lm_head.weight"][0, 0] += 1
    folder = changed(add=trained)
    with pytest.raises(AdapterError, match=r"its own lm_head.weight, which differs from the base's"):
        load_bank({"law": folder}, base)
    assert main(["doctor", str(zoo["llama"]["base"]), str(folder)]) == 1
    assert "which differs from the base's" in capsys.readouterr().out
    longer = {k: torch.cat([v, v[:1]]) for k, v in copies(base).items()}
    with pytest.raises(AdapterError, match="Tokens were added"):
        load_bank({"law": changed(add=longer)}, base)
    with pytest.raises(AdapterError, match="no tensor of that name"):
        load_bank({"law": changed(add={f"{P}model.other.weight": torch.ones(2)})}, base)


@pytest.mark.parametrize(("targets", "saves"), [(["q_proj", "lm_head"], "auto"), (["q_proj"], True)])
def test_what_peft_saves_by_itself_composes_as_in_peft(load_tiny, tmp_path, targets, saves):
    model = get_peft_model(load_tiny(), LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    model.save_pretrained(tmp_path / "a", save_embedding_layers=saves)
    ours = radargate.compose(load_tiny(), {"a": tmp_path / "a"}, gate="uniform").eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, model.eval()(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_parent_of_adapters_lists_them(zoo, tmp_path):
    for name in ("law", "math"):
        shutil.copytree(zoo["llama"]["adapters"][name], tmp_path / "all" / name)
    with pytest.raises(AdapterError, match="adapters are in law, math"):
        read_adapter("all", tmp_path / "all")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("adapters.safetensors", "an MLX adapter"),
        ("lora.safetensors", "mistral-finetune"),
        ("model.safetensors", "a whole model"),
        ("adapter_model-00001-of-00003.safetensors", "in pieces"),
    ],
)
def test_folders_of_other_tools_are_named(changed, file, message):
    folder = changed()
    (folder / WEIGHTS).rename(folder / file)
    with pytest.raises(AdapterError, match=message):
        read_adapter("law", folder)


def test_a_mixture_of_experts_base_takes_attention_adapters_and_says_why_no_others(tmp_path):
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")

    def base():
        return MixtralForCausalLM.from_pretrained(tmp_path / "base").eval()

    for name, targets in (("attention", ["q_proj", "v_proj"]), ("all", "all-linear")):
        get_peft_model(base(), LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).save_pretrained(
            tmp_path / name
        )
    ids = torch.arange(12)[None]
    with torch.no_grad():
        ours = radargate.compose(base(), {"a": tmp_path / "attention"}, gate="uniform").eval()(ids).logits
        theirs = PeftModel.from_pretrained(base(), tmp_path / "attention").eval()(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with pytest.raises(AdapterError, match="mixture-of-experts base, which is not supported"):
        radargate.compose(base(), {"a": tmp_path / "all"})
    tensors = load_file(tmp_path / "attention" / WEIGHTS)
    single = {
        k.replace("self_attn.q_proj", "block_sparse_moe.experts.0.w1"): v for k, v in tensors.items() if "q_proj" in k
    }
    save_file(single, tmp_path / "attention" / WEIGHTS, metadata={"format": "pt"})
    told = json.loads((tmp_path / "attention" / CONFIG).read_text())
    (tmp_path / "attention" / CONFIG).write_text(json.dumps({**told, "target_modules": ["w1"]}))
    with pytest.raises(AdapterError, match="single experts of a mixture-of-experts base"):
        radargate.compose(base(), {"a": tmp_path / "attention"})


def test_layers_of_an_older_layout_of_the_base_are_found(tmp_path):
    text = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "projection_dim": 8,
    }
    LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path / "b")

    def base():
        return LlavaForConditionalGeneration.from_pretrained(tmp_path / "b").eval()

    pattern = r".*language_model.*\.(q_proj|v_proj)"
    model = get_peft_model(base(), LoraConfig(r=2, target_modules=pattern, init_lora_weights=False))
    model.save_pretrained(tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    tensors = load_file(tmp_path / "new" / WEIGHTS)
    older = {k.replace("model.model.language_model.", "model.language_model.model."): v for k, v in tensors.items()}
    assert older.keys() != tensors.keys()
    save_file(older, tmp_path / "old" / WEIGHTS, metadata={"format": "pt"})
    ids = torch.arange(12)[None]
    with torch.no_grad():
        want = model.eval()(input_ids=ids).logits
        for name in ("new", "old"):
            ours = radargate.compose(base(), {"a": tmp_path / name}, gate="uniform").eval()
            torch.testing.assert_close(ours(input_ids=ids).logits, want, atol=1e-5, rtol=1e-5)


def test_notes_of_a_composition_are_logged(load_tiny, changed, caplog):
    with caplog.at_level("INFO", logger="radargate"):
        radargate.compose(load_tiny(), {"law": changed(RENAMES["DDP"])})
    assert "adapter 'law': 12 tensor names without what DDP puts into them." in caplog.text
