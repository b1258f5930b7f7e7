"""The merged route of architecture mole: the literal form exactly, whichever experts are silent, learn or are switched off."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import radargate
from radargate import ops
from radargate.composition.composing import radar_layers
from radargate.composition.config import RadarConfig
from radargate.composition.layer import RadarLayer
from radargate.errors import OptionError
from radargate.gates import GATES
from radargate.gates.base import make_options
from radargate.ops import cpp as fused
from radargate.ops import reference as literal
from test_fused import Operations, chosen

F64 = torch.float64
RANKS = (3, 1, 4, 2, 5)
needs_compiler = pytest.mark.skipif(not fused.available()[0], reason=f"no compiled operations: {fused.available()[1]}")


@pytest.fixture(params=[pytest.param("1", marks=needs_compiler), "0"], ids=["compiled", "pytorch"])
def form(request, monkeypatch):
    """Both forms; says which one."""
    monkeypatch.setenv("RADARGATE_FUSED", request.param)
    return request.param


def ranks_of(n):
    return tuple(RANKS[i % 5] for i in range(n))


def site(n, k, route="merged", gate="radar", d_in=6, d=7, dtype=F64, seed=0, **options):
    """One layer with random experts of unequal ranks, whose gate turns already."""
    g = torch.Generator().manual_seed(seed)
    ranks = ranks_of(n)
    entry = {
        "experts": list(range(n)),
        "ranks": list(ranks),
        "scales": [1.0 + i % 3 for i in range(n)],
        "dtypes": [["F32", "F32"]] * n,
        "shape": [d_in, d],
    }
    config = RadarConfig(
        experts=[f"e{i}" for i in range(n)],
        sites={"site": entry},
        gate=gate,
        gate_options=options,
        top_k=k,
        architecture_options={"route": route},
    )
    layer = RadarLayer(torch.nn.Linear(d_in, d, bias=False).to(dtype).requires_grad_(False), "site")
    layer.add("default", config, 0)
    layer._active_adapter = "default"
    bank = layer.bank("default")
    bank.A.data = torch.randn(sum(ranks), d_in, generator=g, dtype=F64).to(dtype)
    bank.B.data = torch.randn(sum(ranks), d, generator=g, dtype=F64).to(dtype)
    with torch.no_grad():
        for parameter in layer.gate("default").to(dtype).parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=g, dtype=F64).to(dtype)
    return layer, torch.randn(4, 5, d_in, generator=g, dtype=F64).to(dtype).requires_grad_()


def update_and_gradients(layer, x, update=None):
    update = layer.update(x, "default") if update is None else update
    weight = torch.randn(update.shape, generator=torch.Generator().manual_seed(3), dtype=F64).to(update)
    learning = [x, *layer.gate("default").parameters()]
    return [update.detach(), *torch.autograd.grad((update * weight).sum(), learning)]


def literal_form(layer, x, k):
    """The same update in output space, from the gate's own parameters."""
    bank, gate = layer.bank("default"), layer.gate("default")
    A = list(bank.A.detach().split(list(bank.ranks)))
    B = [(s * b).T for s, b in zip(bank.scales, bank.B.detach().split(list(bank.ranks)), strict=True)]
    turn = {}
    if hasattr(gate, "rotation_up"):
        down = gate.rotation_down * gate.rotation_down.shape[-2] ** -0.5
        turn = {
            "down": down,
            "up": gate.rotation_up,
            "angle_norm": gate.options.angle_norm,
            "reference": gate.options.reference,
        }
    return literal.radar(x, A, B, gate.softmax_theta, top_k=k, **turn)


def agree(got, want, rtol=1e-8, atol=1e-9):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("angle_norm", ops.ANGLE_NORMS)
def test_the_merged_route_is_the_literal_form(form, n, k, angle_norm):
    for reference, d in (("all", 7), ("selected", 7), ("all", 33)):
        layer, x = site(n, k, d=d, angle_norm=angle_norm, reference=reference)
        want = update_and_gradients(layer, x, literal_form(layer, x, k))
        agree(update_and_gradients(layer, x), want)
        relates = reference == "all" and k < n
        assert (layer.architectures["default"]._merged is not None) == relates, "M is built where it is needed"


@pytest.mark.parametrize("sharing", ["site", "expert"])
@pytest.mark.parametrize("rotation_rank", [0, 8])
def test_a_full_or_an_own_rotation_and_codes_from_x_take_it_too(form, sharing, rotation_rank):
    for source in ("experts", "input"):
        options = {"rotation_sharing": sharing, "rotation_rank": rotation_rank, "rotation_input": source}
        (layer, x), (direct, y) = site(5, 2, **options), site(5, 2, "direct", **options)
        agree(update_and_gradients(layer, x), update_and_gradients(direct, y))


BLIND = [(name, {}) for name in GATES if not GATES.get(name).weighs_codes(make_options(GATES.get(name), {}))]


@pytest.mark.parametrize(
    ("gate", "options"), [*BLIND, ("rotation", {"select": "frozen_stretch"})], ids=lambda v: str(v)
)
def test_every_gate_that_weighs_x_alone_takes_it(form, gate, options):
    assert len(BLIND) >= 8
    for n in (3, 40):
        (layer, x), (direct, y) = site(n, 2, gate=gate, **options), site(n, 2, "direct", gate=gate, **options)
        agree(update_and_gradients(layer.eval(), x), update_and_gradients(direct.eval(), y))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 3e-5), (F64, 1e-10)])
@pytest.mark.parametrize("input_kind", ["random", "positive", "outlier", "orthogonal"])
def test_silent_experts_turn_nothing(form, dtype, atol, input_kind):
    layer, x = site(5, 1, d_in=700, d=40, dtype=dtype, renormalize="always")
    bank = layer.bank("default")
    with torch.no_grad():
        bank.A.mul_(700**-0.5)
        bank.B[RANKS[0] :] = 0
        layer.gate("default").softmax_theta.zero_()  # all tokens choose expert 0
        if input_kind == "positive":
            x.abs_(), bank.A.abs_()
        elif input_kind == "outlier":
            x[..., 3] = 1000
        elif input_kind == "orthogonal":
            away = torch.linalg.qr(bank.A[: RANKS[0]].double().T)[0]
            x.sub_(((x.double() @ away) @ away.T).to(dtype))
    update, dx, _, d_down, d_up = update_and_gradients(layer, x)
    plain = (x @ bank.A[: RANKS[0]].T) @ bank.B[: RANKS[0]]
    torch.testing.assert_close(update, plain, rtol=0, atol=atol * float(plain.detach().abs().max() + 1))
    assert bool(torch.isfinite(dx).all()) and not d_down.any() and not d_up.any()


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6, 1e-12, 1e-17])
def test_a_quiet_reference_keeps_its_direction_down_to_its_rounding(form, size):
    layer, x = site(3, 1)
    with torch.no_grad():
        layer.gate("default").softmax_theta.zero_()
        layer.bank("default").B[RANKS[0] :] *= size
    got = layer.update(x, "default")
    if size < 1e-15:  # nothing is left of it: no turn
        layer.gate("default").rotation_up.data.zero_()
    want = literal_form(layer, x, 1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11 if size < 1e-15 else 1e-13 / size + 1e-11)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 9), d=st.integers(2, 20), d_in=st.integers(1, 9), seed=st.integers(0, 999), data=st.data())
def test_chosen_codes_and_their_sum_serve_as_all_codes_do(n, d, d_in, seed, data):
    k, angle_norm = data.draw(st.integers(1, n)), data.draw(st.sampled_from(ops.ANGLE_NORMS))
    g, ranks = torch.Generator().manual_seed(seed), ranks_of(n)
    new = lambda *size: torch.randn(*size, generator=g, dtype=F64)  # noqa: E731
    x, A, B, P, scale = new(6, d_in), new(sum(ranks), d_in), new(sum(ranks), d), new(d, 3), new(sum(ranks))
    indices = chosen(6, n, k, seed)
    M, sizes = ops.merge(A, B, scale, ranks)
    total = x @ M
    few = ops.chosen_codes(x, A, scale, ranks, indices)
    every = ops.codes(x, A, scale)
    # (a reference that cancels by chance is rounding in both)
    got = ops.rotation_codes(
        few, B, ranks, P, indices=indices, angle_norm=angle_norm, total=total, rounding=ops.rounding(x, sizes, total)
    )
    want = ops.rotation_codes(every, B, ranks, P, indices=indices, angle_norm=angle_norm)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8 * float(1 + want.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_chosen_codes_are_the_dense_ones_masked(form, dtype):
    for n, k, d_in, tokens in itertools.product((1, 3, 40), (1, 2, 3), (1, 7, 32, 70), (0, 1, 5, 300)):
        ranks, g = ranks_of(n), torch.Generator().manual_seed(n)
        x = torch.randn(tokens, d_in, generator=g, dtype=F64).to(dtype).requires_grad_()
        A, scale = torch.randn(sum(ranks), d_in, generator=g).to(dtype), torch.rand(sum(ranks), generator=g).to(dtype)
        indices = chosen(tokens, n, min(k, n))
        owner = torch.repeat_interleave(torch.arange(n), torch.tensor(ranks))
        mask = (indices.unsqueeze(-1) == owner).any(-2)
        got, want = ops.chosen_codes(x, A, scale, ranks, indices), ops.codes(x, A, scale) * mask
        torch.testing.assert_close(got, want)
        weight = torch.randn(want.shape, generator=g).to(dtype)
        pair = [torch.autograd.grad((h * weight).sum(), x)[0] for h in (got, want)]
        torch.testing.assert_close(*pair)


def test_chosen_codes_take_any_shape_repeated_choices_and_experts_that_learn(form):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, generator=g, dtype=F64).transpose(0, 1).requires_grad_()
    A, scale = torch.randn(6, 9, generator=g, dtype=F64), torch.rand(6, generator=g, dtype=F64)
    indices = torch.tensor([[[0, 2], [1, 1]], [[2, 0], [2, 2]], [[1, 0], [0, 0]]])
    shrink = lambda x, A: ops.chosen_codes(x, A, scale, (1, 2, 3), indices)  # noqa: E731
    assert torch.autograd.gradcheck(shrink, (x, A)) and torch.autograd.gradcheck(
        shrink, (x, A.clone().requires_grad_())
    )
    torch.testing.assert_close(ops.chosen_codes(x, A, scale, (1, 2, 3), None), ops.codes(x, A, scale))


@needs_compiler
def test_chosen_codes_are_bit_equal_for_any_number_of_threads_and_refuse_an_unknown_expert():
    g = torch.Generator().manual_seed(0)
    x, A = torch.randn(2000, 70, generator=g, requires_grad=True), torch.randn(40, 70, generator=g)
    indices, results, before = chosen(2000, 10, 2), [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            h = ops.chosen_codes(x, A, torch.ones(40), (4,) * 10, indices)
            results.append((h, torch.autograd.grad(h.square().sum(), x)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with pytest.raises(OptionError, match="outside 0 to 9"):
        ops.chosen_codes(x, A, torch.ones(40), (4,) * 10, indices + 1)


@needs_compiler
def test_no_tensor_but_zeros_grows_with_the_experts():
    layer, x = site(40, 2, dtype=torch.float32)
    update_and_gradients(layer, x)
    with Operations() as seen:
        update_and_gradients(layer, x)
    assert seen.names.count("mm") <= 8  # of θ, M and x² alone, and back; none with A or B


def test_M_is_built_once_kept_out_of_state_and_follows_the_experts():
    layer, x = site(5, 2)
    mole, bank = layer.architectures["default"], layer.bank("default")
    with torch.inference_mode():
        layer.update(x.detach(), "default")
    first = mole._merged[1]
    agree(update_and_gradients(layer, x), update_and_gradients(layer, x, literal_form(layer, x, 2)))
    assert mole._merged[1] is first and not first.requires_grad
    assert not any(
        t.shape == first.shape for t in layer.state_dict().values() if t.shape != layer.base_layer.weight.shape
    )
    with torch.no_grad():
        bank.B.mul_(0.5)
    agree(update_and_gradients(layer, x), update_and_gradients(layer, x, literal_form(layer, x, 2)))
    bank.A.data = bank.A.data.flip(0).contiguous()
    agree(update_and_gradients(layer, x), update_and_gradients(layer, x, literal_form(layer, x, 2)))
    layer.float()
    assert layer.update(x.detach().float(), "default").dtype == torch.float32 and mole._merged[1].dtype == torch.float32


@pytest.mark.parametrize("route", ["direct", "merged"])
def test_what_an_inference_call_kept_serves_a_training_step(route):
    layer, x = site(5, 2, route, dtype=torch.float32)
    bank = layer.bank("default")
    bank.A.data, bank.B.data = bank.A.data.bfloat16(), bank.B.data.bfloat16()
    with torch.inference_mode():
        layer.update(x.detach(), "default")
    assert all(bool(torch.isfinite(t).all()) for t in update_and_gradients(layer, x))


def test_dense_steps_and_experts_that_learn_take_the_direct_route():
    layer, x = site(5, 2)
    layer.dense = True
    agree(update_and_gradients(layer, x), update_and_gradients(layer, x, literal_form(layer, x, None)))
    layer.dense = False
    bank = layer.bank("default")
    bank.A.requires_grad_(True), bank.B.requires_grad_(True)
    found = [
        torch.autograd.grad(f(), (bank.A, bank.B))
        for f in (lambda: layer.update(x, "default").square().sum(), lambda: direct_with(bank, x).square().sum())
    ]
    agree(*found)
    assert layer.architectures["default"]._merged is None


def test_tracing_sees_the_direct_route_only():
    layer, x = site(5, 2)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def direct_with(bank, x):
    other, _ = site(5, 2, "direct")
    other.radar_bank["default"] = bank
    return other.update(x, "default")


def test_auto_weighs_the_sizes(form):
    assert not ops.merged_is_cheaper(40, 2048, 2048, 16) and ops.merged_is_cheaper(2560, 2048, 2048, 16)
    for n, merges in ((2, False), (80, True)):
        layer, x = site(n, 1, "auto", d_in=64, d=64)
        got, want = update_and_gradients(layer, x), update_and_gradients(layer, x, literal_form(layer, x, 1))
        agree(got, want)
        assert (layer.architectures["default"]._merged is not None) == (merges and form == "1")


def compose(zoo, base, route, family="llama", **options):
    model = radargate.compose(base, zoo[family]["adapters"], architecture_options={"route": route}, seed=3, **options)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=g)
    return model.eval()


@torch.no_grad()
def test_composed_saved_loaded_and_masked_it_is_the_direct_one(form, zoo, load_tiny, tmp_path):
    ids = torch.randint(2, 250, (2, 7), generator=torch.Generator().manual_seed(0))
    merged, direct = (compose(zoo, load_tiny(), route) for route in ("merged", "direct"))
    sites = [layer.architectures["default"] for layer in radar_layers(merged)]
    before = merged(input_ids=ids).logits
    torch.testing.assert_close(before, direct(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert any(mole._merged is not None for mole in sites)
    # switched off or scaled, an expert stays among the others that the chosen ones relate to: on both routes
    for factors in ({"law": 0.0}, {"law": 0.0, "code": 0.0}, {"math": 0.5, "code": 2.0}):
        logits = [model(input_ids=ids, experts=factors).logits for model in (merged, direct)]
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(str(tmp_path / "bundle"))
    again = radargate.load(load_tiny(), tmp_path / "bundle").eval()
    assert torch.equal(again(input_ids=ids).logits, before)
    assert radar_layers(again)[0].architectures["default"].options.route == "merged"


@pytest.mark.parametrize(
    ("gate", "options"),
    [
        ("radar", {"gate_input": "experts"}),
        ("radar", {"gate_input": "rotated"}),
        ("mole", {}),
        ("rotation", {}),
        ("uniform", {}),
        ("lorahub", {}),
        ("arrow", {}),
    ],
)
def test_a_gate_that_looks_at_all_experts_is_refused_before_anything_is_loaded(gate, options):
    with pytest.raises(OptionError, match=f"route='merged'.*{gate!r}.*route='direct'"):
        radargate.compose(
            "no/such/base", ["no/such/adapter"], gate=gate, architecture_options={"route": "merged"}, **options
        )


def test_unknown_routes_are_refused_and_auto_takes_any_gate(zoo, load_tiny):
    with pytest.raises(OptionError, match="route is 'table', expected one of: direct, merged, auto"):
        radargate.compose("no/such/base", ["x"], architecture_options={"route": "table"})
    model = compose(zoo, load_tiny(), "auto", gate="mole")
    assert bool(torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all())
