"""Checkpoints as they are saved, whole and in part."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from radargate.base_models.loading import load_base
from radargate.cli import main
from radargate.errors import BaseModelError


def without(zoo, tmp_path, family: str, *lost: str):
    """A copy of a tiny base whose weights file lacks some parameters."""
    import shutil

    folder = tmp_path / "part"
    shutil.copytree(zoo[family]["base"], folder)
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if k not in lost}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_checkpoint_that_lacks_parameters_is_refused_by_their_names(zoo, tmp_path):
    folder = without(zoo, tmp_path, "llama", "lm_head.weight")
    with pytest.raises(BaseModelError, match=r"lacks 1 parameters of LlamaForCausalLM, the first is lm_head.weight"):
        load_base(str(folder))


def test_tied_parameters_are_not_missed(zoo):
    assert load_base(str(zoo["gpt2"]["base"])).get_output_embeddings().weight.isfinite().all()


def test_a_layer_that_is_missing_is_named(zoo, tmp_path):
    folder = without(zoo, tmp_path, "llama", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(BaseModelError, match=r"the first is model.layers.1.mlp.up_proj.weight"):
        load_base(str(folder))


def test_a_bare_backbone_is_named_as_one(zoo, load_tiny, tmp_path, capsys):
    load_tiny().model.save_pretrained(tmp_path / "bare")
    adapter = zoo["llama"]["adapters"]["law"]
    assert main(["doctor", str(tmp_path / "bare"), str(adapter)]) == 1
    assert "a bare backbone without the head" in capsys.readouterr().out
    told = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps({**told, "architectures": ["LlamaForCausalLM"]}))
    torch.manual_seed(0)
    assert main(["doctor", str(tmp_path / "bare"), str(adapter)]) == 1
    assert "lm_head.weight" in capsys.readouterr().err
