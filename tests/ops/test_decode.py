"""Few tokens without gradients: the compiled site and the PyTorch form for all slots at once are the literal form."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import radargate
from radargate import ops
from radargate.composition.composing import radar_layers
from radargate.composition.config import gate_class
from radargate.composition.layer import RadarLayer
from radargate.gates import GATES
from radargate.gates.base import GateSite, make_options
from radargate.gates.stretch import StretchGate
from radargate.ops import decode as few
from test_fused import form, needs_compiler  # noqa: F401
from test_ops import F64, problem
from tolerance import assert_close

RENORMALIZE = ("auto", "always", "never")


def in_one_call(
    inputs, k, temperature=1.0, renormalize="auto", angle_norm="none", reference="all", turns=True, site=ops.site
):
    """A site in one call and the literal form, with scales, P's size and a base output."""
    A, B = torch.cat(inputs["A"]), torch.cat([b.T for b in inputs["B"]])
    ranks = tuple(a.shape[0] for a in inputs["A"])
    scales = [0.5 + i % 3 for i in range(len(ranks))]
    sigma = torch.tensor([s for s, r in zip(scales, ranks, strict=True) for _ in range(r)], dtype=A.dtype)
    x, stretch, down, up = (inputs[name] for name in ("x", "stretch", "down", "up"))
    onto = torch.randn(*x.shape[:-1], B.shape[1], dtype=F64, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    turn = (down, up, 0.3, angle_norm, reference) if turns else ()
    recipe = ops.Recipe(stretch, temperature, renormalize, *turn)
    with torch.no_grad():
        got = site(x, A, B.contiguous(), sigma, ranks, recipe, k, onto)

        def literal(dtype):
            scaled = [b.to(dtype) * s for b, s in zip(inputs["B"], scales, strict=True)]
            rotation = (down.to(dtype) * 0.3, up.to(dtype)) if turns else ()
            update = ops.radar(
                x.to(dtype),
                [a.to(dtype) for a in inputs["A"]],
                scaled,
                stretch.to(dtype),
                *rotation,
                top_k=k,
                temperature=temperature,
                renormalize=renormalize,
                angle_norm=angle_norm,
                reference=reference,
                backend="literal",
            )
            return onto.to(dtype) + update

        return got, literal(x.dtype), literal(F64)


@needs_compiler
@pytest.mark.parametrize("n", [1, 2, 5, 9, 40])
def test_a_site_in_one_call_is_the_literal_form(n):
    sizes = ((4, 1, 3), (7, 5, 3), (33, 70, 4), (64, 32, 8), (20, 37, 16))
    for (d_in, d, r_a), tokens, k in itertools.product(
        sizes[:: 3 if n == 40 else 1], (1, 3, 16), {1, min(2, n), n, None} if n < 40 else (2, None)
    ):
        # at size 1 the printed form turns by thousands of radians, whose rounding alone is 2e-10 in the literal form, by the order of experts
        inputs, smaller = (problem(n, d_in, d, (tokens,), r_a, size=size) for size in (1.0, 0.3))
        for i, (angle_norm, reference) in enumerate(itertools.product(ops.ANGLE_NORMS, ops.REFERENCES)):
            one = smaller if angle_norm == "none" else inputs
            got, _, exact = in_one_call(one, k, 0.7, RENORMALIZE[i % 3], angle_norm, reference)
            torch.testing.assert_close(got, exact, atol=1e-10, rtol=1e-10)
        for renormalize in RENORMALIZE:
            got, _, exact = in_one_call(inputs, k, 1.3, renormalize, turns=False)
            torch.testing.assert_close(got, exact, atol=1e-10, rtol=1e-10)


@needs_compiler
@pytest.mark.parametrize("turns", [True, False])
def test_a_site_in_float32_is_as_good_as_the_literal_form_in_it(turns):
    for n, tokens, k in itertools.product((8, 40), (1, 16), (2, None)):
        inputs = problem(n, 192, 96, (tokens,), 8, dtype=torch.float32, size=0.02, seed=1)
        assert_close(*in_one_call(inputs, k, angle_norm="unit" if turns else "none", turns=turns))


@needs_compiler
def test_silent_experts_and_ties_are_as_in_the_literal_form():
    for n, k, angle_norm in itertools.product((2, 5, 9), (1, 2, None), ops.ANGLE_NORMS):
        inputs = problem(n, 7, 12, (3,))
        inputs["stretch"] = torch.zeros_like(inputs["stretch"])
        for silent in ((0,), range(n)):
            inputs["B"] = [b * 0 if i in silent else b for i, b in enumerate(inputs["B"])]
            got, _, exact = in_one_call(inputs, k, angle_norm=angle_norm)
            torch.testing.assert_close(got, exact, atol=1e-11, rtol=1e-11)


@needs_compiler
def test_a_site_is_bit_equal_for_any_number_of_threads():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            inputs = problem(40, 1600, 1600, (1,), 8, dtype=torch.float32)
            results.append(
                [in_one_call(inputs, k, angle_norm="unit", turns=t)[0] for t in (True, False) for k in (2, None)]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_compiler
def test_what_is_not_finite_stays_so_and_chooses_no_expert_twice():
    inputs = problem(5, 6, 8, (3,))
    for value in (float("nan"), float("inf"), float("-inf")):
        inputs["x"] = inputs["x"].detach().clone()
        inputs["x"][1, 0] = value
        for k, angle_norm in itertools.product((1, 2, 5), ops.ANGLE_NORMS):
            got, *_ = in_one_call(inputs, k, angle_norm=angle_norm)
            assert not bool(torch.isfinite(got[1]).any()) and bool(torch.isfinite(got[[0, 2]]).all())


@pytest.mark.parametrize("n", [2, 5, 9, 40])
def test_a_site_in_few_calls_of_pytorch_is_the_literal_form(n):
    for (d, r_a), tokens, k in itertools.product(((2, 3), (32, 8)), (1, 3), {1, 2, n, None}):
        inputs, smaller = (problem(n, 7, d, (tokens,), r_a, size=size) for size in (1.0, 0.3))
        taken = few.applies(tokens * (k or n))
        for i, (angle_norm, reference) in enumerate(itertools.product(ops.ANGLE_NORMS, ops.REFERENCES)):
            options = k, 0.7, RENORMALIZE[i % 3], angle_norm, reference
            got, _, exact = in_one_call(smaller if angle_norm == "none" else inputs, *options, site=ops.few_site)
            assert (got is not None) == taken
            if taken:
                torch.testing.assert_close(got, exact, atol=1e-10, rtol=1e-10)
        got, _, exact = in_one_call(inputs, k, 1.3, turns=False, site=ops.few_site)
        if taken:
            torch.testing.assert_close(got, exact, atol=1e-10, rtol=1e-10)


def test_a_site_in_few_calls_keeps_the_rule_of_rounding_and_of_silence():
    for n, turns in itertools.product((8, 40), (True, False)):
        inputs = problem(n, 192, 96, (16,), 8, dtype=torch.float32, size=0.02, seed=1)
        options = {"angle_norm": "unit" if turns else "none", "turns": turns, "site": ops.few_site}
        assert_close(*in_one_call(inputs, 2, **options))
    for size, k, angle_norm in itertools.product((1e-9, 1e-14, 0.0), (1, 2, None), ops.ANGLE_NORMS):
        inputs = problem(5, 7, 12, (3,))
        for loud in ((0,), ()):
            inputs["B"] = [b * (1 if i in loud else size) for i, b in enumerate(inputs["B"])]
            got, _, exact = in_one_call(inputs, k, angle_norm=angle_norm, site=ops.few_site)
            torch.testing.assert_close(got, exact, atol=1e-11, rtol=1e-10)


def test_few_calls_are_left_to_others_where_they_are_not_the_way():
    odd, wide, many = problem(3, 4, 7, (1,)), problem(900, 2, 4, (1,), 2), problem(3, 4, 8, (40,))
    assert all(in_one_call(inputs, 2, site=ops.few_site)[0] is None for inputs in (odd, wide, many))
    learns = problem(3, 4, 8, (1,))
    ranks = tuple(a.shape[0] for a in learns["A"])
    A, B = torch.cat(learns["A"]), torch.cat([b.T for b in learns["B"]])
    given = learns["x"], A, B, torch.ones(sum(ranks), dtype=F64), ranks, ops.Recipe(learns["stretch"]), 2
    assert ops.few_site(*given, torch.zeros(1, 8, dtype=F64)) is None


@pytest.mark.parametrize("angle_norm", ops.ANGLE_NORMS)
@pytest.mark.parametrize("equal", [True, False], ids=["equal ranks", "unequal ranks"])
def test_all_slots_at_once_is_the_literal_form(monkeypatch, angle_norm, equal):
    monkeypatch.setenv("RADARGATE_FUSED", "0")
    for n, d, tokens, k, reference in itertools.product((1, 2, 5), (1, 7, 16), (1, 3, 6), (1, 2, None), ops.REFERENCES):
        inputs = problem(n, 4, d, (tokens,))
        if equal:
            inputs["A"] = [torch.cat([a] * 4)[:3] for a in inputs["A"]]
            inputs["B"] = [torch.cat([b] * 4, 1)[:, :3] for b in inputs["B"]]
        kwargs = {"top_k": None if k is None else min(k, n), "angle_norm": angle_norm, "reference": reference}
        assert few.applies(tokens * n, inputs["x"].detach())
        with torch.no_grad():
            for turn in ((inputs["down"], inputs["up"]), ()):
                given = inputs["x"], inputs["A"], inputs["B"], inputs["stretch"], *turn
                got, want = (ops.radar(*given, **kwargs, backend=backend) for backend in ("codes", "literal"))
                torch.testing.assert_close(got, want, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("size", [1e-9, 1e-14])
def test_all_slots_at_once_keeps_the_direction_of_nearly_silent_others(monkeypatch, size):
    monkeypatch.setenv("RADARGATE_FUSED", "0")
    inputs = problem(3, 4, 9, (11,))
    inputs["B"] = [b * (1 if i == 0 else size) for i, b in enumerate(inputs["B"])]
    for reference in ops.REFERENCES:
        with torch.no_grad():
            got, want = (
                ops.radar(**inputs, top_k=2, angle_norm="unit", reference=reference, backend=b)
                for b in ("codes", "literal")
            )
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("tokens", [1, 30])
@pytest.mark.parametrize("angle_norm", ops.ANGLE_NORMS)
def test_scaled_codes_are_those_of_a_scaled_p(form, tokens, angle_norm):  # noqa: F811
    inputs = problem(3, 5, 6, (tokens,))
    A, B = torch.cat(inputs["A"]), torch.cat([b.T for b in inputs["B"]])
    ranks, h = [a.shape[0] for a in inputs["A"]], ops.codes(inputs["x"], A, torch.ones(A.shape[0], dtype=F64))
    for reference, grad in itertools.product(ops.REFERENCES, (False, True)):
        indices, options = torch.tensor([[2, 0]] * tokens), {"reference": reference, "angle_norm": angle_norm}
        with torch.set_grad_enabled(grad):
            got = ops.rotation_codes(h, B, ranks, inputs["down"], indices=indices, scale=0.25, **options)
            want = ops.rotation_codes(h, B, ranks, inputs["down"] * 0.25, indices=indices, **options)
        torch.testing.assert_close(got, want)
        if grad:
            leaves = [inputs["x"], inputs["down"], *inputs["B"]]
            sums = [torch.autograd.grad(t.square().sum(), leaves, retain_graph=True) for t in (got, want)]
            for a, b in zip(*sums, strict=True):
                torch.testing.assert_close(a, b)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_select_keeps_the_highest_first_and_ties_to_the_lowest_index(data):
    values = st.sampled_from([0.0, 1.0, -1.0, 2.5, float("inf"), float("-inf"), float("nan")])
    n = data.draw(st.integers(2, 9))
    logits = torch.tensor([data.draw(st.lists(values, min_size=n, max_size=n)) for _ in range(3)])
    for k in range(1, n):
        _, indices = ops.select(logits, k)
        assert torch.equal(indices, logits.sort(dim=-1, descending=True, stable=True).indices[:, :k])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_passes_over_many_logits_choose_as_sorting_does(dtype):
    values = torch.tensor([0.0, 1.0, -1.0, 2.5, float("inf"), float("-inf"), float("nan")], dtype=dtype)
    for n in (3, 9, 40):
        logits = values[torch.randint(7, (4096, n), generator=torch.Generator().manual_seed(n))]
        for k in range(1, min(n, 6)):
            _, indices = ops.select(logits, k)
            assert torch.equal(indices, logits.sort(dim=-1, descending=True, stable=True).indices[:, :k])


# ---- layers


def composed(zoo, base, gate="radar", **options):
    """A composition whose gates do something, without gradients to come."""
    model = radargate.compose(base, zoo["llama"]["adapters"], gate=gate, top_k=2, seed=3, **options).eval()
    stir(model)
    return model


def stir(model, seed=1):
    """Change every gate parameter in place."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in radar_layers(model):
            for parameter in layer.radar_gate.parameters():
                parameter += torch.randn(parameter.shape, generator=g).to(parameter) * 0.3


@pytest.fixture
def both(monkeypatch):
    """Makes the same call with compiled operations and without; gives the result and how many sites went in one call."""

    def run(call):
        count, real = [], ops.site
        monkeypatch.setattr(ops, "site", lambda *args: count.append(real(*args)) or count[-1])
        results = []
        for compiled in "10":
            monkeypatch.setenv("RADARGATE_FUSED", compiled)
            with torch.no_grad():
                results.append(call())
        monkeypatch.setattr(ops, "site", real)
        torch.testing.assert_close(*results, atol=2e-5, rtol=2e-5)
        return results[0], sum(found is not None for found in count)

    return run


def token(model):
    """One token through a model."""
    return lambda: model(input_ids=torch.tensor([[5]])).logits


@needs_compiler
@pytest.mark.parametrize("gate", ["radar", "stretch"])
def test_a_token_takes_every_site_in_one_call_and_is_as_without_it(zoo, load_tiny, both, gate):
    model = composed(zoo, load_tiny(), gate)
    sites = len(list(radar_layers(model)))
    for shape, taken in (((1, 1), sites), ((2, 3), sites), ((16, 1), sites), ((1, 17), 0)):
        ids = torch.randint(2, 250, shape, generator=torch.Generator().manual_seed(0))
        assert both(lambda ids=ids: model(input_ids=ids).logits)[1] == taken
    for layer in radar_layers(model):
        layer.dense = True
    assert both(token(model))[1] == sites
    assert both(token(model.double()))[1] == sites
    assert (
        both(token(model.bfloat16()))[1] < sites
    )  # gates whose own parameters are in half precision go the general way


@pytest.mark.parametrize("gate", ["radar", "stretch"])
def test_without_a_compiler_a_token_takes_every_site_in_few_calls(zoo, load_tiny, monkeypatch, gate):
    monkeypatch.setenv("RADARGATE_FUSED", "0")
    model, real, seen = composed(zoo, load_tiny(), gate), ops.few_site, []
    sites = sum(layer.gate("default").site.n > 1 for layer in radar_layers(model))
    monkeypatch.setattr(ops, "few_site", lambda *args: seen.append(real(*args)) or seen[-1])
    with torch.no_grad():
        few_calls = token(model)()
        assert sum(found is not None for found in seen) == sites > 0
        monkeypatch.setattr(ops, "few_applies", lambda *_: False)
        torch.testing.assert_close(few_calls, token(model)(), atol=2e-5, rtol=2e-5)


@needs_compiler
def test_changed_parameters_are_seen_at_once(zoo, load_tiny, both):
    model = composed(zoo, load_tiny())
    other = {k: v.clone() for k, v in composed(zoo, load_tiny()).state_dict().items()}
    layers, seen = list(radar_layers(model)), [both(token(model))[0]]

    def in_place():
        stir(model, 2)

    def through_data():
        for layer in layers:
            for parameter in (*layer.radar_gate.parameters(), *layer.radar_bank.parameters()):
                parameter.data.mul_(1.1)

    def data_replaced():
        for layer in layers:
            for parameter in (*layer.radar_gate.parameters(), *layer.radar_bank.parameters()):
                parameter.data = parameter.data * 1.1

    def loaded():
        model.load_state_dict(other)

    def new_parameters():
        for layer in layers:
            gate = layer.radar_gate["default"]
            for name, parameter in gate.named_parameters():
                setattr(gate, name, torch.nn.Parameter(parameter.detach() * 1.5))

    for change in (in_place, through_data, data_replaced, loaded, new_parameters):
        change()
        seen.append(both(token(model))[0])
        assert (seen[-1] - seen[-2]).abs().max() > 1e-3, change.__name__


@needs_compiler
def test_masks_hooks_and_gradients_go_the_long_way(zoo, load_tiny, both):
    model = composed(zoo, load_tiny())
    plain, taken = both(token(model))
    with radargate.using(model, {"math": 0.0}):
        masked, none = both(token(model))
    assert none == 0 and (masked - plain).abs().max() > 1e-3
    seen, layer = [], next(iter(radar_layers(model)))
    hook = layer.radar_gate["default"].register_forward_hook(lambda *_: seen.append(1))
    assert both(token(model))[1] == taken - 1 and len(seen) == 2
    hook.remove()
    model(input_ids=torch.tensor([[5]])).logits.square().sum().backward()
    assert all(p.grad is not None for p in layer.radar_gate.parameters())


def test_only_gates_that_take_the_same_steps_have_a_recipe():
    site = GateSite(6, 8, (2, 3, 1), 2)

    def recipe(name, **options):
        kind = gate_class(name)
        return kind(site, make_options(kind, options)).recipe()

    assert {name for name in GATES.names() if recipe(name) is not None} == {"radar", "stretch"}
    for options in (
        {"gate_input": "experts"},
        {"gate_input": "rotated"},
        {"rotation_input": "input"},
        {"rotation_sharing": "expert"},
        {"rotation_rank": 0},
        {"gate_input": "rotated", "rotate_output": False},
    ):
        assert recipe("radar", **options) is None

    class Half(StretchGate):
        def logits(self, call):
            return super().logits(call) / 2

    assert Half(site, make_options(Half, {})).recipe() is None


@torch.no_grad()
def test_a_wider_bank_is_never_narrowed_to_the_inputs_dtype(zoo, load_tiny, monkeypatch):
    model = radargate.compose(load_tiny(dtype=torch.bfloat16), zoo["llama"]["adapters"], top_k=2).eval()
    ids = torch.tensor([[5]])
    first = model(input_ids=ids, use_cache=False).logits
    held = [layer.bank("default") for layer in radar_layers(model)]
    assert all(bank._cast is None or bank._cast[1].dtype == torch.float32 for bank in held)
    monkeypatch.setenv("RADARGATE_FUSED", "0")
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, first, atol=2e-2, rtol=2e-2)


def test_a_base_in_half_precision_takes_the_one_call_too_and_adds_the_same(zoo, monkeypatch):
    model = radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"], dtype="bfloat16").eval()
    ids, calls = torch.arange(2, 10)[None], []
    site = radargate.ops.site
    monkeypatch.setattr(radargate.ops, "site", lambda *args: calls.append(1) or site(*args))
    with torch.no_grad():
        once = model(input_ids=ids).logits
        assert calls or not radargate.ops.site_applies(torch.zeros(1, 4), torch.zeros(1, 4))
        monkeypatch.setattr(RadarLayer, "_at_once", lambda *args: None)
        assert torch.equal(once, model(input_ids=ids).logits)
