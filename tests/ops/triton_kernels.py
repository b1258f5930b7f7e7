"""The Triton kernels are the literal form. `test_triton.py` runs this file, under Triton's interpreter where no GPU is.

By hand: ``TRITON_INTERPRET=1 pytest tests/ops/triton_kernels.py``, or on a machine with a GPU without the variable.
"""

from __future__ import annotations

import pytest
import torch

import sweeps
from radargate import compose, ops
from radargate.composition.layer import RadarLayer
from radargate.errors import BackendError
from radargate.ops import triton as gpu
from test_ops import F64, problem
from tolerance import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(not gpu.available(DEVICE)[0], reason=gpu.available(DEVICE)[1])
SIZE = 0.15  # of A and B: angles of hundreds of radians mean nothing in float32


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Small tiles, so that little data crosses many of them; and not-a-number wherever a kernel has to write."""
    from radargate.ops.triton import launch, operators

    monkeypatch.setattr(launch, "BLOCKS", launch.Blocks(few=3, columns=32, few_columns=16, code_columns=16, programs=4))
    monkeypatch.setattr(gpu, "devices", {DEVICE})
    scratch, turned = launch._scratch, operators._turned
    monkeypatch.setattr(launch, "_scratch", lambda *size: scratch(*size).fill_(float("nan")))
    monkeypatch.setattr(operators, "_turned", lambda *given: turned(*given).fill_(float("nan")))


def chosen(tokens, n, k, seed=0):
    """k different experts for every token."""
    scores = torch.rand(tokens, n, generator=torch.Generator().manual_seed(seed))
    return None if k is None else scores.argsort(-1)[:, :k].to(DEVICE)


def on_device(inputs, dtype, learns=True):
    """The inputs in another dtype on the device; B is frozen, as in every composition."""

    def move(name, t):
        return t.detach().to(DEVICE, dtype).requires_grad_(learns and name != "B")

    return {
        name: [move(name, t) for t in v] if isinstance(v, list) else None if v is None else move(name, v)
        for name, v in inputs.items()
    }


def radar(inputs, dtype, backend, order=None, indices=None, **kwargs):
    """The update and its gradient to every tensor but B; ``order`` in which tokens are worked on changes nothing but rounding."""
    inputs = on_device(inputs, dtype)
    learning = [t for v in inputs.values() if v is not None for t in (v if isinstance(v, list) else [v])]
    learning = [t for t in learning if t.requires_grad]
    if order is None:
        order = torch.arange(inputs["x"].shape[0], device=DEVICE)
    chosen_ones = None if indices is None else indices[order]
    out = ops.radar(**{**inputs, "x": inputs["x"][order]}, backend=backend, indices=chosen_ones, **kwargs)[
        order.argsort()
    ]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(out)
    found = torch.autograd.grad((out * weight).sum(), learning, allow_unused=True)
    return [out.detach(), *(torch.zeros_like(t) if g is None else g for t, g in zip(learning, found, strict=True))]


def agree(inputs, **kwargs):
    """Values and gradients in float32 are the literal form's, by the one tolerance rule.

    Of a gradient of a few numbers one run of the literal form may by luck be exact, so its error is the largest of several
    orders of the tokens.
    """
    exact = radar(inputs, F64, "literal", **kwargs)
    g = torch.Generator().manual_seed(0)
    orders = [None, *(torch.randperm(len(inputs["x"]), generator=g).to(DEVICE) for _ in range(4))]
    plain = [radar(inputs, torch.float32, "literal", order, **kwargs) for order in orders]
    got = radar(inputs, torch.float32, "triton", **kwargs)
    for i, (a, c, *each) in enumerate(zip(got, exact, *plain, strict=True)):
        worst = max(each, key=lambda b: float((b.double() - c).abs().max()) if b.numel() else 0.0)
        assert_close(a, worst, c, gradient=i > 0, what=f"{'gradient' if i else 'update'} {i} with {kwargs}")


def parts(n=3, d=20, tokens=5, k=2, dtype=torch.float32, r_a=3, seed=0, learns=True):
    """What `rotation_codes` and `mix` take."""
    inputs = on_device(problem(n, 5, d, (tokens,), r_a, seed=seed, size=0.3), dtype, False)
    A, B = torch.cat(inputs["A"]), torch.cat([b.T for b in inputs["B"]])
    indices = chosen(tokens, n, k)
    weights = torch.rand(tokens, n if k is None else k, generator=torch.Generator().manual_seed(seed)).to(B)
    tensors = [inputs["x"] @ A.T, B, inputs["down"], inputs["up"], weights]
    return [t.requires_grad_(learns and t is not B) for t in tensors], [a.shape[0] for a in inputs["A"]], indices


def turned(h, B, down, up, weights, ranks, indices, onto=None, angle_norm="unit", backend="triton", **options):
    """Both operations."""
    code = ops.rotation_codes(h, B, ranks, down, indices=indices, angle_norm=angle_norm, backend=backend)
    return ops.mix(
        h, B, ranks, weights, indices, code, up, angle_norm=angle_norm, onto=onto, backend=backend, **options
    )


@pytest.mark.parametrize(
    ("sizes", "angle_norm"),
    sweeps.each([(1, 2, 1, 1), (2, 7, 3, 2), (3, 33, 17, 2), (4, 35, 18, None), (5, 16, 35, 1)], ops.ANGLE_NORMS),
    ids=str,
)
def test_values_and_gradients_are_the_literal_forms(angle_norm, sizes):
    n, d, tokens, k = sizes
    agree(problem(n, 4, d, (tokens,), size=SIZE), indices=chosen(tokens, n, k), angle_norm=angle_norm)


@pytest.mark.parametrize("k", [None, 2])
def test_ranks_from_1_to_64_and_wide_codes(k):
    inputs = problem(3, 5, 5, (4,), r_a=17, size=0.05)
    g = torch.Generator().manual_seed(2)
    inputs["A"] = [torch.randn(r, 5, generator=g, dtype=F64) * 0.1 for r in (64, 1, 9)]
    inputs["B"] = [torch.randn(5, r, generator=g, dtype=F64) * 0.1 for r in (64, 1, 9)]
    agree(inputs, indices=chosen(4, 3, k), angle_norm="unit")


def test_codes_from_the_input_turn_the_sum_once():
    options = {"rotation_input": "input"}
    agree(problem(3, 4, 9, (17,), options=options, size=SIZE), indices=chosen(17, 3, 2), **options)


@pytest.mark.parametrize("angle_norm", ["unit", "mean"])
def test_a_given_total_serves_and_gets_its_gradient(angle_norm):
    agree(problem(3, 4, 9, (17,), size=SIZE), indices=chosen(17, 3, 2), angle_norm=angle_norm, route="merged")


@pytest.mark.parametrize("silent", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("k", [None, 1])
def test_silent_experts_turn_nothing_and_have_finite_gradients(silent, k):
    inputs = problem(3, 4, 9, (17,), size=SIZE)
    inputs["B"] = [torch.zeros_like(b) if i in silent else b for i, b in enumerate(inputs["B"])]
    agree(inputs, indices=chosen(17, 3, k), angle_norm="unit")


@pytest.mark.parametrize("size", [1e-2, 1e-6])
def test_nearly_silent_others_keep_their_direction_under_unit(size):
    # total - v is rounding here: only the others' own codes know the direction
    tokens = 2 if size == 1e-2 else 4
    inputs = problem(3, 4, 33, (tokens,))
    for i in (1, 2):
        inputs["B"][i] = inputs["B"][i].detach() * size
    agree(inputs, indices=torch.tensor([[0, 1], [2, 0]] * 2, device=DEVICE)[:tokens], angle_norm="unit")


@pytest.mark.parametrize("tokens", [1, 17])
def test_half_precision_is_read_exactly_and_written_once(tokens):
    for dtype in (torch.bfloat16, torch.float16):
        (h, B, down, up, weights), ranks, indices = parts(tokens=tokens, learns=False)
        h, B = h.to(dtype), B.to(dtype)
        wide = turned(h.float(), B.float(), down, up, weights, ranks, indices)
        assert torch.equal(turned(h, B, down, up, weights, ranks, indices), wide)
        y = torch.randn(wide.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
        found = turned(h, B, down, up, weights, ranks, indices, onto=y)
        assert found.dtype == dtype
        if DEVICE == "cuda" or dtype == torch.float16:
            assert torch.equal(found, (y.float() + wide).to(dtype))
        else:  # the interpreter cuts off what a GPU rounds
            torch.testing.assert_close(found.float(), y.float() + wide, atol=0, rtol=2**-7)


def test_gradients_come_in_each_inputs_dtype():
    (h, B, down, up, weights), ranks, indices = parts(tokens=17, learns=False)
    wide = [t.bfloat16().float().requires_grad_() for t in (h, down, up, weights)]
    half = [t.detach().bfloat16().requires_grad_() for t in wide]
    want = torch.autograd.grad(turned(wide[0], B, *wide[1:], ranks, indices).sum(), wide)
    got = torch.autograd.grad(turned(half[0], B, *half[1:], ranks, indices).sum(), half)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, atol=0.02 * float(b.abs().max()), rtol=0.02)


@pytest.mark.parametrize("tokens", [2, 17])
def test_adding_onto_the_base_output(tokens):
    tensors, ranks, indices = parts(tokens=tokens)
    y = torch.randn(tokens, 20, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    update = turned(*tensors, ranks, indices)
    added = turned(*tensors, ranks, indices, onto=y)
    torch.testing.assert_close(added, y + update)
    want, got = (torch.autograd.grad(t.square().sum(), [y, *tensors[2:]]) for t in (y + update, added))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        before, copy = y.detach().clone(), y.detach().clone()
        assert torch.equal(turned(*tensors, ranks, indices, onto=before), added) and torch.equal(before, y)
        assert turned(*tensors, ranks, indices, onto=copy, in_place=True).data_ptr() == copy.data_ptr()
        assert torch.equal(copy, added)


def test_strided_tensors_and_any_leading_shape():
    (h, B, down, up, weights), ranks, indices = parts(tokens=6, learns=False)

    def strided(t):
        return t.T.contiguous().T

    plain = turned(h, B, down, up, weights, ranks, indices)
    got = turned(*(strided(t) for t in (h, B, down, up, weights)), ranks, strided(indices))
    assert torch.equal(got, plain)
    onto = torch.zeros(20, 6, device=DEVICE).T
    assert torch.equal(turned(h, B, down, up, weights, ranks, indices, onto=onto, in_place=True), plain)
    folded = [t.view(2, 3, -1) for t in (h, weights, indices)]
    got = turned(folded[0], B, down, up, folded[1], ranks, folded[2], onto=torch.zeros(2, 3, 20, device=DEVICE))
    assert torch.equal(got, plain.view(2, 3, -1))


@pytest.mark.parametrize("angle_norm", ["unit", "none"])
def test_no_tokens_give_no_update_and_gradients_of_zero(angle_norm):
    tensors, ranks, indices = parts(tokens=0)
    update = turned(*tensors, ranks, indices, angle_norm=angle_norm)
    assert update.shape == (0, 20)
    for t, g in zip(
        [t for t in tensors if t.requires_grad],
        torch.autograd.grad(update.sum(), [t for t in tensors if t.requires_grad]),
        strict=True,
    ):
        assert g.shape == t.shape and not g.any()


@pytest.mark.parametrize("k", [2, None])
def test_runs_are_bit_equal(k):
    tensors, ranks, indices = parts(3, 36, 20, k)

    def run():
        update = turned(*tensors, ranks, indices)
        return [update, *torch.autograd.grad(update.square().sum(), [t for t in tensors if t.requires_grad])]

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


def test_the_same_expert_twice_counts_twice():
    tensors, ranks, _ = parts(tokens=17)
    indices = torch.tensor([[1, 1]] * 17, device=DEVICE)
    learning, weight = [t for t in tensors if t.requires_grad], torch.randn(17, 20).to(DEVICE)
    updates = [turned(*tensors, ranks, indices, backend=form) for form in ("triton", "codes")]
    torch.testing.assert_close(*updates, atol=1e-5, rtol=1e-5)
    for a, b in zip(*(torch.autograd.grad((u * weight).sum(), learning) for u in updates), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-4)


def test_angles_of_every_size():
    sizes = [0.0, 1e-30, 1e-5, 0.3, 0.7853981, 1.5707963, 3.1415927, 50.0, 2e3, 8e3, 9e4, 1e9, 1e12]
    size = torch.tensor(sizes, device=DEVICE)
    code = torch.cat([size, -size]).view(-1, 1, 1)
    h, B = code.new_ones(1, 2), torch.tensor([[1.0, 0.0], [0.0, 0.5]], device=DEVICE)
    one = code.new_ones(1, 1)
    for angle_norm in ("none", "tanh"):
        # one by one, as a tile of small angles takes another way than one with a large angle
        found = [
            ops.mix(h, B, [2], one, None, c.view(1, 1, 1), one, angle_norm=angle_norm, backend="triton") for c in code
        ]
        alpha = ops.angles(code.double(), one.double(), None, angle_norm)[:, 0, 0]
        exact = torch.stack([alpha.cos() - alpha.sin() * 0.5, alpha.sin() + alpha.cos() * 0.5], -1)
        bound = (6 if angle_norm == "tanh" else 2) * torch.finfo(torch.float32).eps
        torch.testing.assert_close(torch.cat(found).double(), exact, atol=bound, rtol=0)


def test_what_is_not_finite_stays_so_and_stays_alone():
    (h, B, down, up, weights), ranks, indices = parts(tokens=18, learns=False)
    for value, angle_norm in sweeps.each((float("nan"), float("inf")), ("unit", "none", "tanh")):
        bad = h.clone()
        bad[4, :] = value
        update = turned(bad, B, down, up, weights, ranks, indices, angle_norm=angle_norm)
        assert not bool(torch.isfinite(update[4]).all())
        assert bool(torch.isfinite(update[torch.arange(18, device=DEVICE) != 4]).all())


@pytest.mark.parametrize("tokens", [3, 18])
def test_an_index_without_an_expert_gives_no_numbers_and_reads_nothing(tokens):
    # raising would have to wait for the device
    (h, B, down, up, weights), ranks, indices = parts(tokens=tokens, learns=False)
    for wrong in (-1, 3, 2**31):
        indices[1, 0] = wrong
        update = turned(h, B, down, up, weights, ranks, indices)
        assert bool(update[1].isnan().all()) and bool(torch.isfinite(update[[0, 2]]).all())


@pytest.mark.parametrize(
    "learning", [(True, False, False, False), (False, True, False, True), (False, False, True, False)]
)
def test_frozen_inputs_get_no_gradient_and_do_not_disturb_the_others(learning):
    tensors, ranks, indices = parts(tokens=17)
    full = torch.autograd.grad(turned(*tensors, ranks, indices).square().sum(), [tensors[i] for i in (0, 2, 3, 4)])
    h, down, up, weights = (
        tensors[i].detach().requires_grad_(on) for i, on in zip((0, 2, 3, 4), learning, strict=True)
    )
    turned(h, tensors[1], down, up, weights, ranks, indices).square().sum().backward()
    for t, on, want in zip((h, down, up, weights), learning, full, strict=True):
        assert (t.grad is not None) == on
        if on:
            torch.testing.assert_close(t.grad, want)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reference": "selected", "indices": [[0, 1]] * 4}, "relate to all others"),
        ({"down": None}, "no low-rank"),
        ({"up": torch.zeros(3, 3, 3)}, "of its own"),
        ({"up": None, "down": None}, "no low-rank|nothing turns"),
    ],
)
def test_what_the_kernels_lack_is_refused_when_asked_for_and_else_done_in_pytorch(change, reason):
    change = {k: torch.tensor(v, device=DEVICE) if k == "indices" else v for k, v in change.items()}
    inputs = on_device(problem(3, 5, 6, (4,), size=SIZE), torch.float32, False)
    if change.get("down", 0) is None and "up" not in change:
        change["up"] = torch.randn(6, 3, device=DEVICE)
    inputs.update({k: v for k, v in change.items() if k in inputs})
    options = {k: v for k, v in change.items() if k not in inputs}
    with pytest.raises(BackendError, match=reason):
        ops.radar(**inputs, **options, backend="triton")
    torch.testing.assert_close(ops.radar(**inputs, **options), ops.radar(**inputs, **options, backend="literal"))


def test_experts_that_learn_and_float64_go_to_pytorch():
    (h, B, *rest), ranks, indices = parts(dtype=F64)
    with pytest.raises(BackendError, match="float64"):
        turned(h, B, *rest, ranks, indices)
    (h, B, *rest), ranks, indices = parts()
    with pytest.raises(BackendError, match="experts learn"):
        turned(h, B.requires_grad_(), *rest, ranks, indices)
    turned(h, B, *rest, ranks, indices, backend="auto").sum().backward()
    assert B.grad is not None


@pytest.mark.parametrize("k", [2, None])
def test_the_operators_keep_their_promises_to_pytorch(k):
    from radargate.ops.triton import operators

    (h, B, down, up, weights), ranks, indices = parts(tokens=17, k=k)
    slots = weights.shape[1]
    code = torch.randn(17, slots, 3, device=DEVICE, requires_grad=True)
    y = torch.randn(17, 20, device=DEVICE, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operators.turn_op, (y, h, B, weights, code, up, indices, ranks, False), test_utils=checks)
    torch.library.opcheck(operators.rotation_codes_op, (h, B, None, down, indices, ranks, True, 1.0), test_utils=checks)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiling_keeps_one_graph_values_and_gradients(backend):
    tensors, ranks, indices = parts(tokens=17)
    y = torch.randn(17, 20, device=DEVICE)
    learning = [t for t in tensors if t.requires_grad]

    def run(function):
        out = function(*tensors, ranks, indices, onto=y)
        return [out, *torch.autograd.grad(out.square().sum(), learning)]

    torch.compiler.reset()
    compiled = torch.compile(turned, backend=backend, fullgraph=True)
    for a, b in zip(run(compiled), run(turned), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("angle_norm", ops.ANGLE_NORMS)
def test_chosen_codes_and_their_sum_serve_the_kernels_but_not_under_unit(angle_norm):
    g, ranks, indices = torch.Generator().manual_seed(0), (2, 3, 1), chosen(9, 3, 2)
    x, A, B, P = (torch.randn(*s, generator=g).to(DEVICE) for s in ((9, 5), (6, 5), (6, 8), (8, 3)))
    scale = torch.ones(6, device=DEVICE)
    M, sizes = ops.merge(A, B, scale, ranks)
    few, total = ops.chosen_codes(x, A, scale, ranks, indices), x @ M
    options = {"indices": indices, "angle_norm": angle_norm}
    given = {**options, "total": total, "rounding": ops.rounding(x, sizes, total)}
    want = ops.rotation_codes(ops.codes(x, A, scale), B, ranks, P, **options, backend="codes")
    torch.testing.assert_close(ops.rotation_codes(few, B, ranks, P, **given), want, rtol=1e-4, atol=1e-4)
    if angle_norm == "unit":
        with pytest.raises(BackendError, match="want every expert's codes"):
            ops.rotation_codes(few, B, ranks, P, **given, backend="triton")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_layer_is_one_graph(zoo, load_tiny, backend):
    model = compose(load_tiny(), zoo["llama"]["adapters"], gate="radar", top_k=2).to(DEVICE)
    layer = next(
        m for m in model.modules() if isinstance(m, RadarLayer) and len(m.entries["default"][1]["experts"]) == 3
    )
    with torch.no_grad():
        for parameter in layer.gate("default").parameters():
            parameter.normal_(std=0.3)
    x = torch.randn(2, 9, 24, device=DEVICE, requires_grad=True)
    seen, serves = [], gpu.mix
    gpu.mix = lambda *args, **options: seen.append(1) or serves(*args, **options)
    try:
        want = layer(x)
    finally:
        gpu.mix = serves
    assert seen, "the layer runs on the kernels"
    torch.compiler.reset()
    found = torch.compile(layer, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(found, want)
    parameters = [x, *(p for p in layer.gate("default").parameters() if p.requires_grad)]
    for a, b in zip(*(torch.autograd.grad(t.square().sum(), parameters) for t in (found, want)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs are the GPU's")
def test_a_decode_step_is_captured_and_replays_on_new_inputs():
    (h, B, down, up, weights), ranks, indices = parts(4, 70, 2, learns=False)
    for _ in range(2):  # compiles the kernels, places the layout of the experts
        turned(h, B, down, up, weights, ranks, indices)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = turned(h, B, down, up, weights, ranks, indices)
    h.copy_(torch.randn_like(h))
    indices.copy_(indices.flip(0))
    graph.replay()
    torch.testing.assert_close(captured, turned(h, B, down, up, weights, ranks, indices))
