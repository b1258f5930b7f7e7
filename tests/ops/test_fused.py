"""The compiled operations are the literal form, bit-equal from run to run; without a compiler PyTorch does the same work."""

from __future__ import annotations

import ctypes
import itertools
import os
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fresh
from radargate import ops
from radargate.errors import OptionError
from radargate.ops import cpp as fused
from radargate.ops.cpp import build
from sweeps import pairs
from test_ops import F64, gradients, problem
from tolerance import assert_close

needs_compiler = pytest.mark.skipif(not fused.available()[0], reason=f"no compiled operations: {fused.available()[1]}")
REFERENCES = (("all", None), ("all", 2), ("selected", 2))


@pytest.fixture(params=[pytest.param("1", marks=needs_compiler), "0"], ids=["compiled", "pytorch"])
def form(request, monkeypatch):
    """Both forms; says which one."""
    monkeypatch.setenv("RADARGATE_FUSED", request.param)
    return request.param


def chosen(tokens, n, k, seed=0):
    """k different experts for every token."""
    scores = torch.rand(tokens, n, generator=torch.Generator().manual_seed(seed))
    return None if k is None else scores.argsort(-1)[:, :k]


def agree(inputs, **kwargs):
    """Values and gradients are the literal form's."""
    want, want_grads = gradients(inputs, backend="literal", **kwargs)
    got, got_grads = gradients(inputs, backend="codes", **kwargs)
    torch.testing.assert_close(got, want, atol=1e-11, rtol=1e-10)
    for a, b in zip(got_grads, want_grads, strict=True):
        assert bool(torch.isfinite(a).all())
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-9)


def parts(n=3, d=6, tokens=5, k=None, dtype=F64, r_a=3, seed=0, learns=True):
    """What `rotation_codes` and `mix` take."""
    inputs = problem(n, 5, d, (tokens,), r_a, dtype=dtype, seed=seed)
    A, B = torch.cat(inputs["A"]), torch.cat([b.T for b in inputs["B"]])
    ranks = [a.shape[0] for a in inputs["A"]]
    h = ops.codes(inputs["x"], A, torch.ones(sum(ranks), dtype=dtype)).detach().requires_grad_(learns)
    weights = torch.rand(tokens, n if k is None else k, generator=torch.Generator().manual_seed(seed)).to(dtype)
    tensors = h, B.detach(), inputs["down"].detach(), inputs["up"].detach(), weights
    return [t.requires_grad_(learns) for t in tensors], ranks, chosen(tokens, n, k)


def turned(h, B, down, up, weights, ranks, indices, total=None, **options):
    """Both operations."""
    code = ops.rotation_codes(h, B, ranks, down, indices=indices, total=total, **options)
    return ops.mix(h, B, ranks, weights, indices, code, up, angle_norm=options.get("angle_norm", "none"))


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("angle_norm", ops.ANGLE_NORMS)
@pytest.mark.parametrize(("reference", "k"), REFERENCES)
def test_every_width_and_number_of_experts(form, angle_norm, reference, k):
    for n, d, tokens in pairs((1, 2, 5), (1, 2, 7, 16, 33, 70), (0, 1, 3, 21)):
        indices = None if k is None else chosen(tokens, n, min(k, n))
        agree(problem(n, 4, d, (tokens,)), indices=indices, angle_norm=angle_norm, reference=reference)


@pytest.mark.parametrize("k", [1, 5, None])
def test_many_tokens_cross_chunks_and_spans(form, k):
    for d in (6, 130):
        agree(problem(5, 4, d, (700,)), indices=chosen(700, 5, k), angle_norm="unit")


def test_a_b_that_no_cache_holds_is_taken_in_parts(form):
    for angle_norm in ("unit", "tanh"):
        # at size 1 the sum over so many experts turns by thousands of radians, whose rounding alone is 2e-10
        agree(problem(200, 4, 470, (21,), size=0.1), indices=chosen(21, 200, 2), angle_norm=angle_norm)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_what_the_update_is_added_to_gets_its_gradient(form, dtype):
    tensors, ranks, indices = parts(d=9, k=2)
    onto = torch.randn(5, 9, generator=torch.Generator().manual_seed(4)).to(dtype).requires_grad_()
    h, B, down, up, weights = tensors
    code = ops.rotation_codes(h, B, ranks, down, indices=indices)
    apart = onto + ops.mix(h, B, ranks, weights, indices, code, up).to(dtype)
    together = ops.mix(h, B, ranks, weights, indices, code, up, onto=onto)
    assert together.dtype == dtype
    torch.testing.assert_close(together, apart)
    probe = torch.randn(5, 9, generator=torch.Generator().manual_seed(5)).to(dtype)
    found = [torch.autograd.grad((out * probe).sum(), (onto, *tensors), retain_graph=True) for out in (apart, together)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@needs_compiler
def test_the_compiled_form_runs_where_it_should_and_only_there(monkeypatch):
    tensors, ranks, indices = parts(k=2)

    def names(**options):
        with Operations() as seen:
            turned(*tensors, ranks, indices, **options).sum().backward()
        return seen.names

    assert not {"mm", "sin", "cos", "bmm"} & set(names(angle_norm="unit"))
    monkeypatch.setenv("RADARGATE_FUSED", "0")
    assert {"mm", "sin"} <= set(names(angle_norm="unit"))


@pytest.mark.parametrize(("angle_norm", "chooses", "given"), pairs(ops.ANGLE_NORMS, REFERENCES, [False, True]))
def test_gradients_agree_with_finite_differences(form, angle_norm, chooses, given):
    reference, k = chooses
    tensors, ranks, indices = parts(k=k)
    total = (torch.randn(5, 6, dtype=F64, generator=torch.Generator().manual_seed(3))).requires_grad_()

    def update(h, B, down, up, weights, total):
        options = {"angle_norm": angle_norm, "reference": reference, "total": total if given else None}
        return turned(h, B, down, up, weights, ranks, indices, **options) + 0 * total

    assert torch.autograd.gradcheck(update, (*tensors, total), atol=1e-6)


@pytest.mark.parametrize("angle_norm", ops.ANGLE_NORMS)
@pytest.mark.parametrize("silent", [(0,), (1, 2), (0, 1, 2)])
def test_silent_experts_turn_nothing_and_have_finite_gradients(form, angle_norm, silent):
    for k in (None, 1, 2):
        inputs = problem(3, 4, 9, (11,))
        inputs["B"] = [torch.zeros_like(b).requires_grad_() if i in silent else b for i, b in enumerate(inputs["B"])]
        agree(inputs, indices=chosen(11, 3, k), angle_norm=angle_norm)


@pytest.mark.parametrize("size", [1e-3, 1e-9, 1e-14])
@pytest.mark.parametrize(("reference", "k"), REFERENCES)
def test_nearly_silent_others_keep_their_direction_under_unit(form, size, reference, k):
    # total - v is rounding here: only the others' own codes know the direction
    inputs = problem(3, 4, 9, (11,))
    for i in (1, 2):
        inputs["B"][i] = (inputs["B"][i].detach() * size).requires_grad_()
    indices = None if k is None else torch.tensor([[0, 1], [2, 0]] * 5 + [[0, 2]])
    kwargs = {"indices": indices, "angle_norm": "unit", "reference": reference}
    want, want_grads = gradients(inputs, backend="literal", **kwargs)
    got, got_grads = gradients(inputs, backend="codes", **kwargs)
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    for a, b in zip(got_grads, want_grads, strict=True):
        assert (a - b).abs().max() <= 1e-8 * b.abs().max() + 1e-12


def test_strided_tensors_and_any_leading_shape(form):
    (h, B, down, up, weights), ranks, indices = parts(tokens=6, k=2)
    plain = turned(h, B, down, up, weights, ranks, indices, angle_norm="unit")

    def strided(t):
        return t.detach().T.contiguous().T

    options = {"angle_norm": "unit"}
    got = turned(*(strided(t) for t in (h, B, down, up, weights)), ranks, strided(indices), **options)
    torch.testing.assert_close(got, plain)
    shaped = turned(h.view(2, 3, -1), B, down, up, weights.view(2, 3, -1), ranks, indices.view(2, 3, -1), **options)
    torch.testing.assert_close(shaped, plain.view(2, 3, -1))
    expanded = torch.autograd.grad(plain.sum(), h)[0]  # the gradient of a sum has stride 0
    torch.testing.assert_close(expanded, torch.autograd.grad(shaped, h, torch.ones(2, 3, 6, dtype=F64))[0])


@pytest.mark.parametrize("angle_norm", ops.ANGLE_NORMS)
@pytest.mark.parametrize(("reference", "k"), REFERENCES)
def test_float32_is_as_good_as_the_literal_form_in_it(form, angle_norm, reference, k):
    # a seed at which the literal form is not lucky: worst errors come from the one token whose reference is smallest
    inputs = problem(9, 48, 192, (96,), 8, dtype=torch.float32, size=0.02, seed=1)
    kwargs = {"indices": chosen(96, 9, k), "angle_norm": angle_norm, "reference": reference}
    wide = {
        name: [t.detach().double().requires_grad_() for t in v]
        if isinstance(v, list)
        else v.detach().double().requires_grad_()
        for name, v in inputs.items()
    }
    exact, exact_grads = gradients(wide, backend="literal", **kwargs)
    plain, plain_grads = gradients(inputs, backend="literal", **kwargs)
    got, got_grads = gradients(inputs, backend="codes", **kwargs)
    assert_close(got, plain, exact, what="update")
    for i, (a, b, c) in enumerate(zip(got_grads, plain_grads, exact_grads, strict=True)):
        assert_close(a, b, c, gradient=True, what=f"gradient {i}")


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_angles_of_every_size(form, dtype):
    sizes = torch.tensor(
        [0.0, 1e-30, 1e-5, 0.3, 0.7853981, 1.5707963, 3.1415927, 50.0, 2e4, 9e4, 2e5, 1e9, 1e12], dtype=dtype
    )
    code = torch.cat([sizes, -sizes]).view(-1, 1, 1)
    h, B = code.new_ones(26, 2), torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=dtype)
    for angle_norm in ("none", "tanh"):
        got = ops.mix(h, B, [2], code.new_ones(26, 1), None, code, code.new_ones(1, 1), angle_norm=angle_norm)
        alpha = ops.angles(code.double(), torch.ones(1, 1, dtype=F64), None, angle_norm)[:, 0, 0]
        exact = torch.stack([alpha.cos() - alpha.sin() * 0.5, alpha.sin() + alpha.cos() * 0.5], -1)
        torch.testing.assert_close(
            got.double(), exact, atol=(6 if angle_norm == "tanh" else 2) * torch.finfo(dtype).eps, rtol=0
        )


def test_what_is_not_finite_stays_so(form):
    (h, B, down, up, weights), ranks, _ = parts(tokens=9, learns=False)
    for value, angle_norm in itertools.product((float("nan"), float("inf")), ops.ANGLE_NORMS):
        bad = h.clone()
        bad[4, 0] = value
        for indices in (None, torch.tensor([[0, 1]] * 9)):
            g = weights if indices is None else weights[:, :2]
            update = turned(bad, B, down, up, g, ranks, indices, angle_norm=angle_norm)
            assert not bool(torch.isfinite(update[4]).all())
            assert bool(torch.isfinite(update[[0, 1, 2, 3, 5, 6, 7, 8]]).all())


@needs_compiler
@pytest.mark.parametrize("k", [2, None])
def test_runs_are_bit_equal_for_any_number_of_threads(k):
    tensors, ranks, indices = parts(9, 70, 600, k, torch.float32, 8)

    def run():
        update = turned(*tensors, ranks, indices, angle_norm="unit")
        return [update, *torch.autograd.grad(update.square().sum(), tensors)]

    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 2):
            torch.set_num_threads(threads)
            code = ops.rotation_codes(*tensors[:2], ranks, tensors[2], indices=indices, angle_norm="unit")
            results.append([code, *run()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_compiler
def test_results_do_not_depend_on_where_memory_lies(tmp_path, monkeypatch):
    # compilers turn a loop into vectors only where its arrays are seen, at each call, to lie apart: both ways must round alike
    def everything():
        results = []
        for dtype, (reference, k), norm in itertools.product((torch.float32, F64), REFERENCES, ("unit", "tanh")):
            for r_a, d in ((3, 7), (8, 24), (8, 70), (16, 192)):
                tensors, ranks, indices = parts(5, d, 40, k, dtype, r_a)
                with torch.no_grad():  # references that are small beside v, and none
                    tensors[0][::3, ranks[0] :] *= 1e-3
                    tensors[0][::7, ranks[0] :] = 0
                update = turned(*tensors, ranks, indices, angle_norm=norm, reference=reference)
                results += [update, *torch.autograd.grad(update.square().sum(), tensors)]
                if k is not None:
                    x, A = torch.linspace(-1, 1, 40 * d, dtype=dtype).view(40, d).requires_grad_(), tensors[1].detach()
                    h = fused.chosen_codes(x, A, tensors[1].detach()[:, 0].contiguous(), ranks, indices)
                    results += [h, *torch.autograd.grad(h.square().sum(), x)]
                    with torch.no_grad():
                        recipe = ops.Recipe(x[:5].contiguous(), 1.0, "auto", *tensors[2:4], 0.3, norm, reference)
                        results.append(
                            ops.site(x[:9], A, tensors[1], A[:, 0].contiguous(), tuple(ranks), recipe, k, x[:9])
                        )
        return results

    vectors = everything()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-fno-tree-vectorize"))
    build.compile_to(tmp_path / "scalar.so", os.environ.get("CXX", ""))
    scalar = ctypes.CDLL(str(tmp_path / "scalar.so"))
    monkeypatch.setattr(build, "library", lambda: (scalar, "loops over numbers"))
    different = [i for i, (a, b) in enumerate(zip(vectors, everything(), strict=True)) if not torch.equal(a, b)]
    assert not different, f"{len(different)} of {len(vectors)} results"


def test_frozen_inputs_get_no_gradient_and_do_not_disturb_the_others(form):
    tensors, ranks, indices = parts(k=2)
    full = torch.autograd.grad(turned(*tensors, ranks, indices, angle_norm="unit").square().sum(), tensors)
    for learning in itertools.product((False, True), repeat=5):
        given = [t.detach().requires_grad_(on) for t, on in zip(tensors, learning, strict=True)]
        update = turned(*given, ranks, indices, angle_norm="unit")
        assert update.requires_grad == any(learning)
        if any(learning):
            update.square().sum().backward()
        for t, on, want in zip(given, learning, full, strict=True):
            assert (t.grad is not None) == on
            if on:
                torch.testing.assert_close(t.grad, want)


@needs_compiler
def test_an_index_without_an_expert_is_refused():
    (h, B, down, *_), ranks, indices = parts(k=2)
    with pytest.raises(OptionError, match="outside 0 to 2"):
        ops.rotation_codes(h, B, ranks, down, indices=indices + 2)


def test_tracing_sees_plain_operations_only():
    (h, B, down, up, weights), ranks, indices = parts(k=2, learns=False)
    want = turned(h, B, down, up, weights, ranks, indices, angle_norm="unit")
    seen = []

    def backend(module, example):
        seen.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    compiled = torch.compile(turned, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(h, B, down, up, weights, ranks, indices, angle_norm="unit"), want)
    assert any("cos" in name for name in seen) and not any("fused" in name for name in seen)


def probe(code, tmp_path, **environment):
    """Run Python in a process of its own with an empty cache folder."""
    source = str(Path(__file__).parents[2] / "src")
    env = {**os.environ, "PYTHONPATH": source, "RADARGATE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1", **environment}
    env.pop("RADARGATE_FUSED", None) if "RADARGATE_FUSED" not in environment else None
    result = fresh.run("-c", code, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout


WORKS = """
import torch
from radargate import ops
g = torch.Generator().manual_seed(0)
h, B, P, Q = (torch.randn(*s, generator=g).requires_grad_() for s in ((4, 6), (6, 8), (8, 2), (2, 4)))
code = ops.rotation_codes(h, B, [3, 3], P)
ops.mix(h, B, [3, 3], torch.full((4, 2), 0.5), None, code, Q).sum().backward()
print(ops.choose_backend())
"""


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "/nonexistent"}, "CXX=/nonexistent is no program"),
        ({"CXX": "false"}, "false failed"),
        ({"RADARGATE_FUSED": "0"}, "RADARGATE_FUSED=0"),
    ],
)
def test_without_a_compiler_pytorch_does_the_work(tmp_path, environment, reason):
    assert reason in probe(WORKS, tmp_path, **environment)
    assert not list(tmp_path.glob("compiled/*.so")) and not list(tmp_path.glob("compiled/*.building"))


@needs_compiler
def test_a_folder_that_others_can_write_is_not_trusted(tmp_path):
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled").chmod(0o777)
    assert "can be written by others" in probe(WORKS, tmp_path)


@needs_compiler
def test_processes_that_start_together_share_one_build(tmp_path):
    code = "from radargate.ops import cpp; print(cpp.available()[0])"
    source = str(Path(__file__).parents[2] / "src")
    env = {**os.environ, "PYTHONPATH": source, "RADARGATE_CACHE": str(tmp_path)}
    running = [fresh.Process("-c", code, env=env, stdout=fresh.PIPE) for _ in "12"]
    assert [process.communicate()[0].strip() for process in running] == ["True", "True"]
    assert len(list(tmp_path.glob("compiled/*.so"))) == 1 and not list(tmp_path.glob("compiled/*.building"))
