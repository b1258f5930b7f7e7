"""``radargate vllm`` as its users meet it: OpenAI's own client, what is refused, and each bad input in one line before memory is taken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("vllm.engine", reason="vLLM is not installed here: make test-vllm")

import httpx
import openai

import tiny_models
from vllm_answers import with_transformers

COMMAND = [sys.executable, "-m", "radargate.cli", "vllm"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    base = tiny_models.save_base("llama", root / "llama")
    adapters = tiny_models.save_adapters(base, root / "adapters")
    bundle = tiny_models.save_bundle(base, adapters, root / "my-bundle", router="text")
    other = tiny_models.save_base("qwen2", root / "qwen2")
    return root, base, bundle, other


@pytest.fixture(scope="module")
def url(made):
    """A running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--port", str(port), "--host", "127.0.0.1", "--enforce-eager", "--max-model-len", "512"]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(made[0] / "server.log", "w") as log:
        process = subprocess.Popen([*COMMAND, str(made[2]), *flags], stdout=log, stderr=log, env=environment)
    try:
        for _ in range(1200):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                assert process.poll() is None, (made[0] / "server.log").read_text()[-3000:]
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def test_openais_client_gets_the_products_answers(made, url):
    _, base, bundle, _ = made
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["my-bundle"]
    prompt = [40, 41, 42, 43]
    [(expected, _)] = with_transformers(base, bundle, [prompt], 12)
    answer = client.completions.create(
        model="my-bundle", prompt=prompt, max_tokens=12, temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )  # fmt: skip
    assert answer.choices[0].token_ids == expected


def test_factors_of_a_request_are_refused(url):
    body = {"model": "my-bundle", "prompt": "a", "max_tokens": 1, "experts": {"law": 0}}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400 and "ask radargate serve" in answer.json()["error"]["message"]
    del body["experts"]
    body["prompt"] = 'a text that says "experts"'
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200


def refused(*words) -> str:
    """What the command says, and ends with 1; nothing of vLLM's or Python's stands behind it."""
    ended = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=300)
    line = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1 and line.startswith("radargate: error: "), ended.stderr
    assert "Traceback" not in ended.stderr
    return line


def test_bad_bundles_and_bases(made, tmp_path):
    _, base, bundle, other = made
    assert "has no adapter_config.json" in refused(base)
    assert "other weights" in refused("--base", other, bundle)
    changed = tmp_path / "changed"
    subprocess.run(["cp", "-r", bundle, changed], check=True)
    weights = bytearray((changed / "adapter_model.safetensors").read_bytes())
    weights[-3] ^= 1
    (changed / "adapter_model.safetensors").write_bytes(weights)
    assert "differs from its lock file" in refused(changed)
    assert "one bundle a server" in refused(bundle, bundle)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pipeline-parallel-size", "2"], "pipeline_parallel_size is 2"),
        (["--enable-prompt-embeds"], "no tokens to route by"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--max-model-len", "100000"], "100000"),
    ],
)
def test_flags_that_cannot_be(made, flags, words):
    assert words in refused(made[2], *flags)
