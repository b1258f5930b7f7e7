"""A composition is an honest PEFT model: off equals base, saved equals loaded, cached equals uncached, in any trainer."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

import fresh
import radargate
from conftest import NEEDED, adapters_for
from radargate.composition.card import NOT_STATED, add_scores, licence_of
from radargate.composition.composing import radar_layers
from radargate.errors import BundleError, OptionError, RadarGateError, UnknownNameError
from radargate.gates import GATES
from radargate.gates.rules import RULES
from sweeps import each

FAMILIES = ("llama", "gpt2", "t5")
NAMES = [*GATES.names(), *RULES.names()]


def compose(zoo, base, family="llama", **kwargs):
    gate = kwargs.get("gate", "radar")
    model = radargate.compose(base, adapters_for(zoo[family], gate), **{**NEEDED.get(gate, {}), **kwargs})
    turn(model)
    return model.eval()


def turn(model, std=0.3):
    """Move every gate away from its start, so that rotations turn."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * std


def inputs(family, batch=2, length=9, seed=0):
    ids = torch.randint(2, 250, (batch, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids} if family == "t5" else {"input_ids": ids}


@pytest.mark.parametrize(("gate", "family"), each(NAMES, FAMILIES))
@torch.no_grad()
def test_off_equals_the_base_bit_for_bit_and_on_differs(zoo, load_tiny, family, gate):
    base = load_tiny(family)(**inputs(family)).logits
    model = compose(zoo, load_tiny(family), family, gate=gate)
    assert (model(**inputs(family)).logits - base).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(model(**inputs(family)).logits, base)
    assert torch.equal(model.unload()(**inputs(family)).logits, base)


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_have_one_two_and_three_experts_and_only_gates_train(zoo, load_tiny, family):
    model = compose(zoo, load_tiny(family), family)
    assert {len(layer.entries["default"][1]["experts"]) for layer in radar_layers(model)} == {1, 2, 3}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".radar_gate." in name for name in trained)
    for layer in radar_layers(model):
        if len(layer.entries["default"][1]["experts"]) == 1:
            assert not list(layer.radar_gate["default"].parameters())


@torch.no_grad()
def test_zero_q_equals_stretch_exactly(zoo, load_tiny):
    radar = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="radar", seed=3)
    stretch = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="stretch", seed=3)
    torch.testing.assert_close(radar(**inputs("llama")).logits, stretch(**inputs("llama")).logits, atol=1e-6, rtol=0)
    for a, b in zip(radar_layers(radar), radar_layers(stretch), strict=True):
        x = torch.randn(4, a.entries["default"][1]["shape"][0])
        if len(a.entries["default"][1]["experts"]) > 1:
            assert torch.equal(a.gated(x, "default").weights, b.gated(x, "default").weights)


LOADED = """
import sys, torch, radargate
from radargate.base_models.loading import load_base
base, bundle, inputs, out = sys.argv[1:]
torch.set_num_threads(1)
model = radargate.load(base, bundle)
with torch.no_grad():
    torch.save(model(**torch.load(inputs, weights_only=True)).logits, out)
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_in_a_new_process_the_logits_are_equal(zoo, load_tiny, family, tmp_path):
    model = compose(zoo, load_tiny(family), family)
    model.save_pretrained(tmp_path / "bundle")
    torch.save(inputs(family), tmp_path / "inputs.pt")
    words = [str(zoo[family]["base"]), str(tmp_path / "bundle"), str(tmp_path / "inputs.pt"), str(tmp_path / "out.pt")]
    fresh.run("-c", LOADED, *words).check_returncode()
    with torch.no_grad():
        expected = model(**inputs(family)).logits
    assert (torch.load(tmp_path / "out.pt", weights_only=True) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_every_peft_way_of_loading_gives_the_same_model(zoo, load_tiny, tmp_path):
    model = compose(zoo, load_tiny())
    model.save_pretrained(tmp_path / "bundle")
    expected = model(**inputs("llama")).logits
    for loaded in (
        PeftModel.from_pretrained(load_tiny(), tmp_path / "bundle"),
        PeftModel.from_pretrained(load_tiny(), tmp_path / "bundle", low_cpu_mem_usage=True),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "bundle"),
        radargate.load(None, tmp_path / "bundle"),
    ):
        assert torch.equal(loaded.eval()(**inputs("llama")).logits, expected)
        assert not any(p.requires_grad for p in loaded.parameters())
    again = PeftModel.from_pretrained(load_tiny(), tmp_path / "bundle", is_trainable=True)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    plain = load_tiny()
    plain.load_adapter(str(tmp_path / "bundle"))
    assert torch.equal(plain(**inputs("llama")).logits, expected)


@torch.no_grad()
def test_two_bundles_live_side_by_side_without_touching_each_other(zoo, load_tiny, tmp_path):
    first = compose(zoo, load_tiny())
    expected = first(**inputs("llama")).logits
    first.save_pretrained(tmp_path / "one")
    names = {"law": zoo["llama"]["adapters"]["law"], "code": zoo["llama"]["adapters"]["code"]}
    other = radargate.compose(load_tiny(), names, gate="stretch", seed=5)
    turn(other)
    other.save_pretrained(tmp_path / "two")
    both = radargate.load(load_tiny(), tmp_path / "one")
    both.load_adapter(str(tmp_path / "two"), "second")
    assert torch.equal(both(**inputs("llama")).logits, expected)
    both.set_adapter("second")
    assert torch.equal(both(**inputs("llama")).logits, other.eval()(**inputs("llama")).logits)
    both.save_pretrained(tmp_path / "both")
    assert torch.equal(radargate.load(load_tiny(), tmp_path / "both")(**inputs("llama")).logits, expected)


@pytest.mark.parametrize(("gate", "family"), each(NAMES, FAMILIES))
@torch.no_grad()
def test_cached_generation_equals_uncached_and_batches_equal_single_rows(zoo, load_tiny, family, gate):
    model = compose(zoo, load_tiny(family), family, gate=gate)
    ids = inputs(family, batch=3, length=7)["input_ids"]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "min_new_tokens": 8}
    mask = torch.ones_like(ids)
    cached = model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(cached, model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **options))
    for row, expected in zip(ids, cached, strict=True):
        assert torch.equal(
            model.generate(input_ids=row[None], attention_mask=torch.ones(1, 7, dtype=torch.long), **options)[0],
            expected,
        )


@torch.no_grad()
def test_left_and_right_padding_agree(zoo, load_tiny):
    model, ids = compose(zoo, load_tiny()), inputs("llama", batch=1, length=6)["input_ids"]
    plain = model(input_ids=ids).logits
    zeros, ones = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 6, dtype=torch.long)
    left = model(
        input_ids=torch.cat([zeros, ids], 1),
        attention_mask=torch.cat([zeros, ones], 1),
        position_ids=torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4, 5]]),
    ).logits[:, 3:]
    right = model(input_ids=torch.cat([ids, zeros], 1), attention_mask=torch.cat([ones, zeros], 1)).logits[:, :6]
    torch.testing.assert_close(left, plain, atol=2e-5, rtol=0)
    torch.testing.assert_close(right, plain, atol=2e-5, rtol=0)


def test_gradient_checkpointing_gives_the_same_gradients(zoo, load_tiny):
    found = []
    for checkpointing in (False, True):
        model = compose(zoo, load_tiny()).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(**inputs("llama"), labels=inputs("llama")["input_ids"]).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(bool(g.any()) for g in found[0].values())
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_gates_stay_float32_under_bfloat16_bases_and_autocast(zoo, load_tiny):
    for model in (compose(zoo, load_tiny(dtype=torch.bfloat16)), compose(zoo, load_tiny()).to(torch.bfloat16)):
        layer = radar_layers(model)[0]
        x = torch.randn(3, 24, dtype=torch.bfloat16)
        assert layer.gated(x, "default").weights.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.update(x, "default").dtype == torch.float32
        assert model(**inputs("llama")).logits.dtype == torch.bfloat16
    assert all(
        p.dtype == torch.float32
        for n, p in compose(zoo, load_tiny(dtype=torch.bfloat16)).named_parameters()
        if "radar_gate" in n
    )


@torch.no_grad()
def test_experts_are_masked_and_scaled_for_a_block_or_a_call_without_global_state(zoo, load_tiny):
    model = compose(zoo, load_tiny(), top_k=None)
    plain = model(**inputs("llama")).logits
    with radargate.using(model, experts={"math": 0.0, "law": 0.0}):
        masked = model(**inputs("llama")).logits
    alone = radargate.compose(load_tiny(), {"code": zoo["llama"]["adapters"]["code"]}, gate="uniform", top_k=1)
    layer = radar_layers(model)[0]
    with radargate.using(model, {"math": 0.0}):
        weights = layer.gated(torch.randn(5, 24), "default").weights
    torch.testing.assert_close(weights[:, 0], torch.zeros(5))
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    assert torch.equal(model(**inputs("llama")).logits, plain), "the block leaves nothing behind"
    assert torch.equal(model(**inputs("llama"), experts={"math": 0.0, "law": 0.0}).logits, masked)
    off = model(**inputs("llama"), experts={"math": 0.0, "law": 0.0, "code": 0.0}).logits
    assert torch.equal(off, load_tiny()(**inputs("llama")).logits)
    assert not torch.equal(alone(**inputs("llama")).logits, plain)
    seen = {}

    def ask(name, factor):
        with torch.no_grad(), radargate.using(model, {"law": factor}):
            for _ in range(5):
                seen.setdefault(name, []).append(model(**inputs("llama")).logits)

    expected = {}
    for name, factor in (("a", 0.0), ("b", 2.0)):
        with radargate.using(model, {"law": factor}):
            expected[name] = model(**inputs("llama")).logits
    threads = [threading.Thread(target=ask, args=pair) for pair in (("a", 0.0), ("b", 2.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(logits, expected[name]) for name in seen for logits in seen[name])
    for wrong, message in (
        ({"maths": 1.0}, "Did you mean 'math'"),
        ({"math": -1.0}, "at least 0"),
        ({"math": float("nan")}, "finite"),
    ):
        with pytest.raises(OptionError, match=message), radargate.using(model, wrong):
            pass


def test_merging_is_refused_with_a_reason(zoo, load_tiny):
    model = compose(zoo, load_tiny())
    for call in (model.merge_and_unload, model.merge_adapter, radar_layers(model)[0].merge):
        with pytest.raises(RadarGateError, match="cannot be merged"):
            call()


@pytest.mark.parametrize("damage", ["missing", "extra", "misshaped", "bank", "flipped", "config", "other base"])
def test_damaged_bundles_raise_instead_of_loading_as_zeros(zoo, load_tiny, tmp_path, damage):
    bundle = tmp_path / "bundle"
    compose(zoo, load_tiny()).save_pretrained(bundle)
    file = bundle / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(name for name in tensors if name.endswith("softmax_theta"))
    if damage == "missing":
        del tensors[first]
    elif damage == "extra":
        tensors["base_model.model.extra.radar_gate.softmax_theta"] = torch.zeros(2)
    elif damage == "misshaped":
        tensors[first] = tensors[first][:, :3].contiguous()
    elif damage == "bank":
        tensors = {name: t for name, t in tensors.items() if "radar_bank" not in name}
    elif damage == "flipped":
        tensors[first][0, 0] += 1
    elif damage == "config":
        config = json.loads((bundle / "adapter_config.json").read_text())
        (bundle / "adapter_config.json").write_text(json.dumps({**config, "top_k": 1}))
    save_file(tensors, file)
    base = load_tiny()
    if damage == "other base":
        with torch.no_grad():
            base.lm_head.weight[0, 0] += 1
    with pytest.raises(BundleError):
        radargate.load(base, bundle)
    if damage in ("missing", "extra", "misshaped", "bank"):
        with pytest.raises(BundleError, match=r"unexpected|no tensor|another shape"):
            PeftModel.from_pretrained(load_tiny(), bundle)


def test_names_and_options_that_cannot_work_say_so_before_anything_is_loaded(zoo, load_tiny):
    adapters = zoo["llama"]["adapters"]
    with pytest.raises(UnknownNameError, match="Did you mean 'radar'"):
        radargate.compose("no/such-model", adapters, gate="rader")
    with pytest.raises(UnknownNameError, match="Unknown architecture"):
        radargate.compose("no/such-model", adapters, architecture="mol")
    with pytest.raises(OptionError, match="rotation_rank"):
        radargate.compose("no/such-model", adapters, rotation_ranks=3)
    with pytest.raises(OptionError, match="top_k is 4, expected 1 to 3"):
        radargate.compose("no/such-model", adapters, top_k=4)
    with pytest.raises(OptionError, match="circle"):
        radargate.compose("no/such-model", adapters, gate_input="rotated", reference="selected")
    with pytest.raises(OptionError, match="temperature"):
        radargate.compose("no/such-model", adapters, temperature=-1.0)
    with pytest.raises(OptionError, match="unrotated"):
        radargate.compose("no/such-model", adapters, rotate_output=False)


def test_a_config_is_not_changed_by_the_model_it_makes(zoo, load_tiny):
    model = compose(zoo, load_tiny())
    config = model.peft_config["default"]
    other = get_peft_model(load_tiny(), config)
    assert len(other.peft_config["default"].sites) == len(config.sites)


def trained(model, family, folder, rows=16):
    ids = torch.randint(2, 250, (rows, 9), generator=torch.Generator().manual_seed(0))
    args = TrainingArguments(
        folder,
        max_steps=4,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        save_steps=2,
        learning_rate=5e-3,
        seed=0,
    )
    return Trainer(model, args, train_dataset=[{"input_ids": row, "labels": row} for row in ids])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_unchanged_trainer_trains_saves_and_resumes(zoo, load_tiny, family, tmp_path):
    model = radargate.compose(load_tiny(family), zoo[family]["adapters"])
    trained(model, family, tmp_path).train()
    model.eval()
    with torch.no_grad():
        expected = model(**inputs(family)).logits
        assert torch.equal(
            radargate.load(load_tiny(family), tmp_path / "checkpoint-4")(**inputs(family)).logits, expected
        )
    other = radargate.compose(load_tiny(family), zoo[family]["adapters"])
    trained(other, family, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with torch.no_grad():
        assert torch.equal(other.eval()(**inputs(family)).logits, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trls_sft_trainer_takes_a_composition(zoo, load_tiny, family, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from radargate.base_models.loading import load_tokenizer

    model = radargate.compose(load_tiny(family), zoo[family]["adapters"])
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    args = trl.SFTConfig(
        str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        learning_rate=1e-2,
        bf16=False,
        gradient_checkpointing=False,
    )
    rows = Dataset.from_list([{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(12)])
    trl.SFTTrainer(model, args, train_dataset=rows, processing_class=load_tokenizer(str(zoo[family]["base"]))).train()
    assert all(
        not torch.equal(p.detach(), start[n]) for n, p in model.named_parameters() if n in start and "down" not in n
    )
    model.save_pretrained(tmp_path / "bundle")
    with torch.no_grad():
        expected = model.eval()(**inputs(family)).logits
        assert torch.equal(radargate.load(load_tiny(family), tmp_path / "bundle")(**inputs(family)).logits, expected)


def test_a_bundle_says_what_it_is(zoo, load_tiny, tmp_path):
    compose(zoo, load_tiny()).save_pretrained(tmp_path / "bundle")
    card, lock = (
        (tmp_path / "bundle" / "README.md").read_text(),
        json.loads((tmp_path / "bundle" / "radargate.lock.json").read_text()),
    )
    assert "import radargate" in card and "| law |" in card and "Licence of the base: not stated" in card
    assert ".tmp" not in card, "no folder that the bundle was only written in"
    assert set(lock["experts"]) == {"math", "law", "code"} and len(lock["files"]) == 2
    assert Path(tmp_path / "bundle" / "adapter_config.json").stat().st_size < 20_000


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: mit\n---\nwords", "mit"),
        ("---\ntags: [a]\n---\nlicense: mit", NOT_STATED),
        ("license: mit", NOT_STATED),
        ("---\nlicense: <script>\n---", NOT_STATED),
    ],
)
def test_a_card_repeats_the_licences_that_are_stated(text, licence, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert licence_of(str(tmp_path)) == licence
    assert licence_of("") == NOT_STATED and licence_of("smollm2-135m") == "Apache-2.0"


def test_scores_stand_once_in_a_card(tmp_path):
    add_scores(tmp_path, "| a |", "10 rows.")
    assert not (tmp_path / "README.md").exists()
    (tmp_path / "README.md").write_text("# A bundle\n")
    add_scores(tmp_path, "| old |", "10 rows.")
    add_scores(tmp_path, "| new |", "20 rows.")
    assert (tmp_path / "README.md").read_text() == "# A bundle\n\n## Scores\n\n| new |\n\n20 rows.\n"


@torch.no_grad()
def test_a_bundle_with_gates_only_finds_its_experts_and_takes_no_others(zoo, load_tiny, tmp_path):
    model = compose(zoo, load_tiny())
    expected = model(**inputs("llama")).logits
    radargate.composition.composing.radar_config(model).gate_only = True
    model.save_pretrained(tmp_path / "gates")
    assert not any("radar_bank" in name for name in load_file(tmp_path / "gates" / "adapter_model.safetensors"))
    assert torch.equal(radargate.load(load_tiny(), tmp_path / "gates")(**inputs("llama")).logits, expected)
    with pytest.raises(BundleError, match=r"gates only\. Load it with radargate\.load"):
        PeftModel.from_pretrained(load_tiny(), tmp_path / "gates")
    with pytest.raises(BundleError, match=r"'law' at .* is not the one"):
        radargate.load(load_tiny(), tmp_path / "gates", adapters={"law": zoo["llama"]["adapters"]["math"]})


def test_a_bundle_that_is_saved_again_still_states_licences(zoo, load_tiny, tmp_path):
    adapter = tmp_path / "law"
    shutil.copytree(zoo["llama"]["adapters"]["law"], adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    own = {key: 1.25 * value for key, value in weights.items()}  # an adapter is found again by its hash
    save_file(own, adapter / "adapter_model.safetensors")
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n")
    radargate.compose(load_tiny(), {"law": adapter}, gate="uniform", top_k=1).save_pretrained(tmp_path / "one")
    radargate.load(load_tiny(), tmp_path / "one").save_pretrained(tmp_path / "two")
    for bundle in ("one", "two"):
        assert "| law |  | mit |" in (tmp_path / bundle / "README.md").read_text(), bundle
