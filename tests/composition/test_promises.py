"""What gates, rules and architectures declare, they are held to: every combination in the registries."""

from __future__ import annotations

import pytest
import torch

import radargate
from conftest import NEEDED, adapters_for
from radargate.architectures import ARCHITECTURES
from radargate.composition.composing import radar_layers
from radargate.composition.config import check_works_under, gate_class
from radargate.errors import OptionError
from radargate.gates import GATES
from radargate.gates.base import make_options
from radargate.gates.rules import RULES


def works(name, architecture):
    try:
        check_works_under(name, architecture)
        gate_class(name).check(
            make_options(gate_class(name), NEEDED.get(name, {})), ["math", "law", "code"], architecture
        )
    except OptionError:
        return False
    return True


PAIRS = [(name, a) for name in (*GATES, *RULES) for a in ARCHITECTURES if works(name, a)]


def composed(zoo, base, name, architecture, names=("math", "law", "code"), **options):
    adapters = adapters_for(zoo["llama"], name)
    extra = {"architecture_options": {"convert": True}} if architecture == "hydra" else {}
    model = radargate.compose(
        base,
        {n: adapters[n] for n in names},
        gate=name,
        architecture=architecture,
        seed=3,
        **extra,
        **{**NEEDED.get(name, {}), **options},
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name,architecture", PAIRS)
@torch.no_grad()
def test_token_local_means_cached_equals_uncached(zoo, load_tiny, name, architecture):
    model = composed(zoo, load_tiny(), name, architecture)
    assert ARCHITECTURES.get(architecture).token_local
    assert all(layer.gate("default").token_local for layer in radar_layers(model))
    ids = torch.randint(2, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    whole = model(input_ids=ids).logits
    first = model(input_ids=ids[:, :5], use_cache=True)
    rest = model(input_ids=ids[:, 5:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name,architecture", PAIRS)
@torch.no_grad()
def test_saved_and_loaded_the_logits_are_equal(zoo, load_tiny, tmp_path, name, architecture):
    model = composed(zoo, load_tiny(), name, architecture)
    ids = torch.randint(2, 250, (2, 7), generator=torch.Generator().manual_seed(0))
    before = model(input_ids=ids).logits
    model.save_pretrained(str(tmp_path / "bundle"))
    assert torch.equal(radargate.load(load_tiny(), tmp_path / "bundle").eval()(input_ids=ids).logits, before)


def permuted(parameter, order, n, shape):
    """A gate tensor whose experts are reordered: along every axis of n experts, and in n·d blocks."""
    for axis, size in enumerate(parameter.shape):
        if size == n:
            parameter = parameter.index_select(axis, order)
        elif n > 1 and size == n * shape:
            blocks = parameter.unflatten(axis, (n, shape)).index_select(axis, order)
            parameter = blocks.flatten(axis, axis + 1)
    return parameter


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if ARCHITECTURES.get(a).order_free])
@pytest.mark.parametrize("name", [n for n in GATES if GATES.get(n).order_free])
@torch.no_grad()
def test_order_free_means_that_permuting_experts_leaves_the_output(zoo, load_tiny, name, architecture):
    options = {"hidden": 7} if name == "mlp" else {}
    first = composed(zoo, load_tiny(), name, architecture, **options)
    second = composed(zoo, load_tiny(), name, architecture, names=("code", "math", "law"), **options)
    mine = {layer.site: layer for layer in radar_layers(first)}
    for layer in radar_layers(second):
        old, new = mine[layer.site].gate("default"), layer.gate("default")
        order = torch.tensor([old.site.experts.index(e) for e in new.site.experts]) if new.site.n > 1 else None
        tensors = {**dict(old.named_parameters()), **dict(old.named_buffers())}
        for key, value in {**dict(new.named_parameters()), **dict(new.named_buffers())}.items():
            # P and Q are shared by all experts, whatever their width
            shared = order is None or key.startswith("rotation_") or key == "domain_mean"
            value.copy_(tensors[key] if shared else permuted(tensors[key], order, new.site.n, new.site.d_out))
    ids = torch.randint(2, 250, (2, 7), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(second(input_ids=ids).logits, first(input_ids=ids).logits, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", GATES)
@torch.no_grad()
def test_top_k_of_all_equals_dense(zoo, load_tiny, name, architecture):
    ids = torch.randint(2, 250, (2, 7), generator=torch.Generator().manual_seed(0))
    logits = [composed(zoo, load_tiny(), name, architecture, top_k=k)(input_ids=ids).logits for k in (3, None)]
    assert torch.equal(*logits)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    model = composed(zoo, load_tiny(), name, architecture, top_k=3)
    layer = next(layer for layer in radar_layers(model) if layer.gate("default").site.n == 3)
    dense = layer.update(x, "default")
    gate = layer.gate("default")
    object.__setattr__(gate.site, "top_k", 2)
    change = float((layer.update(x, "default") - dense).abs().max())
    assert change == 0 if gate.static else change > 1e-6, "top-2 of 3 is something else, unless all always act"
