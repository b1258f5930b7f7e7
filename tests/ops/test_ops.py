"""The form on codes is the literal form: values, gradients, every combination of options, every odd shape."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import sweeps
from radargate import ops
from radargate.errors import BackendError, OptionError
from radargate.ops import reference as literal
from radargate.ops import slot_gradients as slots
from tolerance import assert_close

F64 = torch.float64


def combinations():
    """Every combination of options that differ in meaning."""
    for angle_norm, gate_input, rotation_input, renormalize, per_expert, full in itertools.product(
        ops.ANGLE_NORMS, ops.GATE_INPUTS, ops.ROTATION_INPUTS, ("auto", "always", "never"), (False, True), (False, True)
    ):
        references = ops.REFERENCES if rotation_input == "experts" and gate_input != "rotated" else ("all",)
        norms = ops.NORMS if gate_input != "input" else ("layer",)
        outputs = (True, False) if gate_input == "rotated" else (True,)
        for reference, norm, rotate_output in itertools.product(references, norms, outputs):
            yield (
                {
                    "angle_norm": angle_norm,
                    "gate_input": gate_input,
                    "rotation_input": rotation_input,
                    "renormalize": renormalize,
                    "reference": reference,
                    "norm": norm,
                    "rotate_output": rotate_output,
                },
                per_expert,
                full,
            )


def some_combinations():
    """All of them for ``--all``, else a part in which every three values that can meet do."""
    found = [(*options.values(), per_expert, full) for options, per_expert, full in combinations()]
    names = list(next(combinations())[0])
    for *values, per_expert, full in sweeps.part(found, 3):
        yield dict(zip(names, values, strict=True)), per_expert, full


def problem(n, d_in, d, shape=(2, 3), r_a=3, options=None, per_expert=False, full=False, dtype=F64, seed=0, size=1.0):
    """Inputs and parameters of a composition with unequal ranks."""
    g = torch.Generator().manual_seed(seed)
    options = options or {}
    ranks = [(3, 1, 4, 2, 5)[i % 5] for i in range(n)]

    def new(*size, scale=1.0):
        return (torch.randn(*size, generator=g, dtype=F64) * scale).to(dtype).requires_grad_()

    source = d_in if options.get("rotation_input") == "input" else d
    leading = (n,) if per_expert else ()
    down = None if full else new(*(leading if options.get("rotation_input") != "input" else ()), source, r_a)
    up = new(*leading, source if full else r_a, d // 2, scale=0.1)
    stretch = new(n, d_in) if options.get("gate_input", "input") == "input" else new(n * d, n)
    return {
        "x": new(*shape, d_in),
        "A": [new(r, d_in, scale=size) for r in ranks],
        "B": [new(d, r) for r in ranks],
        "stretch": stretch,
        "down": down,
        "up": up,
    }


def gradients(inputs, **kwargs):
    """The update, and its gradient to every tensor."""
    tensors = [t for v in inputs.values() if v is not None for t in (v if isinstance(v, list) else [v])]
    out = ops.radar(**inputs, **kwargs)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(out.dtype)
    found = torch.autograd.grad((out * weight).sum(), tensors, allow_unused=True)
    return out.detach(), [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]


def test_codes_equal_literal_for_every_combination_of_options():
    checked = 0
    for options, per_expert, full in some_combinations():
        inputs = problem(3, 5, 7, options=options, per_expert=per_expert, full=full)
        exact, exact_grads = gradients(inputs, top_k=2, backend="literal", **options)
        for route in ops.ROUTES:
            if route != "direct" and (options["rotation_input"] == "input" or options["reference"] == "selected"):
                continue
            got, got_grads = gradients(inputs, top_k=2, backend="codes", route=route, **options)
            assert (got - exact).abs().max() < 1e-10, (options, route)
            for a, b in zip(got_grads, exact_grads, strict=True):
                assert (a - b).abs().max() < 1e-10 * (1 + b.abs().max()), (options, route)
            checked += 1
    assert checked > (700 if sweeps.everything else 50)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 6),
    d_in=st.integers(1, 9),
    d=st.integers(2, 11),
    data=st.data(),
    shape=st.sampled_from([(0,), (1,), (4,), (2, 3), (1, 0), (2, 2)]),
    seed=st.integers(0, 99),
)
def test_codes_equal_literal_for_any_shape(n, d_in, d, data, shape, seed):
    top_k = data.draw(st.integers(1, n))
    angle_norm = data.draw(st.sampled_from(ops.ANGLE_NORMS))
    reference = data.draw(st.sampled_from(ops.REFERENCES))
    inputs = problem(n, d_in, d, shape, seed=seed)
    kwargs = {"top_k": top_k, "angle_norm": angle_norm, "reference": reference}
    exact, exact_grads = gradients(inputs, backend="literal", **kwargs)
    got, got_grads = gradients(inputs, backend="codes", **kwargs)
    assert got.shape == (*shape, d)
    torch.testing.assert_close(got, exact, atol=1e-10, rtol=1e-10)
    for a, b in zip(got_grads, exact_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("angle_norm", ops.ANGLE_NORMS)
@pytest.mark.parametrize("reference", ops.REFERENCES)
def test_gradients_agree_with_finite_differences(angle_norm, reference):
    inputs = problem(3, 4, 5, (2,), r_a=2)
    names = ("x", "stretch", "down", "up")
    indices = torch.tensor([[0, 2], [1, 0]])

    def update(x, stretch, down, up, *banks):
        return ops.radar(
            x,
            list(banks[:3]),
            list(banks[3:]),
            stretch,
            down,
            up,
            indices=indices,
            angle_norm=angle_norm,
            reference=reference,
            backend="codes",
        )

    assert torch.autograd.gradcheck(update, (*(inputs[k] for k in names), *inputs["A"], *inputs["B"]), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("angle_norm", ops.ANGLE_NORMS)
def test_low_precision_is_as_good_as_the_literal_form_in_it(dtype, angle_norm):
    # expert outputs of the size real ones have: angles of hundreds of radians mean nothing in float32
    inputs = problem(8, 40, 33, (19,), dtype=dtype, size=0.02)
    indices = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(i))[:2] for i in range(19)])
    kwargs = {"indices": indices, "angle_norm": angle_norm}
    wide = {
        k: (
            [t.double().detach().requires_grad_() for t in v]
            if isinstance(v, list)
            else v.double().detach().requires_grad_()
        )
        for k, v in inputs.items()
    }
    exact, exact_grads = gradients(wide, backend="literal", **kwargs)
    plain, plain_grads = gradients(inputs, backend="literal", **kwargs)
    got, got_grads = gradients(inputs, backend="codes", **kwargs)
    assert got.dtype == torch.float32
    assert_close(got, plain, exact, what="update")
    for i, (a, b, c) in enumerate(zip(got_grads, plain_grads, exact_grads, strict=True)):
        assert_close(a, b, c, gradient=True, what=f"gradient {i}")


class Largest(TorchDispatchMode):
    """Remembers the largest tensor any operation makes, and the sum of those alive would only be smaller."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


@pytest.mark.parametrize("top_k", [2, None])
def test_no_tensor_of_tokens_times_experts_times_width_exists(top_k):
    n, d, tokens = 40, 96, 128
    inputs = problem(n, 48, d, (tokens,), dtype=torch.float32)
    with Largest() as seen:
        ops.radar(**inputs, top_k=top_k, backend="codes").square().sum().backward()
    assert seen.numel < tokens * n * d / 10
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.radar(**inputs, top_k=top_k, backend="codes")
    kept = {t.data_ptr(): t.numel() for t in saved}
    assert sum(kept.values()) < tokens * n * d / 2, "what the backward pass keeps grows with tokens x n x d"


def test_zero_q_is_stretch_exactly_and_rotation_keeps_norms():
    inputs = problem(4, 6, 8, (5,))
    zero = {**inputs, "up": torch.zeros_like(inputs["up"])}
    stretch = {**inputs, "down": None, "up": None}
    assert torch.equal(ops.radar(**zero, top_k=2), ops.radar(**stretch, top_k=2)) or torch.allclose(
        ops.radar(**zero, top_k=2), ops.radar(**stretch, top_k=2), atol=1e-14
    )
    v, alpha = torch.randn(5, 9, dtype=F64), torch.randn(5, 4, dtype=F64)
    torch.testing.assert_close(literal.rotate(v, alpha).norm(dim=-1), v.norm(dim=-1))
    torch.testing.assert_close(literal.rotate(literal.rotate(v, alpha), -alpha), v)
    assert torch.equal(literal.rotate(v, alpha)[:, -1], v[:, -1])  # an odd last coordinate stays


def test_permuting_the_experts_leaves_the_update():
    inputs = problem(4, 6, 8, (5,))
    order = [2, 0, 3, 1]
    swapped = {
        **inputs,
        "A": [inputs["A"][i] for i in order],
        "B": [inputs["B"][i] for i in order],
        "stretch": inputs["stretch"][order],
    }
    torch.testing.assert_close(ops.radar(**inputs, top_k=2), ops.radar(**swapped, top_k=2), atol=1e-12, rtol=0)


def test_one_expert_is_plain_lora_and_silent_experts_turn_nothing():
    for angle_norm in ops.ANGLE_NORMS:
        one = problem(1, 5, 6, (4,))
        plain = (one["x"] @ one["A"][0].T) @ one["B"][0].T
        torch.testing.assert_close(ops.radar(**one, angle_norm=angle_norm), plain, atol=1e-12, rtol=0)
        silent = problem(3, 5, 6, (4,))
        silent["B"] = [silent["B"][0], *(torch.zeros_like(b).requires_grad_() for b in silent["B"][1:])]
        for route in ops.ROUTES:
            out = ops.radar(
                **silent,
                angle_norm=angle_norm,
                route=route,
                indices=torch.zeros(4, 1, dtype=torch.long),
                renormalize="always",
            )
            torch.testing.assert_close(out, (silent["x"] @ silent["A"][0].T) @ silent["B"][0].T, atol=1e-12, rtol=0)
            out.sum().backward()
            assert all(bool(torch.isfinite(t.grad).all()) for t in (silent["x"], silent["down"], silent["up"]))


def test_top_one_learns_unless_renormalised():
    inputs = problem(3, 5, 6, (4,))
    for renormalize, learns in (("auto", True), ("never", True), ("always", False)):
        inputs["stretch"].grad = None
        ops.radar(**inputs, top_k=1, renormalize=renormalize).sum().backward()
        assert bool((inputs["stretch"].grad.abs() > 1e-12).any()) == learns


def test_selection_keeps_the_largest_and_breaks_ties_by_the_lowest_index():
    weights, indices = ops.select(torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]]), 2)
    assert indices.tolist() == [[1, 2], [0, 1]]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2))
    dense = torch.tensor([[1.0, 3.0, 2.0]]).softmax(-1)
    torch.testing.assert_close(ops.select(torch.tensor([[1.0, 3.0, 2.0]]), 2, renormalize="never")[0], dense[:, [1, 2]])
    masked, _ = ops.select(torch.zeros(1, 3), None, multipliers=torch.tensor([1.0, 0.0, 3.0]))
    torch.testing.assert_close(masked, torch.tensor([[0.25, 0.0, 0.75]]))


def test_codes_and_mix_take_rotation_codes_from_anywhere():
    inputs = problem(3, 5, 6, (4,))
    A, B = torch.cat(inputs["A"]), torch.cat([b.T for b in inputs["B"]])
    ranks = [a.shape[0] for a in inputs["A"]]
    h = ops.codes(inputs["x"], A, torch.ones(sum(ranks), dtype=F64))
    weights, indices = ops.select(inputs["x"] @ inputs["stretch"].T, 2)
    mine = ops.rotation_codes(h, B, ranks, inputs["down"], indices=indices)
    torch.testing.assert_close(ops.mix(h, B, ranks, weights, indices, mine, inputs["up"]), ops.radar(**inputs, top_k=2))
    other = torch.randn(4, 1, 3, dtype=F64)
    angle = ops.angles(other, inputs["up"], indices)
    v = literal.expert_outputs(inputs["x"], inputs["A"], inputs["B"]).gather(1, indices[..., None].expand(-1, -1, 6))
    expected = (weights[..., None] * literal.rotate(v, angle)).sum(1)
    torch.testing.assert_close(ops.mix(h, B, ranks, weights, indices, other, inputs["up"]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 4}, "top_k is 4, expected 1 to 3"),
        ({"temperature": 0.0}, "temperature"),
        ({"angle_norm": "big"}, "angle_norm is 'big'"),
        ({"renormalize": "yes"}, "renormalize"),
        ({"gate_input": "rotated", "reference": "selected"}, "stretch is|circle"),
        ({"route": "merged", "reference": "selected"}, "merged"),
        ({"up": torch.zeros(3, 5, dtype=F64)}, "up has 5 angles, expected d_out // 2 = 3"),
        ({"up": None}, "without up"),
        ({"stretch": torch.zeros(2, 5, dtype=F64)}, r"stretch is \(2, 5\), expected \(3, 5\)"),
    ],
)
def test_impossible_options_say_what_was_found_and_expected(change, message):
    with pytest.raises(OptionError, match=message):
        ops.radar(**{**problem(3, 5, 6, (4,)), **change})


def test_an_explicit_backend_is_honoured_or_refused():
    assert ops.choose_backend()[0] == "codes"
    assert ops.choose_backend("literal")[0] == "literal"
    with pytest.raises(BackendError, match="triton"):
        ops.choose_backend("triton")
    with pytest.raises(BackendError, match="Unknown backend"):
        ops.choose_backend("cuda")


@pytest.mark.parametrize("angle_norm", ["none", "unit"])
def test_tokens_taken_together_by_expert_equal_the_literal_form(angle_norm, monkeypatch):
    monkeypatch.setenv("RADARGATE_FUSED", "0")
    n, tokens = slots.GROUPED_EXPERTS + 2, 100
    inputs = problem(n, 6, 9, (tokens,), seed=3)
    chosen = torch.randint(n, (tokens, 1), generator=torch.Generator().manual_seed(0))
    one = slots.make_slot((1,) * n, torch.arange(n), chosen, 0, F64)
    assert one.own is None and sum(len(where) for where, _ in one.groups) == tokens
    exact, exact_grads = gradients(inputs, backend="literal", top_k=3, angle_norm=angle_norm)
    got, got_grads = gradients(inputs, backend="codes", top_k=3, angle_norm=angle_norm)
    torch.testing.assert_close(got, exact, atol=1e-9, rtol=1e-9)
    for a, b in zip(got_grads, exact_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)
