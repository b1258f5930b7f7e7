"""Adapters from strangers: good ones become banks bit for bit, bad ones are refused with a reason and run nothing."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import radargate
from conftest import RANKS, make_adapter
from radargate.cli import main
from radargate.errors import AdapterError, InactiveExpertError, RadarGateError
from radargate.experts import files
from radargate.experts.adapters import base_sites, read_adapter
from radargate.experts.bank import load_bank, write_expert
from radargate.experts.doctor import examine
from radargate.experts.files import WeightsFile
from radargate.io import records
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def edit_config(folder: Path, **changes) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))
    return folder


def edit_tensors(folder: Path, change) -> Path:
    save_file({k: change(k, v).contiguous() for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


def with_header(folder: Path, header: dict | bytes, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return folder


class Boom:
    """Leaves a mark where unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def half(folder: Path) -> Path:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[: len(raw) // 2])
    return folder


def only_pickle(folder: Path, mark: Path) -> Path:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Boom(mark)))
    return folder


def pickle_in_disguise(folder: Path, mark: Path) -> Path:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Boom(mark)))
    return folder


def rename(folder: Path, old: str, new: str) -> Path:
    save_file({k.replace(old, new): v for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


BAD = {
    "zero B": (lambda f, m: edit_tensors(f, lambda k, v: v * 0 if "lora_B" in k else v), "changes nothing"),
    "NaN": (lambda f, m: edit_tensors(f, lambda k, v: v * float("nan") if "v_proj" in k else v), "NaN or infinite"),
    "truncated": (lambda f, m: half(f), "cut off"),
    "only a pickle": (only_pickle, "pickled file, which can run code"),
    "pickle in disguise": (pickle_in_disguise, "pickle or zip archive under a safetensors name"),
    "no weights": (lambda f, m: (f / WEIGHTS).unlink() or f, f"no {WEIGHTS}"),
    "header bomb": (
        lambda f, m: (f / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + b"{}") and f,
        "announces a header of",
    ),
    "header too deep": (lambda f, m: with_header(f, b"[" * 100_000), "not valid JSON"),
    "duplicate key": (lambda f, m: with_header(f, b'{"a": 1, "a": 2}'), "stands twice"),
    "overlap": (
        lambda f, m: with_header(f, {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"0000"),
        "starts at byte 0, expected 4",
    ),
    "shape overflow": (
        lambda f, m: with_header(
            f, {"a": {"dtype": "F32", "shape": [1 << 35, 1 << 35], "data_offsets": [0, 4]}}, b"0000"
        ),
        "needs",
    ),
    "r = 10^9": (lambda f, m: edit_config(f, r=10**9), "r = 1000000000, expected a whole number"),
    "rank mismatch": (lambda f, m: edit_config(f, r=5), "config.json says 5|says 5"),
    "unknown layer": (
        lambda f, m: rename(edit_config(f, target_modules=["q_proj", "v_proj", "z_proj"]), "v_proj", "z_proj"),
        "not linear layers",
    ),
    "no such target": (lambda f, m: edit_config(f, target_modules=["o_proj"]), "target_modules .* does not name"),
    "DoRA": (lambda f, m: edit_config(f, use_dora=True), "DoRA rescales the base weights"),
    "PiSSA": (
        lambda f, m: edit_config(f, init_lora_weights="pissa_niter_4"),
        "loading such an adapter changes the base",
    ),
    "CorDA": (lambda f, m: edit_config(f, init_lora_weights="corda"), "loading such an adapter changes the base"),
    "OLoRA": (lambda f, m: edit_config(f, init_lora_weights="olora"), "loading such an adapter changes the base"),
    "LoftQ": (lambda f, m: edit_config(f, init_lora_weights="loftq"), "loading such an adapter changes the base"),
    "bias": (lambda f, m: edit_config(f, bias="lora_only"), "bias='none'"),
    "lora_bias": (lambda f, m: edit_config(f, lora_bias=True), "lora_bias"),
    "modules_to_save": (lambda f, m: edit_config(f, modules_to_save=["lm_head"]), "replaces whole modules"),
    "new tokens": (lambda f, m: edit_config(f, trainable_token_indices=[1]), "token embeddings"),
    "replication": (lambda f, m: edit_config(f, layer_replication=[[0, 1]]), "number of layers"),
    "parameters": (lambda f, m: edit_config(f, target_parameters=["a"]), "bare parameters"),
    "aLoRA": (lambda f, m: edit_config(f, alora_invocation_tokens=[1]), "invocation"),
    "future field": (lambda f, m: edit_config(f, use_hyperlora=3), "use_hyperlora"),
    "not LoRA": (lambda f, m: edit_config(f, peft_type="IA3"), "expected 'LORA'"),
    "regex bomb": (lambda f, m: edit_config(f, target_modules="(.*a+)+b"), "repeat inside a repeat"),
    "bad JSON": (lambda f, m: (f / CONFIG).write_text("{") and f, "not valid JSON"),
    "no config": (lambda f, m: (f / CONFIG).unlink() or f, "does not exist"),
    "embedding": (lambda f, m: rename(f, "lora_A.weight", "lora_embedding_A"), "embeddings are not supported"),
    "A alone": (
        lambda f, m: (save_file({k: v for k, v in load_file(f / WEIGHTS).items() if "lora_A" in k}, f / WEIGHTS), f)[1],
        "alone",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_doctor_refuses_bad_adapters_on_one_line_and_runs_nothing(case, zoo, tmp_path, capfd):
    mark = tmp_path / "executed"
    good = zoo["llama"]["adapters"]["math"]
    change, message = BAD[case]
    folder = change(copy(good, tmp_path / "bad"), mark)
    assert main(["doctor", str(zoo["llama"]["base"]), f"fine={good}", f"mine={folder}"]) == 1
    out, err = capfd.readouterr()
    line = next(line for line in out.splitlines() if line.startswith("mine"))
    assert "BAD" in line
    assert re.search(message, line), line
    assert "Traceback" not in out + err
    assert not mark.exists(), "something in the file was executed"
    with pytest.raises(RadarGateError, match="'mine'"):
        radargate.compose(str(zoo["llama"]["base"]), {"fine": good, "mine": folder})


def test_doctor_accepts_ranks_targets_and_rslora_and_measures_their_effect(zoo, tmp_path, capsys):
    base, adapters = zoo["llama"]["base"], dict(zoo["llama"]["adapters"])
    adapters["wide"] = make_adapter(base, tmp_path / "r16", 5, r=16, lora_alpha=32, target_modules="all-linear")
    words = [f"{name}={path}" for name, path in adapters.items()]
    assert main(["doctor", str(base), *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["adapters"]
    assert [a["ok"] for a in found] == [True] * 4
    assert [a["ranks"] for a in found] == [[4], [8], [3], [16]]
    assert found[2]["scales"] == [pytest.approx(8 / 3**0.5, abs=1e-5)]
    assert all(a["effect"] > 0 for a in found)
    assert found[3]["modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_doctor_names_the_width_of_a_wrong_base(zoo, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=258,
        )
    )
    other.save_pretrained(tmp_path / "wide")
    problem = examine(str(tmp_path / "wide"), zoo["llama"]["adapters"])[0].problem
    assert "maps 24 to 24" in problem and "maps 32 to 32" in problem
    problem = examine(str(zoo["gpt2"]["base"]), zoo["llama"]["adapters"])[0].problem
    assert "matches no linear layer" in problem


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_an_expert_is_written_back_bit_equal_and_plain_peft_loads_it(zoo, tmp_path, load_tiny, family):
    adapters = zoo[family]["adapters"]
    bank = load_bank(adapters, load_tiny(family))
    for name, source in adapters.items():
        write_expert(bank, name, tmp_path / name)
        before, after = load_file(Path(source) / WEIGHTS), load_file(tmp_path / name / WEIGHTS)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
    model = radargate.load(None, saved(load_tiny(family), adapters, tmp_path / "bundle"))
    write_expert(radargate.expert_bank(model), "law", tmp_path / "again")
    assert all(
        torch.equal(v, load_file(tmp_path / "again" / WEIGHTS)[k])
        for k, v in load_file(Path(adapters["law"]) / WEIGHTS).items()
    )
    assert PeftModel.from_pretrained(load_tiny(family), tmp_path / "again")


def saved(base, adapters, folder: Path) -> Path:
    radargate.compose(base, adapters).save_pretrained(folder)
    return folder


def test_half_precision_experts_keep_their_bits_beside_wider_ones(zoo, tmp_path, load_tiny):
    folders = {}
    for i, dtype in enumerate((torch.float16, torch.bfloat16, torch.float32)):
        folder = copy(zoo["llama"]["adapters"]["math"], tmp_path / str(i))
        folders[str(i)] = edit_tensors(folder, lambda k, v, d=dtype: v.to(d))
    bank = load_bank(folders, load_tiny())
    assert next(iter(bank.sites.values())).A.dtype == torch.float32
    for name, folder in folders.items():
        write_expert(bank, name, tmp_path / f"out{name}")
        before, after = load_file(folder / WEIGHTS), load_file(tmp_path / f"out{name}" / WEIGHTS)
        assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
    assert next(iter(load_bank({"0": folders["0"]}, load_tiny()).sites.values())).A.dtype == torch.float16


def test_rank_and_alpha_patterns_give_pefts_own_output(zoo, tmp_path, load_tiny):
    folder = make_adapter(
        zoo["llama"]["base"],
        tmp_path / "p",
        3,
        r=4,
        lora_alpha=8,
        target_modules=r".*\.(q_proj|v_proj|up_proj)",
        rank_pattern={"q_proj": 6},
        alpha_pattern={r"layers\.1\..*v_proj": 40},
        layers_to_transform=None,
    )
    ids = torch.randint(2, 250, (2, 9))
    with torch.no_grad():
        ours = radargate.compose(load_tiny(), {"p": folder}, gate="uniform", top_k=1)(ids).logits
        theirs = PeftModel.from_pretrained(load_tiny(), folder)(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    sites = read_adapter("p", folder).sites
    assert {s.rank for s in sites.values()} == {4, 6}
    assert {s.scale for s in sites.values()} == {2.0, 8 / 6, 10.0}


def test_inactive_experts_stop_a_composition_unless_allowed(zoo, tmp_path, load_tiny):
    silent = edit_tensors(
        copy(zoo["llama"]["adapters"]["math"], tmp_path / "s"), lambda k, v: v * 0 if "lora_B" in k else v
    )
    with pytest.raises(InactiveExpertError, match="'silent' changes nothing"):
        radargate.compose(load_tiny(), {"a": zoo["llama"]["adapters"]["law"], "silent": silent})
    assert radargate.compose(load_tiny(), {"a": zoo["llama"]["adapters"]["law"], "silent": silent}, allow_inactive=True)
    with pytest.raises(InactiveExpertError, match="matches no linear layer"):
        radargate.compose(load_tiny("gpt2"), {"a": zoo["llama"]["adapters"]["law"]}, top_k=1)


def test_missing_adapters_and_double_names_are_explained(zoo, load_tiny, tmp_path):
    with pytest.raises(AdapterError, match=r"does not exist\. Give a folder or a Hub id"):
        read_adapter("a", tmp_path / "nowhere")
    with pytest.raises(AdapterError, match="is a file, expected a folder"):
        read_adapter("a", zoo["llama"]["adapters"]["math"] / WEIGHTS)
    with pytest.raises(AdapterError, match="can be reached"):
        read_adapter("a", "someone/nothing")
    with pytest.raises(AdapterError, match="no adapter was given"):
        radargate.compose(load_tiny(), {}, top_k=None)


def test_a_peft_models_own_loras_serve_as_experts(zoo, load_tiny):
    adapters = zoo["llama"]["adapters"]
    peft_model = PeftModel.from_pretrained(load_tiny(), adapters["math"], adapter_name="math")
    peft_model.load_adapter(adapters["law"], "law")
    ids = torch.randint(2, 250, (2, 9))
    with torch.no_grad():
        ours = radargate.compose(peft_model, {"code": adapters["code"]}, gate="uniform")(ids).logits
        expected = radargate.compose(load_tiny(), {n: adapters[n] for n in ("math", "law", "code")}, gate="uniform")(
            ids
        ).logits
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_base_sites_need_no_weights_and_know_conv1d(zoo):
    from radargate.base_models.loading import meta_base

    sites = base_sites(meta_base(str(zoo["gpt2"]["base"])))
    assert (sites["transformer.h.0.attn.c_attn"].d_in, sites["transformer.h.0.attn.c_attn"].d_out) == (24, 72)


def test_every_refused_lora_form_is_one_that_peft_can_make(load_tiny, tmp_path):
    for name, change in {
        "dora": {"use_dora": True},
        "pissa": {"init_lora_weights": "pissa"},
        "olora": {"init_lora_weights": "olora"},
        "bias": {"bias": "all"},
        "lora_bias": {"lora_bias": True},
    }.items():
        model = get_peft_model(load_tiny(), LoraConfig(r=2, target_modules=["q_proj"], **change))
        model.save_pretrained(tmp_path / name)
        with pytest.raises(AdapterError):
            read_adapter(name, tmp_path / name)


def test_the_zoo_has_the_unequal_ranks_the_tests_rely_on(zoo):
    assert [next(iter(read_adapter(n, p).sites.values())).rank for n, p in zoo["t5"]["adapters"].items()] == list(RANKS)


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path):
    """The first byte of a length of 0x80 modulo 256: one file in 32 has it."""
    path = tmp_path / WEIGHTS
    for padding in range(64):
        save_file({"base_model.model.a.lora_A.weight": torch.zeros(1, 2)}, path, metadata={"note": "x" * 8 * padding})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert list(WeightsFile(path).tensors) == ["base_model.model.a.lora_A.weight"]


def test_training_opens_each_adapter_file_once(zoo, tasks, tmp_path, monkeypatch):
    opened: list[str] = []

    def noting(path, *args, **kwargs):
        opened.append(str(path))
        return open(path, *args, **kwargs)

    for module in (files, records):
        monkeypatch.setattr(module, "open", noting, raising=False)
    adapters = zoo["llama"]["adapters"]
    options = GateTraining(steps=1, batch_size=2)
    train_gates(str(zoo["llama"]["base"]), adapters, str(tasks), tmp_path / "bundle", options)
    for folder in adapters.values():
        assert opened.count(str(folder / WEIGHTS)) == 1
