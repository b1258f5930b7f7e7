"""A saved bundle names nothing of the machine that made it, and is found again on that machine."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, pipeline

import radargate
from conftest import tiny_tokenizer
from radargate.cli import main
from radargate.composition.verify import verify
from radargate.errors import BundleError, OptionError, RadarGateError
from radargate.io.places import public_name

IDS = torch.arange(12)[None]


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine of its own: where it has seen bases and adapters is in its cache folder."""
    monkeypatch.setenv("RADARGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def composed(zoo, folder, gate_only: bool = False):
    model = radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"], gate="stretch").eval()
    model.peft_config["default"].gate_only = gate_only
    model.save_pretrained(folder)
    return model


def texts(folder) -> str:
    names = ("README.md", "adapter_config.json", "radargate.lock.json", "record.json")
    return "".join((folder / name).read_text() for name in names if (folder / name).exists())


def test_no_path_is_in_card_config_lock_or_record(zoo, tasks, tmp_path):
    composed(zoo, tmp_path / "bundle")
    words = ["train", str(zoo["llama"]["base"]), *map(str, zoo["llama"]["adapters"].values()), "--data", str(tasks)]
    assert main([*words, "--steps", "1", "--out", str(tmp_path / "trained")]) == 0
    for folder in (tmp_path / "bundle", tmp_path / "trained"):
        found = texts(folder)
        assert str(zoo["llama"]["base"].parent) not in found
        assert str(tmp_path) not in found
        assert "tiny-llama" in found


@torch.no_grad()
def test_every_way_of_loading_finds_the_base_on_this_machine(zoo, tmp_path):
    want = composed(zoo, tmp_path / "bundle")(IDS).logits
    shutil.move(tmp_path / "bundle", tmp_path / "moved")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    bundle = str(tmp_path / "moved")
    ways = {
        "radargate.load": radargate.load(None, bundle),
        "AutoModel": AutoModelForCausalLM.from_pretrained(bundle),
        "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained(bundle),
        "pipeline": pipeline("text-generation", model=bundle, tokenizer=str(tmp_path / "tokenizer")).model,
    }
    for name, model in ways.items():
        assert torch.allclose(model.eval()(IDS).logits, want, atol=1e-5), name


@torch.no_grad()
def test_gates_alone_find_their_experts_by_hash(zoo, tmp_path, machine):
    want = composed(zoo, tmp_path / "bundle", gate_only=True)(IDS).logits
    assert torch.equal(radargate.load(None, tmp_path / "bundle").eval()(IDS).logits, want)
    assert all(finding.ok for finding in verify(tmp_path / "bundle"))
    shutil.rmtree(machine)
    base = str(zoo["llama"]["base"])
    with pytest.raises(BundleError, match=r"nobody knows here where expert 'math' lies.*adapters="):
        radargate.load(base, tmp_path / "bundle")
    model = radargate.load(base, tmp_path / "bundle", adapters=zoo["llama"]["adapters"])
    assert torch.equal(model.eval()(IDS).logits, want)


def test_another_machine_is_told_to_give_the_base(zoo, tmp_path, machine):
    composed(zoo, tmp_path / "bundle")
    shutil.rmtree(machine)
    with pytest.raises(RadarGateError, match="tiny-llama"):
        radargate.load(None, tmp_path / "bundle")
    radargate.load(str(zoo["llama"]["base"]), tmp_path / "bundle")
    radargate.load(None, tmp_path / "bundle")  # known from here on


def test_a_cache_that_cannot_be_written_is_no_fault(zoo, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RADARGATE_CACHE", str(tmp_path / "file"))
    composed(zoo, tmp_path / "bundle")
    assert "tiny-llama" in texts(tmp_path / "bundle")


def test_names_that_are_no_folders_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    names = {
        "org/name": "org/name",
        "gpt2": "gpt2",
        "org/here": "here",
        str(tmp_path): tmp_path.name,
        None: None,
        "": "",
    }
    assert {name: public_name(name) for name in names} == names


@pytest.mark.parametrize("name", ["v1.5", "", "../up"])
def test_a_composition_whose_name_no_module_can_have_is_one_line(zoo, name):
    with pytest.raises(OptionError, match="expected a text without a dot"):
        radargate.compose("no/such/base", zoo["llama"]["adapters"], adapter_name=name)


def test_numbers_may_be_names(zoo, load_tiny):
    first, second, _ = zoo["llama"]["adapters"].values()
    model = radargate.compose(load_tiny(), {1: first, 2: second}, gate="uniform").eval()
    with torch.no_grad():
        before = model(IDS).logits
        with radargate.using(model, {1: 0.0}):
            assert not torch.equal(model(IDS).logits, before)
