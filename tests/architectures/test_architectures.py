"""Architectures: each equals its literal twin in float64, values and gradients, under every gate; experts for hydra."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import radargate
from radargate import ops
from radargate.architectures import ARCHITECTURES
from radargate.cli import main
from radargate.composition.composing import expert_bank, radar_layers
from radargate.errors import AdapterError, OptionError
from radargate.experts.bank import load_bank, write_expert
from radargate.gates import GATES
from radargate.gates.base import Call, GateSite, make_options
from radargate.ops import reference as literal
from radargate.ops.shared_basis import orthogonal
from sweeps import pairs

F64 = torch.float64
OMOE = [
    {"norm": norm, "order": order, "orthogonalize": which}
    for norm, order, which in itertools.product(
        ("none", "keep_input_norm", "unit"), ("index", "weight"), ("all", "selected")
    )
]
CASES = [("mole", {}), ("hydra", {}), *[("omoe", options) for options in OMOE]]
TURNS = [
    {"angle_norm": a, "reference": r, "rotation_sharing": s}
    for a, r, s in itertools.product(ops.ANGLE_NORMS, ops.REFERENCES, ("site", "expert"))
]


def experts(architecture, n=4, d_in=6, d=7, seed=0):
    """x, per-expert A and B for the literal form, and A, B as the architecture holds them."""
    g = torch.Generator().manual_seed(seed)
    ranks = (2,) * n if architecture == "hydra" else tuple((3, 1, 2, 2)[i % 4] for i in range(n))
    x = torch.randn(2, 3, d_in, generator=g, dtype=F64, requires_grad=True)
    B = [torch.randn(d, r, generator=g, dtype=F64) for r in ranks]
    if architecture == "hydra":
        shared = torch.randn(2, d_in, generator=g, dtype=F64)
        return x, ranks, [shared] * n, B, shared
    A = [torch.randn(r, d_in, generator=g, dtype=F64) for r in ranks]
    return x, ranks, A, B, torch.cat(A)


def gate_of(name, ranks, d_in=6, d=7, top_k=2, **options):
    kind = GATES.get(name)
    torch.manual_seed(0)
    names = tuple(f"e{i}" for i in range(len(ranks)))
    gate = kind(GateSite(d_in, d, ranks, top_k, 5, names, names), make_options(kind, options)).double()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter += torch.randn_like(parameter) * 0.4
    return gate


def literal_update(x, A, B, gate, out, architecture, options):
    """Σ g_i ṽ_i in output space, with the weights, choice and rotation that the gate gave."""
    transform = None
    if architecture == "omoe":

        def transform(v):
            flat, dense = v.flatten(0, -3), ops.dense_weights(out.weights, out.indices, v.shape[-2]).flatten(0, -2)
            chosen = None if out.indices is None else out.indices.flatten(0, -2)
            rows = []
            for t in range(flat.shape[0]):
                order = dense[t].sort(descending=True, stable=True).indices.tolist()
                rows.append(
                    literal.gram_schmidt(
                        flat[t],
                        options["norm"],
                        order if options["order"] == "weight" else None,
                        chosen[t].tolist() if options["orthogonalize"] == "selected" and chosen is not None else None,
                    )
                )
            return torch.stack(rows).view(v.shape)

    down = getattr(gate, "rotation_down", None)
    turn = {}
    if out.turn is not None:
        turn = {
            "down": None if down is None else down * down.shape[-2] ** -0.5,
            "up": gate.rotation_up,
            "angle_norm": gate.options.angle_norm,
            "reference": gate.options.reference,
            "rotation_input": gate.options.rotation_input,
        }
    update = literal.radar(x, A, B, weights=out.weights, indices=out.indices, outputs=transform, **turn)
    return update if out.extra is None else update + out.extra


def compare(architecture, arch_options, name, top_k=2, **options):
    x, ranks, A, B, stacked = experts(architecture)
    kind = ARCHITECTURES.get(architecture)
    arch = kind(ranks, make_options(kind, arch_options))
    gate = gate_of(name, ranks, top_k=top_k, **options).eval()
    codes = arch.codes(x, stacked, torch.cat([b.T for b in B]), torch.ones(sum(ranks), dtype=F64))
    out = gate(Call(x, codes, None if top_k == len(ranks) else top_k, settle=arch.settle))
    turn = (None, None, "none") if out.turn is None else (out.turn.codes, out.turn.up, out.turn.angle_norm)
    mine = ops.mix(out.codes.h, out.codes.B, out.codes.ranks, out.weights, out.indices, *turn[:2], angle_norm=turn[2])
    mine = mine if out.extra is None else mine + out.extra
    theirs = literal_update(x, A, B, gate, out, architecture, arch_options)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    weight = torch.randn(mine.shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    wanted = [x, *(p for p in gate.parameters())]
    found = [
        torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True, retain_graph=True) for y in (mine, theirs)
    ]
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def of_case(value):
    return "-".join([value[0], *value[1].values()]) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("case", "name", "top_k"), pairs(CASES, GATES.names(), [2, 4]), ids=of_case)
def test_every_gate_under_every_architecture_equals_the_literal_form(case, name, top_k):
    compare(*case, name, top_k)


@pytest.mark.parametrize("options", TURNS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("architecture", ["hydra", "omoe"])
def test_every_reading_of_the_rotation_works_under_every_architecture(architecture, options):
    compare(architecture, OMOE[0] if architecture == "omoe" else {}, "radar", **options)


@pytest.mark.parametrize("gate_input", ["experts", "rotated"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_gates_that_read_outputs_read_orthogonal_ones_under_omoe(gate_input, norm):
    x, ranks, A, B, stacked = experts("omoe")
    arch = ARCHITECTURES.get("omoe")(ranks, make_options(ARCHITECTURES.get("omoe"), {}))
    gate = gate_of("radar", ranks, gate_input=gate_input, norm=norm, angle_norm="none")
    codes = arch.codes(x, stacked, torch.cat([b.T for b in B]), torch.ones(sum(ranks), dtype=F64))
    v = literal.gram_schmidt(literal.expert_outputs(x, A, B))
    if gate_input == "rotated":
        down = gate.rotation_down * gate.rotation_down.shape[-2] ** -0.5
        v = literal.rotate(v, literal.angles(v, down, gate.rotation_up))
    expected = literal.concat_logits(v, gate.softmax_theta, norm)
    torch.testing.assert_close(gate.logits(Call(x, codes, 2)), expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(
        ops.expert_norms(codes.h, codes.B, None), literal.gram_schmidt(literal.expert_outputs(x, A, B)).norm(dim=-1)
    )


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 6), q=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_orthogonal_outputs_are_orthogonal_up_to_epsilon(n, q, seed):
    H = torch.randn(3, n, q, generator=torch.Generator().manual_seed(seed), dtype=F64)
    W = orthogonal(H)
    size = H.square().sum(-1)
    eps = 1e-6 * size.mean(-1) + 1e-12
    gram = W @ W.mT
    # what a projection leaves of <w, u> is eps / (|w|^2 + eps) of it: at most |u| sqrt(eps) / 2, whatever w; twice that
    # leaves room for the projections that follow
    left = (gram - torch.diag_embed(torch.diagonal(gram, dim1=-2, dim2=-1))).abs().amax((-1, -2))
    assert bool((left <= size.amax(-1).sqrt() * eps.sqrt()).all())
    torch.testing.assert_close(W[:, 0], H[:, 0])
    unit = orthogonal(H, "unit")
    torch.testing.assert_close(unit * (W.square().sum(-1, keepdim=True) + eps.view(-1, 1, 1)).sqrt(), W)


def test_orthogonalising_is_calm_at_zero_and_at_collinear_outputs():
    zero = torch.zeros(2, 3, 4, dtype=torch.float32, requires_grad=True)
    for norm in ("none", "keep_input_norm"):
        (orthogonal(zero, norm).sum() * 1.0).backward()
        assert bool(torch.isfinite(zero.grad).all()) and zero.grad.abs().max() <= 2.0
        zero.grad = None
    g = torch.Generator().manual_seed(0)
    base = torch.randn(8, 1, 5, generator=g)
    near = (base + 1e-4 * torch.randn(8, 3, 5, generator=g)).requires_grad_()
    found, exact = orthogonal(near), literal.gram_schmidt(near.detach().double())
    assert (found.double() - exact).abs().max() < 1e-5
    found.square().sum().backward()
    assert bool(torch.isfinite(near.grad).all())


def shared_A(tmp_path, zoo, tasks, family="llama"):
    base = str(zoo[family]["base"])
    assert (
        main(
            [
                "experts",
                base,
                "--data",
                str(tasks),
                "--architecture",
                "hydra",
                "--steps",
                "3",
                "--batch-size",
                "2",
                "--rank",
                "4",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "hydra"),
            ]
        )
        == 0
    )
    return {task: tmp_path / "hydra" / task for task in ("add", "even")}


def test_a_shared_A_of_other_options_is_not_taken_over(zoo, tasks, tmp_path, capsys):
    shared_A(tmp_path, zoo, tasks)
    shutil.rmtree(tmp_path / "hydra" / "add")
    words = [
        "experts",
        str(zoo["llama"]["base"]),
        "--data",
        str(tasks),
        "--architecture",
        "hydra",
        "--steps",
        "3",
        "--batch-size",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "hydra"),
        "--resume",
    ]
    assert main([*words, "--rank", "2"]) == 1
    assert "was trained with rank 4, not 2. Repeat its options" in capsys.readouterr().err
    assert main([*words, "--rank", "4"]) == 0 and (tmp_path / "hydra" / "add").is_dir()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_hydra_experts_share_A_and_compose_train_save_and_load(zoo, load_tiny, tasks, tmp_path, family):
    adapters = shared_A(tmp_path, zoo, tasks, family)
    files = [load_file(folder / "adapter_model.safetensors") for folder in adapters.values()]
    for name in files[0]:
        assert torch.equal(files[0][name], files[1][name]) == ("lora_A" in name)
    model = radargate.compose(load_tiny(family), adapters, architecture="hydra", gate="radar", top_k=2)
    layer = radar_layers(model)[0]
    assert layer.bank("default").A.shape[0] == 4 and layer.bank("default").B.shape[0] == 8
    ids = torch.randint(2, 250, (2, 6), generator=torch.Generator().manual_seed(0))
    extra = {"labels": ids} if family == "t5" else {}
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
        before = model.eval()(input_ids=ids, **extra).logits
    model.save_pretrained(str(tmp_path / "bundle"))
    after = radargate.load(load_tiny(family), tmp_path / "bundle")
    with torch.no_grad():
        assert torch.equal(after.eval()(input_ids=ids, **extra).logits, before)
    write_expert(expert_bank(after), "add", tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], files[0][name]) for name in files[0])


def test_independent_adapters_are_refused_by_hydra_or_converted_and_say_what_was_lost(zoo, load_tiny, tmp_path):
    with pytest.raises(AdapterError, match=r"share A.*convert=true"):
        radargate.compose(load_tiny(), zoo["llama"]["adapters"], architecture="hydra")
    model = radargate.compose(
        load_tiny(), zoo["llama"]["adapters"], architecture="hydra", architecture_options={"convert": True}
    )
    facts = model.peft_config["default"].expert_facts
    assert all(f["converted"] and 0 < f["residual"] < 1 for f in facts.values())
    bank, found = load_bank(zoo["llama"]["adapters"], load_tiny()), expert_bank(model)
    lost = whole = 0.0
    for name, site in bank.sites.items():
        if 0 in site.experts and len(site.experts) > 1:
            position = site.experts.index(0)
            (a, b), (c, d) = site.factors(position), found.sites[name].factors(position)
            scale = site.scales[position]
            lost += float((scale * (b.T @ a - d.T @ c)).double().square().sum())
            whole += float((scale * b.T @ a).double().square().sum())
    assert facts["math"]["residual"] == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    with pytest.raises(AdapterError, match="converted"):
        write_expert(found, "math", tmp_path / "x")
    model.save_pretrained(str(tmp_path / "bundle"))
    radargate.load(load_tiny(), tmp_path / "bundle")


def test_joint_training_moves_A_heads_and_router_and_leaves_adapters_and_a_bundle(zoo, load_tiny, tasks, tmp_path):
    base = str(zoo["llama"]["base"])
    assert (
        main(
            [
                "experts",
                base,
                "--data",
                str(tasks),
                "--architecture",
                "hydra",
                "--joint",
                "--heads",
                "3",
                "--steps",
                "4",
                "--batch-size",
                "2",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "h"),
            ]
        )
        == 0
    )
    heads = [load_file(tmp_path / "h" / f"head{i}" / "adapter_model.safetensors") for i in (1, 2, 3)]
    for name in heads[0]:
        assert torch.equal(heads[0][name], heads[1][name]) == ("lora_A" in name)
        assert not name.endswith("lora_B.weight") or bool(heads[0][name].any())
    model = radargate.load(load_tiny(), tmp_path / "h" / "joint")
    assert not any("radar_bank" in name for name, p in model.named_parameters() if p.requires_grad)
    layer, x = radar_layers(model)[0], torch.randn(5, 24)
    # HydraLoRA's own equations: y = x W + s Σ_i softmax(x R)_i (x A) B_i
    bank, gate = layer.bank("default"), layer.gate("default")
    share = (x @ gate.softmax_theta.T).softmax(-1)
    heads = bank.B.split(list(bank.ranks))
    expected = sum(share[:, i : i + 1] * bank.scales[i] * (x @ bank.A.T) @ b for i, b in enumerate(heads))
    torch.testing.assert_close(layer.update(x, "default"), expected, rtol=1e-5, atol=1e-6)
    record = json.loads((tmp_path / "h" / "records.jsonl").read_text().splitlines()[-1])
    assert record["architecture"] == "hydra" and record["heads"] == 3


def test_architectures_say_what_is_wrong(zoo, load_tiny):
    with pytest.raises(OptionError, match="norm is 'l2', expected one of"):
        radargate.compose(
            load_tiny(), zoo["llama"]["adapters"], architecture="omoe", architecture_options={"norm": "l2"}
        )
    with pytest.raises(OptionError, match="Did you mean 'norm'"):
        radargate.compose(
            load_tiny(), zoo["llama"]["adapters"], architecture="omoe", architecture_options={"nrm": "none"}
        )
    assert main(["experts", "x", "--data", "y", "--out", "z", "--joint"]) == 1
