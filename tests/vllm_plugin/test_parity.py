"""vLLM with a bundle gives the tokens of the product's own path, whatever vLLM does with prompts in between."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm.engine", reason="vLLM is not installed here: make test-vllm")

import tiny_models
from vllm_answers import assert_same, close, engine, largest_difference, prompts, with_transformers, with_vllm

PROMPTS = {"enable_prefix_caching": False, "logits_processors": ["radargate.vllm.prompts:ReadsPrompts"]}
KINDS = {
    "stretch": {"gate": "stretch"},
    "radar": {},
    "router": {"router": "text"},
    "prompt": {"router": "prompt"},
    "select": {"gate": "select", "examples": tiny_models.EXAMPLES},
    "select-text": {"gate": "select", "examples": tiny_models.EXAMPLES, "scope": "text", "use": "weighted"},
    "uniform": {"gate": "uniform"},
    "ties": {"gate": "ties"},
    "signed": {"gate": "signed-radar"},
    "mlp": {"gate": "mlp"},
    "nexus": {"gate": "nexus"},
    "experts-input": {"gate_input": "experts"},
    "hydra": {"architecture": "hydra", "architecture_options": {"convert": True}},
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A function: family, kind → base, bundle, and what transformers answers with it; each made once."""
    root, bases, found = tmp_path_factory.mktemp("vllm"), {}, {}

    def make(family: str = "llama", kind: str | None = None):
        if family not in bases:
            base = tiny_models.save_base(family, root / family)
            targets = tiny_models.CONV1D if family == "gpt2" else tiny_models.LINEARS
            bases[family] = base, tiny_models.save_adapters(base, root / f"{family}-adapters", targets)
        base, adapters = bases[family]
        if (family, kind) not in found:
            bundle = kind and tiny_models.save_bundle(base, adapters, root / f"{family}-{kind}", **KINDS[kind])
            found[family, kind] = bundle, with_transformers(base, bundle)
        return base, *found[family, kind]

    return make


@pytest.fixture(scope="session")
def plain(made):
    """The base alone answers otherwise than with any bundle, else parity would mean nothing."""
    return made()[2]


def check(made, plain, kind: str, family: str = "llama", **options) -> None:
    base, bundle, expected = made(family, kind)
    if family == "llama":
        assert [tokens for tokens, _ in expected] != [tokens for tokens, _ in plain]
    running = engine(base, bundle, **options)
    try:
        assert_same(with_vllm(running), expected)
        assert_same(with_vllm(running), expected)  # once more, with whatever was cached
    finally:
        close(running)


@pytest.mark.smoke
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_all_seven_linears_of_each_family(made, plain, family):
    """Prefix cache, and prompts of one beginning that arrive in the same step, included."""
    check(made, plain, "router", family)


def test_a_base_whose_own_layers_are_merged(made, plain):
    """GPT-2's q, k and v are one layer of the base itself, and one site."""
    check(made, plain, "router", "gpt2")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("router", "prompt", "select")])
def test_every_kind_of_gate(made, plain, kind):
    check(made, plain, kind)


@pytest.mark.parametrize("kind", ["prompt", pytest.param("select", marks=pytest.mark.smoke)])
def test_one_decision_a_prompt_read_in_pieces(made, plain, kind):
    """Preempted on the way, too: 18 blocks are too few for nine prompts."""
    check(made, plain, kind, max_num_batched_tokens=64, block_size=32, num_gpu_blocks_override=18, **PROMPTS)


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3", marks=pytest.mark.smoke)])
def test_pieces_of_16_tokens(made, plain, family):
    check(made, plain, "router", family, max_num_batched_tokens=16, max_num_seqs=9)


@pytest.mark.smoke
def test_too_few_blocks_for_all_prompts(made, plain):
    base, bundle, expected = made("llama", "router")
    running = engine(base, bundle, block_size=32, num_gpu_blocks_override=18, disable_log_stats=False)
    try:
        assert_same(with_vllm(running), expected)
        preempted = [m.value for m in running.get_metrics() if m.name == "vllm:num_preemptions"]
        assert preempted[0] > 0
    finally:
        close(running)


def test_no_prefix_cache(made, plain):
    check(made, plain, "router", enable_prefix_caching=False)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "one-head"])
def test_two_processes_share_each_layer(made, plain, family):
    """Tensor parallelism; with one key/value head both have it."""
    check(made, plain, "router", family, tensor_parallel_size=2)


def test_installed_and_unused_leaves_vllm_as_it_is(made, plain, monkeypatch):
    base, _, _ = made()
    running = engine(base)
    found = with_vllm(running)
    close(running)
    import vllm.plugins

    monkeypatch.setattr(vllm.plugins, "plugins_loaded", False)
    monkeypatch.setenv("VLLM_PLUGINS", "none")
    without = engine(base)
    assert with_vllm(without) == found, "the same bits"
    close(without)


def test_beside_vllms_own_lora(made, plain, tmp_path):
    """A request with a LoRA gets both; one without gets the bundle alone. A slot stays free, see docs/vllm.md."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    base, bundle, expected = made("llama", "radar")
    lora = tiny_models.save_adapters(base, tmp_path, tiny_models.LINEARS)["law"]
    running = engine(base, bundle, enable_lora=True, max_loras=2, max_lora_rank=8)
    try:
        assert_same(with_vllm(running), expected)
        how = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts()]
        own = [None if i % 2 else LoRARequest("law", 1, str(lora)) for i in range(len(asked))]
        found = [list(r.outputs[0].token_ids) for r in running.generate(asked, how, use_tqdm=False, lora_request=own)]
        for i, tokens in enumerate(found):
            assert (tokens == expected[i][0][:20]) == bool(i % 2), i
    finally:
        close(running)


def test_log_probabilities_of_prompts(made, plain):
    """As lm-eval asks for them: the same as transformers says of the same tokens."""
    import torch
    from vllm import SamplingParams

    import radargate

    base, bundle, _ = made("llama", "router")
    model, texts = radargate.load(str(base), str(bundle), dtype="float32").eval(), prompts()[:5]
    running = engine(base, bundle)
    try:
        how = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
        found = running.generate([{"prompt_token_ids": text} for text in texts], how, use_tqdm=False)
    finally:
        close(running)
    for text, request in zip(texts, found, strict=True):
        with torch.no_grad():
            said = model(input_ids=torch.tensor([text])).logits[0].log_softmax(-1)
        for place, token in enumerate(text[1:], 1):
            there = request.prompt_logprobs[place][token].logprob
            assert abs(there - float(said[place - 1, token])) < 1e-4


def test_base_and_bundle_compiled_one_after_the_other(made, plain, tmp_path, monkeypatch):
    """vLLM keeps compiled graphs in one cache, which must tell them apart."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    base, bundle, expected = made("llama", "router")
    folders = []
    for served, answers in ((None, plain), (bundle, expected), (made("llama", "radar")[1], made("llama", "radar")[2])):
        running = engine(base, served, enforce_eager=False)
        try:
            assert_same(with_vllm(running), answers)
        finally:
            close(running)
        folders.append(
            {path for path in Path(tmp_path).glob("torch_compile_cache/torch_aot_compile/*") if path.is_dir()}
        )
    assert len(folders[0]) < len(folders[1]) < len(folders[2]), "one folder each"
    assert largest_difference(plain, plain) == 0
