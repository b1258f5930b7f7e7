"""``radargate verify``: whatever byte of a bundle, its experts or its base changes, it is found and named."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import radargate
from radargate.cli import main
from radargate.composition.verify import verify
from radargate.errors import BundleError
from radargate.io import places
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining

WEIGHTS, CONFIG, LOCK = "adapter_model.safetensors", "adapter_config.json", "radargate.lock.json"


@pytest.fixture(scope="module")
def world(zoo, tasks, tmp_path_factory):
    """A base, adapters, and two trained bundles of them: one with its experts, one with gates only.

    Where they lie is noted apart: other tests know the same base in other places.
    """
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "cache_folder", lambda: root / "cache")
        yield build(root, zoo, tasks)


def build(root, zoo, tasks):
    shutil.copytree(zoo["llama"]["base"], root / "base")
    adapters = {name: str(shutil.copytree(path, root / name)) for name, path in zoo["llama"]["adapters"].items()}
    for name, gate_only in (("whole", False), ("gates", True)):
        options = GateTraining(steps=2, batch_size=2, max_length=64, dense_start=0.0)
        train_gates(str(root / "base"), adapters, str(tasks), root / name, options, gate_only=gate_only, device="cpu")
    return root


def changed(root, bundle):
    return [f for f in verify(root / bundle) if not f.ok]


@pytest.mark.parametrize("bundle", ["whole", "gates"])
def test_what_nobody_touched_is_as_it_was(world, bundle, capsys):
    findings = verify(world / bundle)
    assert all(f.ok for f in findings) and {"lock", "config", "weights", "base"} <= {f.part for f in findings}
    assert sum(f.part == "experts" for f in findings) == (3 if bundle == "gates" else 0)
    assert main(["verify", str(world / bundle)]) == 0 and "are as they were" in capsys.readouterr().out


FILES = {
    ("whole", f"whole/{WEIGHTS}"): WEIGHTS,
    ("whole", f"whole/{CONFIG}"): CONFIG,
    ("whole", f"whole/{LOCK}"): LOCK,
    ("whole", "base/model.safetensors"): "base: model.safetensors",
    ("whole", "base/config.json"): "base: config.json",
    ("whole", "base/tokenizer.json"): "base: tokenizer.json",
    ("gates", f"gates/{WEIGHTS}"): WEIGHTS,
    ("gates", f"law/{WEIGHTS}"): "law",
    ("gates", "base/model.safetensors"): "base: model.safetensors",
}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.sampled_from(sorted(FILES)), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(where=("whole", f"whole/{WEIGHTS}"), place=0.0, bit=0)
@example(where=("whole", f"whole/{WEIGHTS}"), place=0.9999, bit=7)
@example(where=("whole", f"whole/{LOCK}"), place=0.0, bit=3)
def test_any_flipped_bit_is_found_and_its_file_named(world, where, place, bit):
    bundle, name = where
    raw = (world / name).read_bytes()
    at = int(place * len(raw))
    try:
        (world / name).write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
        found = changed(world, bundle)
        assert found and any(FILES[where] in f.name for f in found), (at, found)
        assert all(f.words for f in found)
    finally:
        (world / name).write_bytes(raw)


@pytest.mark.parametrize("part", ["experts", "gate"])
def test_the_changed_tensor_is_named_with_its_layer(world, tmp_path, part, capsys):
    shutil.copytree(world / "whole", tmp_path / "b")
    tensors = load_file(tmp_path / "b" / WEIGHTS)
    mark = ".radar_bank." if part == "experts" else "softmax_theta"
    name = next(n for n in sorted(tensors) if mark in n and "layers.1" in n and tensors[n].any())
    tensors[name].view(-1)[-1] += 1
    save_file(tensors, tmp_path / "b" / WEIGHTS, metadata={"format": "pt"})
    found = [f for f in verify(tmp_path / "b") if not f.ok]
    assert [(f.part, f.name) for f in found] == [("weights", WEIGHTS), (part, name)]
    assert main(["verify", str(tmp_path / "b"), "--json"]) == 1
    assert sum(not f["ok"] for f in json.loads(capsys.readouterr().out)["findings"]) == 2


def test_missing_and_added_files_are_named(world, tmp_path):
    shutil.copytree(world / "base", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "other.safetensors")
    found = {
        f.name.rpartition(": ")[2]: f.words for f in verify(world / "whole", base=str(tmp_path / "base")) if not f.ok
    }
    assert "missing" in found["model.safetensors"] and "was not there" in found["other.safetensors"]
    shutil.copytree(world / "gates", tmp_path / "gates")
    (tmp_path / "gates" / WEIGHTS).unlink()
    assert any("is missing" in f.words for f in verify(tmp_path / "gates") if f.part == "weights")
    shutil.copytree(world / "law", tmp_path / "moved")
    found = verify(world / "gates", adapters={"law": str(tmp_path / "moved")})
    assert all(f.ok for f in found)


def test_without_a_lock_file_there_is_nothing_to_compare_with(world, tmp_path):
    shutil.copytree(world / "whole", tmp_path / "b")
    (tmp_path / "b" / LOCK).unlink()
    with pytest.raises(BundleError, match="to compare with"):
        verify(tmp_path / "b")


def test_a_bundle_that_was_composed_and_saved_is_compared_with_its_bases_fingerprint(zoo, load_tiny, tmp_path):
    radargate.compose(load_tiny(), zoo["llama"]["adapters"]).save_pretrained(tmp_path / "b")
    base = [f for f in verify(tmp_path / "b", base=str(zoo["llama"]["base"])) if f.part == "base"]
    assert base[0].ok and "64 values of each tensor" in base[0].words
    other = [f for f in verify(tmp_path / "b", base=str(zoo["gpt2"]["base"])) if f.part == "base"]
    assert not other[0].ok
