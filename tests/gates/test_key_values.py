"""A call's key–value cache is found whatever transformers calls it."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import DynamicCache

from radargate.gates.router.running_text import cache_in, cache_name


@pytest.mark.parametrize("name", ["cache", "past_key_values", "a_later_name"])
def test_among_inputs(name):
    cache = DynamicCache()
    assert cache_in({"input_ids": torch.zeros(1, 2), "use_cache": True, name: cache}) is cache
    assert cache_in({"input_ids": torch.zeros(1, 2), name: None}) is None


@pytest.mark.parametrize("as_dict", [True, False])
def test_in_outputs(load_tiny, as_dict):
    model, ids = load_tiny(), torch.tensor([[1, 2, 3]])
    found = cache_in(model(input_ids=ids, use_cache=True, return_dict=as_dict))
    assert found.get_seq_length() == 3
    assert cache_in(model(input_ids=ids, use_cache=False, return_dict=as_dict)) is None


def test_a_call_goes_on_under_the_name_that_the_model_accepts(load_tiny):
    model, ids = load_tiny(), torch.tensor([[1, 2, 3, 4]])
    cache = cache_in(model(input_ids=ids[:, :2], use_cache=True))
    name = cache_name(inspect.signature(model.forward).parameters)
    rest = model(input_ids=ids[:, 2:], **{name: cache}).logits
    torch.testing.assert_close(rest, model(input_ids=ids).logits[:, 2:])
