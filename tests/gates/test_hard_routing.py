"""Hard routing (``renormalize="straight_through"``): one whole expert forward, the gradients of the softmax backward."""

from __future__ import annotations

import pytest
import torch

import radargate
from radargate import ops
from radargate.composition.composing import radar_layers
from radargate.errors import OptionError
from radargate.gates import GATES
from radargate.gates.base import GateSite, make_options
from radargate.ops import reference as literal
from test_rules import NAMES, inputs

F64 = torch.float64
HARD = {"renormalize": "straight_through"}


def experts(n=4, d_in=6, d=8, requires_grad=True):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=F64).requires_grad_(requires_grad)

    ranks = (3, 1, 2, 2)[:n]
    A, B = [draw(r, d_in) for r in ranks], [draw(d, r) for r in ranks]
    return draw(2, 5, d_in), A, B, draw(n, d_in), draw(d, 3), draw(3, d // 2)


def test_hard_routing_is_one_whole_expert_forward_and_the_softmax_backward():
    x, A, B, theta, _, _ = experts()
    found = ops.radar(x, A, B, theta, temperature=0.7, renormalize="straight_through")
    v, logits = literal.expert_outputs(x, A, B), x @ theta.T / 0.7
    best = logits.argmax(-1)
    assert torch.equal(ops.select(logits, **HARD)[0].sort(-1).values[..., :-1].unique(), torch.zeros(1, dtype=F64))
    torch.testing.assert_close(
        found, v.gather(-2, best[..., None, None].expand(2, 5, 1, 8)).squeeze(-2), rtol=0, atol=1e-14
    )
    # written out: what reaches θ is ∂L/∂y of the hard output, through Σ p_i v_i with the outputs held
    sense = torch.cos(found.detach())
    soft = (logits.softmax(-1).unsqueeze(-1) * v.detach()).sum(-2)
    want = torch.autograd.grad(soft, theta, sense)[0]
    (got,) = torch.autograd.grad(torch.sin(found).sum(), theta, retain_graph=True)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    # and what reaches A and B is that of the expert that acted
    hard = torch.nn.functional.one_hot(best, 4).to(F64)
    acted = (hard.unsqueeze(-1) * v).sum(-2)
    for mine, theirs in zip(
        torch.autograd.grad((found * sense).sum(), [*A, *B], retain_graph=True),
        torch.autograd.grad((acted * sense).sum(), [*A, *B]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_hard_routing_agrees_between_backends_with_and_without_gradients(turns, top_k):
    options = {"top_k": top_k, "renormalize": "straight_through", "angle_norm": "unit"}
    results, gradients = [], []
    for backend in ("literal", "codes"):
        x, A, B, theta, down, up = experts()
        leaves = [x, *A, *B, theta, *([down, up] if turns else [])]
        y = ops.radar(x, A, B, theta, *([down, up] if turns else []), backend=backend, **options)
        gradients.append(torch.autograd.grad(torch.sin(y).sum(), leaves))
        results.append(y.detach())
        with torch.no_grad():
            results.append(ops.radar(x, A, B, theta, *([down, up] if turns else []), backend=backend, **options))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["stretch", "radar", "mlp", "vector", "lora", "multiplicative", "mole", "nexus"])
def test_every_gate_with_a_softmax_can_route_hard(zoo, load_tiny, tmp_path, name):
    kind = GATES.get(name)
    gate = kind(GateSite(6, 8, (3, 1, 2), 2, 0, NAMES, NAMES), make_options(kind, HARD))
    assert gate.recipe() is None, "one compiled call does not know it"
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate=name, **HARD, top_k=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    learning = model.eval()(**inputs()).logits
    with torch.no_grad():
        torch.testing.assert_close(learning, model(**inputs()).logits, rtol=1e-5, atol=1e-5)
        for layer in radar_layers(model):
            layer.dense = True  # as in the first steps of a training
            x = torch.randn(4, layer.gate("default").site.d_in)
            assert torch.equal(layer.gated(x, "default").weights, torch.ones(4, 1))
            layer.dense = False
        model.save_pretrained(tmp_path / "b")
        again = radargate.load(load_tiny(), tmp_path / "b").eval()
        words = {"max_new_tokens": 6, "do_sample": False}
        uncached = again.generate(**inputs(batch=1), **words, use_cache=False)
        assert torch.equal(model.generate(**inputs(batch=1), **words), uncached)
        with radargate.using(model, {"math": 0.0}):
            assert (model(**inputs()).logits - learning).abs().max() > 1e-3
    learning.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert not parameter.requires_grad or bool(parameter.grad.any()), key


@pytest.mark.parametrize("options", [{}, {"router": "text"}, {"length": "expert"}], ids=str)
def test_hard_routing_learns_under_the_train_contract(zoo, tasks, tmp_path, options):
    record = radargate.train(
        str(zoo["llama"]["base"]),
        zoo["llama"]["adapters"],
        tasks,
        tmp_path / "b",
        gate="stretch",
        steps=4,
        batch_size=4,
        device="cpu",
        **HARD,
        **options,
    )
    assert record["metrics"]["trained_parameters"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gate": "stretch", **HARD, "architecture": "omoe"}, "made orthogonal"),
        ({"gate": "radar", **HARD, "reference": "selected"}, "leaves it no other to relate to"),
        ({"gate": "stretch", "renormalize": "straight"}, "renormalize is 'straight', expected one of: auto"),
    ],
)
def test_what_cannot_work_is_one_line_before_a_model_is_loaded(zoo, options, match):
    with pytest.raises(OptionError, match=match) as caught:
        radargate.compose("no/such/base", zoo["llama"]["adapters"], **options)
    assert "\n" not in str(caught.value)
