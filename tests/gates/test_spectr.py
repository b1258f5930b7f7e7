"""Rule ``spectr``: experts weighed by how long their outputs are; literal float64 forms of its three readings."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel

import radargate
from conftest import tiny_tokenizer
from radargate.architectures.base import Codes
from radargate.cli import main
from radargate.composition.composing import radar_layers
from radargate.errors import OptionError
from radargate.gates.base import Call
from radargate.ops import reference as literal
from test_rules import factors, inputs

F64 = torch.float64
TEXTS = {"math": ["1+2=3", "what is 3*4? 12"], "law": ["is it a crime?", "no"], "code": ["def f(x):", "import os, sys"]}


def kept_softmax(scores, k, temperature=1.0):
    """The k largest of scores [n], softmax over them, zeros elsewhere."""
    kept = scores.topk(min(k, len(scores))).indices
    return torch.full_like(scores, -math.inf).scatter(0, kept, scores[kept] / temperature).softmax(0)


def spectr_scores(x, experts, calibration, norms=None):
    """Scores for one token x [d_in] at one site, with every ΔW formed."""
    scores = []
    for name, (A, B, s) in experts.items():
        if calibration == "directions":
            _, values, right = torch.linalg.svd(B @ A, full_matrices=False)
            scores.append((right[values > 1e-9] @ x).norm())
        else:
            scores.append((s * (B @ A) @ x).norm())
        if calibration == "rows":
            scores[-1] = (scores[-1] - norms[name].mean()) / norms[name].std(correction=0)
    return torch.stack(scores)


def in_double(layer):
    """A layer's rule, whose buffers are float32 numbers, prepared once more in float64."""
    gate, bank = layer.gate("default").double(), layer.bank("default")
    if hasattr(gate, "cores"):
        gate.prepare(bank.A, bank.B, bank.scales)
    return gate


@pytest.mark.parametrize("options", [{}, {"temperature": 0.3}, {"calibration": "directions"}])
@torch.no_grad()
def test_spectr_equals_its_literal_form_in_float64(zoo, load_tiny, options):
    model = radargate.compose(load_tiny(dtype=F64), zoo["llama"]["adapters"], gate="spectr", top_k=2, **options)
    assert not any(p.requires_grad for p in model.parameters())
    table = factors(zoo["llama"]["adapters"])
    for layer in radar_layers(model):
        gate, experts = in_double(layer), table[layer.site]
        x = torch.randn(7, gate.site.d_in, dtype=F64, generator=torch.Generator().manual_seed(3))
        for row, found in zip(x, layer.update(x, "default"), strict=True):
            scores = spectr_scores(row, experts, options.get("calibration", "none"))
            weights = kept_softmax(scores, 2, options.get("temperature", 1.0))
            want = sum(w * s * B @ (A @ row) for w, (A, B, s) in zip(weights, experts.values(), strict=True))
            torch.testing.assert_close(found, want, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_directions_forget_how_large_an_expert_is_and_norms_do_not(zoo, load_tiny):
    chosen = {}
    for calibration in ("none", "directions"):
        model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="spectr", calibration=calibration)
        layer = next(layer for layer in radar_layers(model) if len(layer.gate("default").site.experts) == 3)
        gate, bank, x = layer.gate("default"), layer.bank("default"), torch.randn(50, 24)
        before = layer.gated(x, "default").indices
        louder = bank.B.clone()
        louder[-3:] *= 100
        gate.prepare(bank.A, louder, bank.scales)
        chosen[calibration] = torch.equal(layer.gated(x, "default").indices, before)
        first = layer.gated(x, "default").indices[:, 0]
        assert bool((first == 2).all()) == (calibration == "none")
    assert chosen == {"none": False, "directions": True}


@torch.no_grad()
def test_directions_of_broken_experts_stay_finite(zoo, load_tiny):
    model = radargate.compose(load_tiny(dtype=F64), zoo["llama"]["adapters"], gate="spectr", calibration="directions")
    layer = next(layer for layer in radar_layers(model) if len(layer.gate("default").site.experts) == 3)
    gate, bank = layer.gate("default").double(), layer.bank("default")
    A, B, x = bank.A.double(), bank.B.double(), torch.randn(5, 24, dtype=F64)
    A[1], B[5] = A[0], 0  # expert 0 reads in three directions, expert 1 writes in seven
    gate.prepare(A, B, (*bank.scales[:2], 0.0))
    ranks = gate.site.ranks
    codes = [(x @ a.T) * s for a, s in zip(A.split(ranks), (*bank.scales[:2], 0.0), strict=True)]
    found = gate.norms(Call(x, Codes(torch.cat(codes, -1), B, ranks), 2))
    for i, (a, b) in enumerate(zip(A.split(ranks), B.split(ranks), strict=True)):
        _, values, right = torch.linalg.svd(b.T @ a, full_matrices=False)
        want = (x @ right[values > 1e-9].T).norm(dim=-1) if i < 2 else torch.zeros(5, dtype=F64)
        assert (values > 1e-9).sum() == (3, 7, 3)[i]
        torch.testing.assert_close(found[:, i], want, atol=1e-10, rtol=1e-10)


def model_inputs(texts):
    """Two texts as one padded batch."""
    rows = [tiny_tokenizer()(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def norms_alone(zoo, load_tiny):
    """site → expert → ‖s B A x‖ of every token of its texts, read one by one under PEFT with that adapter alone."""
    adapters, table = zoo["llama"]["adapters"], factors(zoo["llama"]["adapters"])
    found: dict = {}
    for name, folder in adapters.items():
        peer = PeftModel.from_pretrained(load_tiny(dtype=F64), folder).double().eval()
        seen: dict = {}
        for key, module in peer.get_base_model().named_modules():
            if name in table.get(key, {}):
                module.register_forward_pre_hook(
                    lambda _, args, seen=seen, key=key: seen.setdefault(key, []).append(args[0][0])
                )
        for text in TEXTS[name]:
            peer(input_ids=torch.tensor([tiny_tokenizer()(text)["input_ids"]]))
        for key, parts in seen.items():
            A, B, s = table[key][name]
            found.setdefault(key, {})[name] = torch.stack([(s * (B @ A) @ x).norm() for x in torch.cat(parts)])
    return found


@torch.no_grad()
def test_rows_calibrate_by_each_experts_own_mean_and_spread(zoo, load_tiny, tmp_path):
    adapters, table = zoo["llama"]["adapters"], factors(zoo["llama"]["adapters"])
    options = {"gate": "spectr", "calibration": "rows", "top_k": 2}
    model = radargate.compose(load_tiny(dtype=F64), adapters, **options).eval()
    for layer in radar_layers(model):
        in_double(layer)
    with pytest.raises(OptionError, match=r"does not know yet.*radargate\.describe_norms"):
        model(**inputs())
    radargate.describe_norms(model, {name: [model_inputs(texts)] for name, texts in TEXTS.items()})
    want = norms_alone(zoo, load_tiny)
    for layer in radar_layers(model):
        gate = layer.gate("default")
        if gate.site.n == 1:
            continue
        for i, name in enumerate(gate.site.experts):
            seen = want[layer.site][name]
            assert float(gate.norm_mean[i]) == pytest.approx(float(seen.mean()), rel=1e-10)
            assert float(gate.norm_spread[i]) == pytest.approx(float(seen.std(correction=0)), rel=1e-10)
        x = torch.randn(7, gate.site.d_in, dtype=F64, generator=torch.Generator().manual_seed(3))
        for row, found in zip(x, layer.update(x, "default"), strict=True):
            experts = table[layer.site]
            weights = kept_softmax(spectr_scores(row, experts, "rows", want[layer.site]), 2)
            update = sum(w * s * B @ (A @ row) for w, (A, B, s) in zip(weights, experts.values(), strict=True))
            torch.testing.assert_close(found, update, atol=1e-10, rtol=1e-10)
    plain = radargate.compose(load_tiny(), adapters, **options).train()
    radargate.describe_norms(plain, {name: [model_inputs(texts)] for name, texts in TEXTS.items()})
    assert plain.training
    plain.eval().save_pretrained(tmp_path / "bundle")
    again = radargate.load(load_tiny(), tmp_path / "bundle").eval()
    assert torch.equal(again(**inputs()).logits, plain(**inputs()).logits)
    words = {"max_new_tokens": 6, "do_sample": False}
    cached = plain.generate(**inputs(batch=1), **words)
    assert torch.equal(cached, again.generate(**inputs(batch=1), **words, use_cache=False))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_training_on_rows_of_tasks_named_like_the_experts_calibrates(zoo, tasks, tmp_path, family, capsys):
    adapters = list(zoo[family]["adapters"].values())
    named = [f"{task}={path}" for task, path in zip(("add", "even"), adapters, strict=False)]
    words = ["--data", str(tasks), "--gate", "spectr", "--option", "calibration=rows", "--device", "cpu"]
    assert main(["train", str(zoo[family]["base"]), *named, *words, "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["trained_parameters"] == 0
    model = radargate.load(None, tmp_path / "b")
    gates = [layer.gate("default") for layer in radar_layers(model) if layer.gate("default").site.n == 2]
    assert gates and all(bool((gate.norm_mean > 0).all()) and bool((gate.norm_spread > 0).all()) for gate in gates)
    named[1] = f"odd={adapters[1]}"
    assert main(["train", str(zoo[family]["base"]), *named, *words, "--out", str(tmp_path / "c")]) == 1
    assert "there is none for 'odd', only add, even" in capsys.readouterr().err


@torch.no_grad()
def test_a_switched_off_expert_is_left_out_by_spectr(zoo, load_tiny):
    adapters = zoo["llama"]["adapters"]
    rest = {name: adapters[name] for name in ("math", "code")}
    for calibration in ("none", "directions"):
        options = {"gate": "spectr", "top_k": 2, "calibration": calibration}
        model = radargate.compose(load_tiny(), adapters, **options)
        with radargate.using(model, {"law": 0.0}):
            masked = model(**inputs()).logits
        expected = radargate.compose(load_tiny(), rest, **options)(**inputs()).logits
        torch.testing.assert_close(masked, expected, atol=1e-5, rtol=0)


def test_what_cannot_be_calibrated_is_refused(zoo, load_tiny):
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="spectr", calibration="rows")
    with pytest.raises(OptionError, match="found none for 'code'"):
        radargate.describe_norms(model, {name: [model_inputs(TEXTS[name])] for name in ("math", "law")})
    plain = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="spectr")
    with pytest.raises(OptionError, match="found no site with such a rule"):
        radargate.describe_norms(plain, {name: [model_inputs(texts)] for name, texts in TEXTS.items()})


@torch.no_grad()
def test_under_orthogonal_outputs_spectr_goes_by_what_is_left_of_each(zoo, load_tiny):
    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="spectr", architecture="omoe")
    layer = next(layer for layer in radar_layers(model) if len(layer.gate("default").site.experts) == 3)
    x, bank = torch.randn(5, 24), layer.bank("default")
    v = literal.expert_outputs(
        x,
        *zip(
            *[
                (a, s * b.T)
                for a, b, s in zip(
                    bank.A.split(list(bank.ranks)), bank.B.split(list(bank.ranks)), bank.scales, strict=True
                )
            ],
            strict=True,
        ),
    )
    want = literal.gram_schmidt(v).norm(dim=-1)
    torch.testing.assert_close(layer.gate("default").norms(layer.call(x, "default")), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"calibration": "zscore"}, "calibration is 'zscore'"),
        ({"temperature": 0}, "temperature is 0"),
        ({"calibration": "directions", "architecture": "omoe"}, "singular directions"),
    ],
)
def test_what_cannot_work_is_one_line_before_a_model_is_loaded(zoo, options, match):
    with pytest.raises(OptionError, match=match) as caught:
        radargate.compose("no/such/base", zoo["llama"]["adapters"], gate="spectr", **options)
    assert "\n" not in str(caught.value)
