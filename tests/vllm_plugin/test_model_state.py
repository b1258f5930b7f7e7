"""The state for each request, with the objects of vLLM's own new model runner, as far as a CPU has them."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm.engine", reason="vLLM is not installed here: make test-vllm")

import torch

import tiny_models
from radargate.vllm.serving import _read_text
from radargate.vllm.slots import SlotText
from vllm_answers import close, engine


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """The model runner of an engine that serves a router of texts, and the step that its layers look at."""
    root = tmp_path_factory.mktemp("state")
    base = tiny_models.save_base("llama", root / "llama")
    bundle = tiny_models.save_bundle(base, tiny_models.save_adapters(base, root / "ad"), root / "bundle", router="text")
    running = engine(base, bundle)
    worker = running.llm_engine.engine_core.engine_core.model_executor.driver_worker
    found = getattr(worker, "worker", worker).model_runner
    (hook,) = [hook for hook in found.model._forward_pre_hooks.values() if isinstance(hook, SlotText)]
    yield found, hook.step
    close(running)


def batch(parts: dict[int, list[int]]):
    """vLLM's own batch of a step: the place of each request → its tokens."""
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    ids = [token for tokens in parts.values() for token in tokens]
    made = InputBatch.make_dummy(len(parts), len(ids), InputBuffers(8, 64, torch.device("cpu")))
    made.input_ids[:] = torch.tensor(ids, dtype=torch.int32)
    made.query_start_loc[1:] = torch.tensor([len(tokens) for tokens in parts.values()]).cumsum(0)
    made.idx_mapping[:] = torch.tensor([*parts])
    return made


def request(prompt: list[int], computed: int, so_far: list[int] | None = None):
    from vllm.v1.core.sched.output import NewRequestData

    return NewRequestData(
        req_id="a", prompt_token_ids=prompt, mm_features=[], sampling_params=None, pooling_params=None, block_ids=([1],),
        num_computed_tokens=computed, lora_request=None, prefill_token_ids=so_far or prompt,
    )  # fmt: skip


@pytest.mark.parametrize("prompts", [False, True])
def test_requests_that_come_go_on_and_come_back(runner, prompts):
    found, step = runner
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    from radargate.vllm.model_state import state_class

    state = state_class(DefaultModelState, step, prompts)(found.vllm_config, found.model, None, torch.device("cpu"))
    first, second = list(range(10, 40)), list(range(90, 130))

    def expected(text: list[int], start: int, end: int, prompt: int) -> torch.Tensor:
        ends = [prompt if prompts else place + 1 for place in range(start, end)]
        return torch.stack([step.sums.log_weights(step.sums.of_text(text[:end])) for end in ends])

    state.add_request(3, request(first[:20], 0))
    state.add_request(1, request(second[:25], 16))  # 16 of its tokens stand in the prefix cache
    for one, other in (((0, 12), (16, 25)), ((12, 20), (25, 26)), ((20, 21), (26, 27))):
        made = batch({3: first[slice(*one)], 1: second[slice(*other)]})
        assert state.prepare_inputs(made, None) == {}
        wanted = torch.cat([expected(first, *one, 20), expected(second, *other, 25)])
        torch.testing.assert_close(step.log_weights(None), wanted, atol=1e-5, rtol=0)
    state.add_request(3, request(first[:20], 16, first[:21]))  # preempted, and back with what it had said
    state.prepare_inputs(batch({3: first[16:21]}), None)
    torch.testing.assert_close(step.log_weights(None), expected(first, 16, 21, 20), atol=1e-5, rtol=0)
    state.prepare_dummy_inputs(2, 8)
    assert step.log_weights(None).shape[0] == 8


def test_vllm_takes_the_class_that_the_loader_names(runner):
    from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

    found, step = runner
    with torch.no_grad():
        _read_text(found.model, step, FakeNew(found.vllm_config), False)
    made = resolve_model_state_cls(found.vllm_config, found.model)
    assert made.__name__ == "ReadsText" and not made.supports_prompt_embeds
    del found.model.get_model_state_cls


def test_registering_twice_changes_nothing():
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    import radargate.vllm

    radargate.vllm.register()
    loader = get_model_loader(LoadConfig(load_format="radargate", model_loader_extra_config={"bundle": "b"}))
    radargate.vllm.register()
    assert type(get_model_loader(LoadConfig(load_format="radargate"))) is type(loader)
    assert loader.options == {"bundle": "b"}


class FakeNew:
    """A configuration that says it uses the new model runner, which a CPU does not."""

    use_v2_model_runner = True

    def __init__(self, config) -> None:
        self.config = config

    def __getattr__(self, name):
        return getattr(self.config, name)
