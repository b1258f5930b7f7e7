"""Rules do what their sources say: literal float64 forms, PEFT's own arrow, cat, ties and dare, and the search."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import ArrowConfig, PeftModel, create_arrow_model
from peft.tuners.lora.arrow import ArrowLoraLinearLayer

import radargate
from conftest import NEEDED, adapters_for
from radargate.base_models.loading import load_tokenizer
from radargate.cli import main
from radargate.composition.composing import radar_layers
from radargate.data.batches import encode_rows
from radargate.data.options import Batching
from radargate.data.sources import load_rows
from radargate.errors import AdapterError, DataError, OptionError, RadarGateError
from radargate.experts.adapters import read_adapter
from radargate.experts.bank import check_equal_ranks
from radargate.gates.rules import RULES
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining

FAMILIES = ("llama", "gpt2", "t5")
NAMES = ("math", "law", "code")


def inputs(family="llama", batch=2, length=9):
    ids = torch.randint(2, 250, (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids} if family == "t5" else {"input_ids": ids}


def three(same_sites):
    return {name: same_sites[name] for name in NAMES}


def factors(adapters):
    """site → expert → A [r, d_in], B [d_out, r] and s, in float64."""
    table: dict = {}
    for name, folder in adapters.items():
        adapter = read_adapter(name, folder)
        for site, tensors in adapter.sites.items():
            A, B = adapter.read(site)
            table.setdefault(site, {})[name] = (A.double(), B.double(), tensors.scale)
    return table


def logits_with(base, deltas, family="llama"):
    """Logits of a float64 base with ΔW [d_out, d_in] added to its weights."""
    modules = dict(base.named_modules())
    with torch.no_grad():
        for site, delta in deltas.items():
            weight = modules[site].weight
            weight += delta.T if type(modules[site]).__name__ == "Conv1D" else delta
        return base(**inputs(family)).logits


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_single_equals_peft_with_that_adapter(zoo, load_tiny, family):
    for name, folder in zoo[family]["adapters"].items():
        peer = PeftModel.from_pretrained(load_tiny(family), folder).eval()
        ours = radargate.compose(load_tiny(family), zoo[family]["adapters"], gate="single", expert=name)
        torch.testing.assert_close(ours(**inputs(family)).logits, peer(**inputs(family)).logits, atol=1e-5, rtol=0)


WEIGHTS = {"math": 0.5, "law": -1.2, "code": 0.8}
ANALOGY = {"task": "math", "target": "law", "source": "code"}
CASES = {
    "add": ("pems", {}, dict.fromkeys(NAMES, 1 / 3), ()),
    "weighted": ("pems", {"weights": {"math": 2, "law": 1, "code": 1}}, {"math": 0.5, "law": 0.25, "code": 0.25}, ()),
    "negate": ("pems", {"operation": "negate", "negated": "law"}, dict.fromkeys(NAMES, 1 / 3), ("law",)),
    "analogy": ("pems", {"operation": "analogy", "analogy": ANALOGY}, dict.fromkeys(NAMES, 0.5), ("code",)),
    "faithful": ("lorahub", {"weights": WEIGHTS}, WEIGHTS, ()),
    "sane": ("lorahub", {"form": "sane", "weights": WEIGHTS}, WEIGHTS, None),
}


def literal_delta(experts, weights, negated):
    """ΔW of one site: linear for ``negated=None``, else (Σ ± w √s B)(Σ w √s A)."""
    if negated is None:
        return sum(weights[n] * s * B @ A for n, (A, B, s) in experts.items())
    down = sum(weights[n] * math.sqrt(s) * A for n, (A, _, s) in experts.items())
    up = sum((-1 if n in negated else 1) * weights[n] * math.sqrt(s) * B for n, (_, B, s) in experts.items())
    return up @ down


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_static_rules_equal_their_literal_merge_in_float64(zoo, load_tiny, family, case):
    gate, options, weights, negated = CASES[case]
    adapters = zoo[family]["equal"]
    deltas = {site: literal_delta(experts, weights, negated) for site, experts in factors(adapters).items()}
    expected = logits_with(load_tiny(family, dtype=torch.float64), deltas, family)
    ours = radargate.compose(load_tiny(family, dtype=torch.float64), adapters, gate=gate, **options).eval()
    if gate == "lorahub":  # its weights are float32 numbers
        for layer in radar_layers(ours):
            layer.gate("default").weights = layer.gate("default").weights.double()
            layer.gate("default").place(weights)
    torch.testing.assert_close(ours(**inputs(family)).logits, expected, atol=1e-9, rtol=0)


@torch.no_grad()
def test_with_one_scale_mixing_apart_is_the_printed_form(zoo, load_tiny):
    adapters = {name: zoo["llama"]["equal"][name] for name in ("math", "law")}
    deltas = {}
    for site, experts in factors(adapters).items():
        A, B = (sum(0.5 * expert[side] for expert in experts.values()) for side in (0, 1))
        deltas[site] = 4.0 * B @ A  # alpha 16, rank 4
    expected = logits_with(load_tiny(dtype=torch.float64), deltas)
    ours = radargate.compose(load_tiny(dtype=torch.float64), adapters, gate="pems")
    torch.testing.assert_close(ours(**inputs()).logits, expected, atol=1e-9, rtol=0)


@torch.no_grad()
def test_pems_under_a_shared_a_is_linear_in_the_heads(zoo, load_tiny):
    adapters = {name: zoo["llama"]["equal"][name] for name in ("math", "law")}
    model = radargate.compose(
        load_tiny(dtype=torch.float64),
        adapters,
        gate="pems",
        architecture="hydra",
        architecture_options={"convert": True},
    )
    layer = next(layer for layer in radar_layers(model) if len(layer.entries["default"][1]["experts"]) == 2)
    x, bank = torch.randn(5, 24, dtype=torch.float64), layer.bank("default")
    expected = 4.0 * (x @ bank.A.double().T) @ bank.B.double().view(2, 4, -1).mean(0)
    torch.testing.assert_close(layer.update(x, "default"), expected)


def arrow_literal(x, experts, options, k, general=()):
    """Arrow for one token x [d_in] at one site, written out in float64."""
    pairs = {n: [A, B, s] for n, (A, B, s) in experts.items()}
    common = [n for n in pairs if n in general]
    for n in pairs:
        if n not in common and common:
            pairs[n][0] = experts[n][0] - sum(experts[g][0] for g in common) / len(common)
            pairs[n][1] = experts[n][1] - sum(experts[g][1] for g in common) / len(common)
    tasks = [n for n in pairs if n not in common]
    if not tasks:
        return torch.zeros(next(iter(experts.values()))[1].shape[0], dtype=torch.float64)
    logits = torch.stack([(x @ torch.linalg.svd(pairs[n][1] @ pairs[n][0])[2][0]).abs() for n in tasks])
    if options.get("normalize_x"):
        logits = logits / x.norm()
    kept = logits.topk(min(k, len(tasks))).indices
    weights = (
        torch.full_like(logits, -math.inf).scatter(0, kept, logits[kept] / options.get("temperature", 1.0)).softmax(0)
    )
    if options.get("mixing") == "ab":
        down = sum(w * math.sqrt(pairs[n][2]) * pairs[n][0] for w, n in zip(weights, tasks, strict=True))
        up = sum(w * math.sqrt(pairs[n][2]) * pairs[n][1] for w, n in zip(weights, tasks, strict=True))
        return up @ (down @ x)
    return sum(w * pairs[n][2] * pairs[n][1] @ (pairs[n][0] @ x) for w, n in zip(weights, tasks, strict=True))


@pytest.mark.parametrize("general", [(), ("law",), ("law", "code")])
@pytest.mark.parametrize("options", [{}, {"mixing": "ab"}, {"temperature": 0.3, "normalize_x": True}])
@torch.no_grad()
def test_arrow_equals_its_literal_form_in_float64(zoo, load_tiny, options, general):
    adapters = zoo["llama"]["equal"]
    model = radargate.compose(load_tiny(dtype=torch.float64), adapters, gate="arrow", general=general, **options)
    table = factors(adapters)
    before = [layer.bank("default").A.clone() for layer in radar_layers(model)]
    for layer in radar_layers(model):
        gate = layer.gate("default")
        gate.prototypes = gate.prototypes.double()
        bank = layer.bank("default")
        gate.prepare(bank.A, bank.B, bank.scales)
        x = torch.randn(6, gate.site.d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        expected = torch.stack([arrow_literal(row, table[layer.site], options, 2, general) for row in x])
        torch.testing.assert_close(layer.update(x, "default"), expected, atol=1e-9, rtol=1e-9)
        _, indices = gate.weigh(layer_call(layer, x))
        if indices is not None:
            assert not any(gate.site.experts[i] in general for i in indices.flatten().tolist())
    assert all(torch.equal(a, layer.bank("default").A) for a, layer in zip(before, radar_layers(model), strict=True))


def layer_call(layer, x):
    from radargate.gates.base import Call

    bank, gate = layer.bank("default"), layer.gate("default")
    codes = layer.architectures["default"].codes(x, *bank.cast(x.dtype), bank.scale(x))
    return Call(x, codes, None if gate.site.top_k == gate.site.n else gate.site.top_k)


@torch.no_grad()
def test_prototypes_are_the_strongest_input_directions_whatever_the_ranks(zoo, load_tiny):
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="arrow")
    table = factors(zoo["llama"]["adapters"])
    for layer in radar_layers(model):
        for name, found in zip(layer.gate("default").site.experts, layer.gate("default").prototypes, strict=True):
            A, B, _ = table[layer.site][name]
            cosine = found.double() @ torch.linalg.svd(B @ A)[2][0]
            assert cosine.abs() > 1 - 1e-6


@pytest.mark.parametrize("general", [False, True])
@torch.no_grad()
def test_arrow_equals_pefts_arrow(same_sites, load_tiny, monkeypatch, general):
    # PEFT stops its power iteration after 15 rounds; run to the end it finds what the exact route finds
    short = ArrowLoraLinearLayer.top_right_singular_vec_from_BA
    monkeypatch.setattr(
        ArrowLoraLinearLayer, "top_right_singular_vec_from_BA", lambda self, A, B: short(self, A, B, iters=3000)
    )
    peer = create_arrow_model(
        load_tiny(),
        [str(same_sites[n]) for n in NAMES],
        ArrowConfig(top_k=2, router_temperature=0.7, use_gks=general, rng_seed=0),
        general_adapter_paths=[str(same_sites["general"])] if general else None,
    ).eval()
    expected = peer(**inputs()).logits
    adapters = same_sites if general else three(same_sites)
    options = {"general": ["general"]} if general else {}
    ours = radargate.compose(load_tiny(), adapters, gate="arrow", top_k=2, temperature=0.7, **options)
    assert (expected - load_tiny()(**inputs()).logits).abs().max() > 1e-2
    torch.testing.assert_close(ours(**inputs()).logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("gate", RULES.names())
@torch.no_grad()
def test_saved_rules_load_equal_in_every_way(zoo, load_tiny, tmp_path, gate):
    adapters = adapters_for(zoo["llama"], gate)
    model = radargate.compose(load_tiny(), adapters, gate=gate, **NEEDED.get(gate, {})).eval()
    if gate == "lorahub":  # what a search found must come back, not the start
        for layer in radar_layers(model):
            layer.gate("default").place(WEIGHTS)
    expected = model(**inputs()).logits
    model.save_pretrained(tmp_path / "b")
    assert torch.equal(radargate.load(load_tiny(), tmp_path / "b")(**inputs()).logits, expected)
    lean = PeftModel.from_pretrained(load_tiny(), tmp_path / "b", low_cpu_mem_usage=True).eval()
    assert torch.equal(lean(**inputs()).logits, expected)


@torch.no_grad()
def test_masking_an_expert_equals_leaving_it_out(zoo, load_tiny):
    adapters = zoo["llama"]["equal"]
    rest = {name: adapters[name] for name in ("math", "code")}
    for gate, options in (("pems", {}), ("arrow", {}), ("arrow", {"mixing": "ab"}), ("uniform", {})):
        model = radargate.compose(load_tiny(), adapters, gate=gate, top_k=None, **options)
        with radargate.using(model, {"law": 0.0}):
            masked = model(**inputs()).logits
        expected = radargate.compose(load_tiny(), rest, gate=gate, top_k=None, **options)(**inputs()).logits
        torch.testing.assert_close(masked, expected, atol=1e-5, rtol=0, msg=lambda m, g=gate: f"{g}: {m}")
    half = radargate.compose(load_tiny(), adapters, gate="lorahub", weights={**WEIGHTS, "law": -0.6})
    model = radargate.compose(load_tiny(), adapters, gate="lorahub", weights=WEIGHTS)
    scaled = model(**inputs(), experts={"law": 0.5}).logits
    torch.testing.assert_close(scaled, half(**inputs()).logits, atol=1e-5, rtol=0)
    model = radargate.compose(load_tiny(), adapters, gate="arrow", general=["law"])
    off = model(**inputs(), experts={"math": 0.0, "code": 0.0}).logits
    assert torch.equal(off, load_tiny()(**inputs()).logits), "the general part acts through others only"


def search(zoo, tasks, out, **options):
    tiny = zoo["llama"]
    training = GateTraining(gate="lorahub", gate_options=options, max_length=64, seed=options.pop("seed", 0))
    return train_gates(
        str(tiny["base"]),
        tiny["equal"],
        str(tasks),
        out,
        training,
        device="cpu",
    )


def test_the_search_starts_at_the_base_ends_lower_and_repeats_itself(zoo, tasks, tmp_path, caplog):
    caplog.set_level("INFO", logger="radargate")
    record = search(zoo, tasks, tmp_path / "a", budget=12)
    found = record["metrics"]["search"]
    assert found["evaluations"] == 12 and set(found["weights"]) == set(NAMES)
    assert found["objective"] < found["start"] and all(abs(w) <= 1.5 for w in found["weights"].values())
    assert sum(line.startswith("search ") for line in caplog.messages) == 3
    again = search(zoo, tasks, tmp_path / "b", budget=12)["metrics"]["search"]
    assert again == found
    model = radargate.load(str(zoo["llama"]["base"]), tmp_path / "a")
    given = radargate.compose(
        str(zoo["llama"]["base"]), zoo["llama"]["equal"], gate="lorahub", weights=found["weights"]
    )
    with torch.no_grad():
        assert torch.equal(model(**inputs()).logits, given(**inputs()).logits)


@pytest.mark.parametrize("form", ["faithful", "sane"])
def test_the_searchs_first_loss_is_the_bases_counted_as_the_form_says(zoo, tasks, tmp_path, load_tiny, form):
    found = search(zoo, tasks, tmp_path / "a", budget=1, examples=7, form=form)["metrics"]["search"]
    tokenizer = load_tokenizer(str(zoo["llama"]["base"]))
    rows = [row for task in load_rows(tasks, "train").values() for row in task]
    import random

    chosen = random.Random(0).sample(
        encode_rows(rows, tokenizer, Batching(max_length=64), encoder_decoder=False).rows, 7
    )
    sums, counts, base = [], [], load_tiny()
    with torch.no_grad():
        for row in chosen:
            logits, labels = base(torch.tensor([row.input_ids])).logits[0, :-1], torch.tensor(row.labels[1:])
            sums.append(float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")))
            counts.append(int((labels != -100).sum()))
    batches = [(sum(sums[:5]), sum(counts[:5])), (sum(sums[5:]), sum(counts[5:]))]
    expected = sum(s / c for s, c in batches) / 7 if form == "faithful" else sum(sums) / sum(counts)
    assert found["start"] == found["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_search_with_given_weights_or_too_few_rows_is_not_run(zoo, tasks, tmp_path):
    assert "search" not in search(zoo, tasks, tmp_path / "a", weights=WEIGHTS)["metrics"]
    with pytest.raises(DataError, match="wants 5000 examples and there are 96"):
        search(zoo, tasks, tmp_path / "b", examples=5000)


@pytest.mark.parametrize(
    ("gate", "options", "message"),
    [
        ("arrow", {"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ("arrow", {"mixing": "both"}, "mixing"),
        ("arrow", {"general": ["lew"]}, "Unknown expert in general 'lew'. Did you mean 'law'"),
        ("arrow", {"general": list(NAMES)}, "none is left to route to"),
        ("lorahub", {"budget": 0}, "budget is 0, expected a whole number of at least 1"),
        ("lorahub", {"examples": 0}, "examples is 0"),
        ("lorahub", {"form": "fast"}, "form"),
        ("lorahub", {"bound": 0}, "bound is 0"),
        ("lorahub", {"weights": {"math": 1.0}}, "no value for expert 'law'"),
        ("pems", {"weights": {"math": 1, "law": 1, "maths": 1}}, "Did you mean 'math'"),
        ("pems", {"weights": {"math": -1, "law": 1, "code": 1}}, "at least 0"),
        ("pems", {"weights": {"math": 0, "law": 0, "code": 0}}, "all 0"),
        ("pems", {"operation": "negate"}, "name the experts to negate"),
        ("pems", {"operation": "negate", "negated": ["lew"]}, "Did you mean 'law'"),
        ("pems", {"operation": "analogy", "analogy": {"task": "math"}}, "expected three experts as"),
        ("single", {}, "needs expert=NAME"),
        ("single", {"expert": "maths"}, "Did you mean 'math'"),
        ("ties", {"density": 0}, "density is 0, expected a number above 0 and at most 1"),
        ("dare", {"density": 1.5}, "density is 1.5"),
        ("dare", {"weights": "equal"}, "expected a table"),
        ("pems", {"architecture": "omoe"}, "does not work under architecture 'omoe'"),
        ("arrow", {"architecture": "omoe", "mixing": "ab"}, "made orthogonal"),
    ],
)
def test_bad_options_say_so_before_anything_is_loaded(zoo, gate, options, message):
    with pytest.raises((OptionError, RadarGateError), match=message):
        radargate.compose("no/such-model", zoo["llama"]["equal"], gate=gate, **options)


@pytest.mark.parametrize(
    ("gate", "options"),
    [
        ("pems", {}),
        ("lorahub", {}),
        ("arrow", {"mixing": "ab"}),
        ("arrow", {"general": "law"}),
        ("ties", {"space": "factors"}),
    ],
)
def test_unequal_ranks_are_refused_from_the_headers_alone(zoo, gate, options):
    with pytest.raises(AdapterError, match=r"at .*_proj the ranks are: 'math' 4, 'law' 8") as error:
        radargate.compose("no/such-model", zoo["llama"]["adapters"], gate=gate, **options)
    assert repr(gate) in str(error.value)
    check_equal_ranks(gate, {"a": {"x": 4, "y": 4}, "b": {"x": 2}})


def test_lorahub_without_nevergrad_says_how_to_get_it(zoo, tasks, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "nevergrad" else find(name, *a))
    with pytest.raises(RadarGateError, match=r"radargate\[rules\]"):
        search(zoo, tasks, tmp_path / "a")


def test_experts_union_is_one_adapter_on_all_rows(zoo, tasks, tmp_path, capsys):
    words = [
        "experts",
        str(zoo["llama"]["base"]),
        "--data",
        str(tasks),
        "--out",
        str(tmp_path),
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*words, "--union"]) == 0
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["union"]
    assert json.loads((tmp_path / "records.jsonl").read_text())["rows"] == 96
