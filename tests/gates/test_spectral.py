"""KnOTS, TSV-Merge, Iso-C and Pico equal their papers' dense forms, written out here in NumPy, whatever ranks meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel

import radargate
from radargate.composition.config import gate_class
from radargate.errors import AdapterError, RadarGateError
from radargate.experts.bank import ExpertBank, SiteBank
from radargate.gates.base import make_options
from test_rules import NAMES, inputs

# site: d_out, d_in, and expert → rank; expert 1 is silent at "silent", where its B is zero
SITES = {
    "tall": (19, 12, {0: 3, 1: 5, 2: 2}),
    "wide": (12, 17, {0: 3, 2: 3}),
    "crowded": (8, 9, {0: 4, 1: 4, 2: 3}),
    "alone": (9, 11, {1: 4}),
    "silent": (9, 11, {0: 2, 1: 3, 2: 2}),
}
SCALES = (2.0, 0.5, -1.7)
UNEQUAL = {"math": 0.7, "law": -1.3, "code": 0.4}


def one_line(error):
    assert "\n" not in str(error.value)


def make_bank(sites=SITES, scales=SCALES, same=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    made = {}
    for name, (d_out, d_in, ranks) in sites.items():
        A = [torch.randn(r, d_in, generator=generator, dtype=torch.float64) for r in ranks.values()]
        B = [torch.randn(r, d_out, generator=generator, dtype=torch.float64) for r in ranks.values()]
        if same:
            A, B = [A[0]] * len(A), [B[0]] * len(B)
        if name == "silent":
            B[1] = torch.zeros_like(B[1])
        kinds = (("F64", "F64"),) * len(A)
        made[name] = SiteBank(
            torch.cat(A).to(dtype),
            torch.cat(B).to(dtype),
            tuple(ranks),
            tuple(len(a) for a in A),
            tuple(scales[i] for i in ranks),
            kinds,
        )
    return ExpertBank(NAMES, made, {name: {} for name in NAMES}, {name: {} for name in NAMES})


def merged(bank, rule, **options):
    """site → ΔW [d_out, d_in] of the one expert; zeros where it has none."""
    kind = gate_class(rule)
    result = kind.arrange(bank, make_options(kind, options), seed=3)
    found = {}
    for name, site in bank.sites.items():
        one = result.sites.get(name)
        found[name] = np.zeros((site.B.shape[1], site.A.shape[1])) if one is None else (one.B.T @ one.A).numpy()
    return found


def updates(site):
    """ΔW_i = s_i B_i A_i [d_out, d_in] of each expert, B_i [d_out, r_i]."""
    pairs = [site.factors(i) for i in range(len(site.ranks))]
    return [s * (b.T @ a).numpy() for (a, b), s in zip(pairs, site.scales, strict=True)], [
        b.T.numpy() for _, b in pairs
    ]


def svd(matrix):
    """A dense SVD without what is rounding; its vectors there are arbitrary."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    kept = np.linalg.matrix_rank(matrix)
    return left[:, :kept], values[:kept], right[:kept]


def best(matrix, rank):
    left, values, right = svd(matrix)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def ties_literal(tensors, weights, density):
    trimmed = []
    for tensor in tensors:
        kept = np.argsort(-np.abs(tensor), axis=None)[: int(density * tensor.size)]
        mask = np.zeros(tensor.size)
        mask[kept] = 1
        trimmed.append(tensor * mask.reshape(tensor.shape))
    out = np.zeros_like(tensors[0])
    for place in np.ndindex(out.shape):
        sign = 1 if sum(t[place] for t in trimmed) >= 0 else -1
        agreeing = [w * t[place] for w, t in zip(weights, trimmed, strict=True) if np.sign(t[place]) == sign]
        out[place] = sum(agreeing) / max(len(agreeing), 1)
    return out


def knots_literal(deltas, weights, density=0.2, rank=0):
    left, values, right = svd(np.concatenate(deltas, 1))
    aligned = [np.diag(values) @ block for block in np.split(right, len(deltas), axis=1)]
    whole = left @ ties_literal(aligned, weights, density)
    return best(whole, rank) if rank else whole


def tsv_literal(deltas, weights, rank=0):
    share = (rank or min(deltas[0].shape)) // len(deltas)
    lefts, values, rights = [], [], []
    for delta, weight in zip(deltas, weights, strict=True):
        u, s, v = svd(delta)
        lefts.append(u[:, :share])
        values.extend(weight * s[:share])
        rights.append(v[:share])
    return polar(np.concatenate(lefts, 1)) @ np.diag(values) @ polar(np.concatenate(rights))


def polar(matrix):
    left, _, right = svd(matrix)
    return left @ right


def iso_literal(deltas, weights, rank=0):
    left, values, right = svd(sum(w * d for w, d in zip(weights, deltas, strict=True)))
    kept = rank or len(values)
    return left[:, :kept] @ np.diag(np.full_like(values[:kept], values[:kept].mean())) @ right[:kept]


def iso_cts_literal(deltas, weights, common_space_fraction):
    scaled = [w * d for w, d in zip(weights, deltas, strict=True)]
    u, s, v = svd(sum(scaled))
    size, n = len(s), len(deltas)
    specific = min(round((size - int(size * common_space_fraction)) / n), size // n) * n  # the authors' may exceed size
    common, each = size - specific, specific // n
    lefts, values, rights = [u[:, :common]], list(s[:common]), [v[:common]]
    for delta in scaled:
        w = delta - u[:, :common] @ u[:, :common].T @ delta
        u_i, s_i, v_i = svd(w)
        lefts.append(u_i[:, :each])
        values.extend(s_i[:each])
        rights.append(v_i[:each])
    return np.mean(values) * polar(np.concatenate(lefts, 1)) @ polar(np.concatenate(rights))


def pico_literal(method, deltas, Bs, weights, **options):
    original = deltas
    if len(deltas) > 1:
        u, s, _ = np.linalg.svd(np.concatenate(Bs, 1), full_matrices=False)
        alpha = 1 / (1 + (len(deltas) - 1) * s**2 / (s**2).sum())
        deltas = [d + u @ np.diag(alpha - 1) @ u.T @ d for d in deltas]
    whole = method(deltas, weights, **options)
    return whole * np.mean([np.linalg.norm(d) for d in original]) / np.linalg.norm(whole)


def ties_delta_literal(deltas, weights, density=0.2, rank=0):
    return best(ties_literal(deltas, weights, density), rank)


LITERAL = {"knots": knots_literal, "tsv": tsv_literal, "iso": iso_literal}
PARITY = [
    ("knots", {}),
    ("knots", {"density": 0.6, "weights": UNEQUAL, "scaling": 0.4}),
    ("knots", {"density": 1.0, "rank": 3}),
    ("tsv", {}),
    ("tsv", {"weights": UNEQUAL, "scaling": 1.5}),
    ("tsv", {"rank": 4}),
    ("iso", {}),
    ("iso", {"weights": UNEQUAL, "scaling": 0.3}),
    ("iso", {"rank": 3}),
]


@pytest.mark.parametrize("pico", [False, True])
@pytest.mark.parametrize(("rule", "options"), PARITY)
def test_each_rule_equals_its_dense_form(rule, options, pico):
    bank = make_bank()
    found = merged(bank, rule, **options, calibration="pico" if pico else "none")
    rest = dict(options)
    weights, scaling = rest.pop("weights", dict.fromkeys(NAMES, 1.0)), rest.pop("scaling", 1.0)
    for name, site in bank.sites.items():
        deltas, Bs = updates(site)
        given = [weights[NAMES[i]] for i in site.experts]
        literal = LITERAL[rule]
        plain = literal(deltas, given, **rest)
        expected = scaling * (pico_literal(literal, deltas, Bs, given, **rest) if pico else plain)
        np.testing.assert_allclose(found[name], expected, atol=1e-10, rtol=0, err_msg=name)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.8, 1.0])
def test_iso_cts_equals_its_dense_form_and_1_is_iso_c(fraction):
    bank = make_bank()
    found = merged(bank, "iso", weights=UNEQUAL, common_space_fraction=fraction)
    for name, site in bank.sites.items():
        given = [UNEQUAL[NAMES[i]] for i in site.experts]
        expected = iso_cts_literal(updates(site)[0], given, fraction)
        np.testing.assert_allclose(found[name], expected, atol=1e-10, rtol=0, err_msg=name)
        if fraction == 1:
            np.testing.assert_allclose(found[name], iso_literal(updates(site)[0], given), atol=1e-10, rtol=0)


def test_ties_takes_pico_too():
    bank = make_bank()
    found = merged(bank, "ties", space="delta", density=0.5, weights=UNEQUAL, calibration="pico", scaling=0.5)
    for name, site in bank.sites.items():
        given = [UNEQUAL[NAMES[i]] for i in site.experts]
        expected = 0.5 * pico_literal(ties_delta_literal, *updates(site), given, density=0.5, rank=max(site.ranks))
        np.testing.assert_allclose(found[name], expected, atol=1e-10, rtol=0, err_msg=name)


@pytest.mark.parametrize("options", [{"space": "factors"}, {"space": "delta", "combination": "ties"}])
def test_under_pico_the_result_has_the_experts_mean_norm(options):
    bank = make_bank({"a": (12, 9, {0: 3, 1: 3, 2: 3})})
    found = merged(bank, "dare", calibration="pico", **options)["a"]
    norms = [np.linalg.norm(delta) for delta in updates(bank.sites["a"])[0]]
    assert np.linalg.norm(found) == pytest.approx(np.mean(norms), rel=1e-12)
    assert not np.allclose(found, merged(bank, "dare", **options)["a"])


def test_pico_takes_most_from_what_all_share():
    """Two B of one common and one own direction each: the common one is cut to 1/(1 + c), the others less."""
    common, own = np.eye(6)[:, 0], np.eye(6)[:, 1:3]
    from radargate.gates.rules.calibration import calibrated

    B = [torch.tensor(np.stack([common, own[:, i]], 1)) for i in range(2)]
    first, second = calibrated(B)
    assert first[0, 0] == pytest.approx(1 / (1 + 2 / 4)) and first[1, 1] == pytest.approx(1 / (1 + 1 / 4))
    assert second[0, 0] == first[0, 0] and calibrated(B[:1])[0] is B[0]


def test_knots_linear_is_the_mean_of_the_updates():
    bank = make_bank()
    found = merged(bank, "knots", combination="linear")
    for name, site in bank.sites.items():
        np.testing.assert_allclose(found[name], sum(updates(site)[0]) / 3, atol=1e-10, rtol=0)


def flattened(matrix):
    left, values, right = svd(matrix)
    return values.mean() * left @ right


def test_an_expert_alone_stays_but_iso_flattens_it():
    site = {"alone": SITES["alone"]}
    bank = make_bank(site)
    (delta,), _ = updates(bank.sites["alone"])
    for rule, options, expected in [
        ("tsv", {}, delta),
        ("knots", {"density": 1.0}, delta),
        ("knots", {"density": 1.0, "calibration": "pico"}, delta),
        ("iso", {}, flattened(delta)),
    ]:
        found = merged(bank, rule, **options)["alone"]
        np.testing.assert_allclose(found, expected, atol=1e-10, rtol=0, err_msg=rule)


def test_copies_of_one_expert_give_it_once():
    bank = make_bank({"a": (12, 10, {0: 3, 1: 3, 2: 3})}, scales=(2.0,) * 3, same=True)
    delta = updates(bank.sites["a"])[0][0]
    for rule, options, expected in [
        ("tsv", {}, delta),
        ("knots", {"density": 1.0}, delta),
        ("knots", {"density": 1.0, "calibration": "pico"}, None),
        ("iso", {"scaling": 1 / 3}, flattened(delta)),
    ]:
        found = merged(bank, rule, **options)["a"]
        if expected is None:
            assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(delta))
        else:
            np.testing.assert_allclose(found, expected, atol=1e-10, rtol=0, err_msg=rule)
        if rule != "tsv":
            kind = gate_class(rule)
            assert kind.arrange(bank, make_options(kind, options), 0).sites["a"].ranks == (3,)


@pytest.mark.parametrize("calibration", ["none", "pico"])
@pytest.mark.parametrize("rule", ["knots", "tsv", "iso"])
def test_weight_0_leaves_an_expert_out(rule, calibration):
    full, without = make_bank(), make_bank()
    for name, site in full.sites.items():
        kept = [i for i, expert in enumerate(site.experts) if expert != 1]
        if not kept:
            del without.sites[name]
            continue
        pairs = [site.factors(i) for i in kept]
        without.sites[name] = SiteBank(
            torch.cat([a for a, _ in pairs]),
            torch.cat([b for _, b in pairs]),
            *(tuple(field[i] for i in kept) for field in (site.experts, site.ranks, site.scales, site.dtypes)),
        )
    weights = {"math": 0.5, "law": 0.0, "code": 2.0}
    expected = merged(without, rule, weights=weights, calibration=calibration)
    found = merged(full, rule, weights=weights, calibration=calibration)
    assert not found.pop("alone").any()
    for name, delta in found.items():
        np.testing.assert_allclose(delta, expected[name], atol=1e-12, rtol=0)


def test_the_rank_is_that_of_all_experts_together_or_what_is_asked():
    bank = make_bank()
    for rule, options in (("knots", {"density": 1.0}), ("tsv", {}), ("iso", {})):
        kind = gate_class(rule)
        ranks = {n: s.ranks[0] for n, s in kind.arrange(bank, make_options(kind, options), 0).sites.items()}
        assert (ranks["tall"], ranks["wide"], ranks["alone"], ranks["silent"]) == (9 if rule == "tsv" else 10, 6, 4, 4)
        assert ranks["crowded"] == (6 if rule == "tsv" else 8)  # tsv: 12 // 3 and 8 // 3 of each at most
        cut = kind.arrange(bank, make_options(kind, {"rank": 3}), 0)
        assert all(site.ranks[0] <= 3 for site in cut.sites.values())


@pytest.mark.parametrize("rule", ["knots", "tsv", "iso"])
def test_no_update_is_ever_written_out(rule):
    wide = make_bank({"a": (150_000, 200_000, {0: 2, 1: 2, 2: 1})}, dtype=torch.float32)  # 120 GB, were it written out
    kind = gate_class(rule)
    result = kind.arrange(wide, make_options(kind, {"calibration": "pico"}), 0).sites["a"]
    assert result.ranks == (5,) and result.A.dtype == torch.float32


@pytest.mark.parametrize("rule", ["knots", "tsv", "iso"])
def test_nothing_left_is_refused_and_silent_sites_are_left_out(rule):
    bank = make_bank()
    with pytest.raises(AdapterError, match=f"{rule} of math, law, code: nothing is left") as error:
        merged(bank, rule, weights=dict.fromkeys(NAMES, 0.0))
    one_line(error)
    for name in ("tall", "wide"):
        bank.sites[name].B.zero_()
    for calibration in ("none", "pico"):
        found = merged(bank, rule, calibration=calibration)
        assert not found["tall"].any() and not found["wide"].any() and found["crowded"].any()
    twice = make_bank({"a": (12, 10, {0: 3, 1: 3})}, scales=(2.0,) * 3, same=True)
    if rule == "iso":
        with pytest.raises(AdapterError, match="nothing is left"):
            merged(twice, rule, weights={"math": 1.0, "law": -1.0, "code": 1.0})


@pytest.mark.parametrize("rule", ["knots", "tsv", "iso"])
@torch.no_grad()
def test_merged_composed_and_exported_are_one(zoo, load_tiny, tmp_path, rule):
    adapters, base = zoo["llama"]["adapters"], str(zoo["llama"]["base"])
    options = {"weights": {"math": 0.5, "law": 1.0, "code": -0.7}, "calibration": "pico", "scaling": 0.8}
    model = radargate.compose(load_tiny(), adapters, gate=rule, **options).eval()
    found = model(**inputs()).logits
    radargate.merge_adapters(adapters, base, tmp_path / "folder", method=rule, **options)
    plain = PeftModel.from_pretrained(load_tiny(), tmp_path / "folder").eval()
    torch.testing.assert_close(plain(**inputs()).logits, found, atol=1e-6, rtol=0)
    with radargate.using(model, {rule: 0.0}):
        assert torch.equal(model(**inputs()).logits, load_tiny()(**inputs()).logits)
    with pytest.raises(RadarGateError, match="'math'") as error, radargate.using(model, {"math": 0.0}):
        pass
    one_line(error)
    model.peft_config["default"].gate_only = True
    model.save_pretrained(tmp_path / "b")
    assert torch.equal(radargate.load(load_tiny(), tmp_path / "b")(**inputs()).logits, found)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("knots", {"density": 0}, "density is 0, expected a number above 0 and at most 1"),
        ("knots", {"combination": "mean"}, "combination is 'mean', expected one of: ties, linear"),
        ("knots", {"sign_method": "most"}, "sign_method is 'most'"),
        ("knots", {"space": "delta"}, "Unknown option of KnotsRule 'space'"),
        ("tsv", {"rank": 2}, "rank is 2, of which 3 experts keep an equal share; expected at least 3, or 0"),
        ("tsv", {"rank": -1}, "rank is -1"),
        ("tsv", {"weights": {"math": 1.0}}, "no value for expert 'law'"),
        ("tsv", {"density": 0.2}, "Unknown option of TsvRule 'density'"),
        (
            "iso",
            {"common_space_fraction": 1.1},
            "common_space_fraction is 1.1, expected a number of at least 0 and at most 1",
        ),
        ("iso", {"common_space_fraction": True}, "common_space_fraction is True"),
        ("iso", {"scaling": 0}, "scaling is 0, expected a number above 0"),
        ("iso", {"scaling": float("nan")}, "scaling is nan"),
        ("iso", {"scaling": "big"}, "scaling is 'big', expected a number above 0"),
        ("iso", {"calibration": "peco"}, "calibration is 'peco', expected one of: none, pico"),
        ("ties", {"calibration": "peco"}, "calibration is 'peco'"),
        ("iso", {"architecture": "hydra"}, "does not work under architecture 'hydra'"),
    ],
)
def test_bad_options_say_so_before_anything_is_loaded(zoo, rule, options, message):
    with pytest.raises(RadarGateError, match=message) as error:
        radargate.compose("no/such-model", zoo["llama"]["equal"], gate=rule, **options)
    one_line(error)


def test_one_adapter_is_nothing_to_merge(zoo, load_tiny):
    for rule in ("knots", "tsv", "iso"):
        with pytest.raises(AdapterError, match="needs at least two, found 1"):
            radargate.compose(load_tiny(), {"math": zoo["llama"]["equal"]["math"]}, gate=rule)
