"""Gate ``phatgoose``: the paper's equations, every expert trained by itself, refused where an expert has no rows of its own."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import radargate
from radargate.base_models.loading import load_tokenizer
from radargate.cli import main
from radargate.comparison.cells import all_cells
from radargate.composition.composing import radar_layers
from radargate.data.batches import encode_rows
from radargate.data.rows import Row
from radargate.errors import DataError, OptionError
from radargate.gates.base import Call, GateSite, make_options
from radargate.gates.phatgoose import PhatgooseGate
from radargate.training import loop
from radargate.training.gates import fit_gates, train_gates
from radargate.training.options import GateTraining

F64, D_IN, EPS = torch.float64, 6, 1e-5  # of the authors' layer norms
NAMES = ("math", "law", "code")
PROMPTS = {"math": "{}+1=", "law": "is {} allowed?", "code": "print({})"}


def gate_with(vectors, top_k=None):
    site = GateSite(D_IN, 8, (2,) * len(vectors), top_k or len(vectors), experts=NAMES[: len(vectors)])
    gate = PhatgooseGate(site, make_options(PhatgooseGate, {})).double().eval()
    with torch.no_grad():
        for name, vector in zip(site.experts, vectors, strict=True):
            getattr(gate, f"softmax_vector_{name}").copy_(vector)
    return gate


def standardised(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + EPS)
    return [(value - mean) / spread for value in values]


def literal_weights(x: list[float], vectors: list[list[float]], k: int, factors: list[float]) -> list[float]:
    """Weights of one token, from Sec. 3 of the paper."""
    token, affinities = standardised(x), []
    for vector, factor in zip(vectors, factors, strict=True):
        affinity = sum(a * b for a, b in zip(token, standardised(vector), strict=True)) / math.sqrt(len(x))
        affinities.append(affinity + math.log(factor) if factor else -math.inf)
    kept = sorted(range(len(vectors)), key=lambda i: -affinities[i])[:k]
    parts = [math.exp(affinities[i]) if i in kept else 0.0 for i in range(len(vectors))]
    return [part / sum(parts) for part in parts]


@pytest.mark.parametrize("factors", [None, [1.0, 0.3, 2.0], [1.0, 0.0, 1.0]])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_weights_are_those_of_the_paper(top_k, factors):
    g = torch.Generator().manual_seed(0)
    x, vectors = torch.randn(4, D_IN, generator=g, dtype=F64) + 2, torch.randn(3, D_IN, generator=g, dtype=F64) * 0.1
    asked = None if factors is None else torch.tensor(factors, dtype=F64)
    weights, indices = gate_with(vectors, top_k).weigh(Call(x, None, None if top_k == 3 else top_k, multipliers=asked))
    dense = weights if indices is None else torch.zeros(4, 3, dtype=F64).scatter(-1, indices, weights)
    want = [literal_weights(t, vectors.tolist(), top_k, factors or [1.0] * 3) for t in x.tolist()]
    assert (dense - torch.tensor(want, dtype=F64)).abs().max() < 1e-12


def composed(zoo, base, names=NAMES, **options):
    adapters = zoo["llama"]["adapters"]
    return radargate.compose(base, {n: adapters[n] for n in names}, gate="phatgoose", **options)


def moved(model):
    """The model with gate vectors away from 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def test_in_training_one_expert_alone_is_scaled_by_the_sigmoid_of_its_own_vector(zoo, load_tiny):
    model = moved(composed(zoo, load_tiny()).double()).train()
    for layer in radar_layers(model):
        gate, bank = layer.gate("default"), layer.bank("default")
        d_in, d_out = gate.site.d_in, gate.site.d_out
        place = gate.site.experts.index("law") if "law" in gate.site.experts else None
        x = torch.randn(2, 3, d_in, dtype=F64, generator=torch.Generator().manual_seed(0))
        sense = torch.randn(2, 3, d_out, dtype=F64, generator=torch.Generator().manual_seed(1))
        model.zero_grad()
        with radargate.using(model, {"math": 0.0, "law": 1.0, "code": 0.0}):
            y = layer(x)
        plain = layer.base_layer(x)
        if place is None:
            assert torch.equal(y, plain)
            continue
        (y * sense).sum().backward()
        ranks = list(gate.site.ranks)
        A, B, s = bank.A.split(ranks)[place], bank.B.split(ranks)[place], bank.scales[place]
        vector, slope = gate.softmax_vector_law, [0.0] * d_in
        for b in range(2):
            for t in range(3):
                token = x[b, t].tolist()
                open_by = 1 / (1 + math.exp(-sum(v * a for v, a in zip(vector.tolist(), token, strict=True))))
                said = s * (B.T @ (A @ x[b, t]))
                assert (y[b, t] - (plain[b, t] + open_by * said)).abs().max() < 1e-12
                reach = float(said @ sense[b, t]) * open_by * (1 - open_by)
                slope = [total + reach * a for total, a in zip(slope, token, strict=True)]
        assert (vector.grad - torch.tensor(slope, dtype=F64)).abs().max() < 1e-12
        others = [p.grad for name, p in gate.named_parameters() if not name.endswith("_law")]
        assert all(grad is None for grad in others), "a gradient of zeros would still move them by their momentum"


def rows_of(names=NAMES, counts=(12, 9, 15)):
    rows = {
        name: [Row(PROMPTS[name].format(i), str(i + 1), task=name) for i in range(n)]
        for name, n in zip(NAMES, counts, strict=True)
    }
    return {name: rows[name] for name in names}


def fitted(zoo, load_tiny, out, names, by_task, **changes):
    """Vectors by site and expert of gates trained in float64."""
    model = composed(zoo, load_tiny(), names).double()
    options = GateTraining(**{"gate": "phatgoose", "steps": 6, "batch_size": 4, "max_length": 64, **changes}).resolved()
    rows = [row for task in by_task.values() for row in task]
    encoded = encode_rows(rows, load_tokenizer(str(zoo["llama"]["base"])), options, encoder_decoder=False)
    facts = fit_gates(model, encoded, out, options, device="cpu")
    gates = [layer.gate("default") for layer in radar_layers(model)]
    sites = [layer.site for layer in radar_layers(model)]
    found = {
        (site, name): p.detach() for site, gate in zip(sites, gates, strict=True) for name, p in gate.named_parameters()
    }
    return found, facts


def test_experts_trained_together_are_each_as_if_trained_alone(zoo, load_tiny, tmp_path):
    together, facts = fitted(zoo, load_tiny, tmp_path / "together", NAMES, rows_of())
    assert all(vector.any() for vector in together.values())
    assert facts["curve"][-1][0] == 18, "6 steps for each of 3 experts"
    seen = set()
    for name in NAMES:
        alone, _ = fitted(zoo, load_tiny, tmp_path / name, (name,), rows_of((name,)))
        for key, vector in alone.items():
            assert (together[key] - vector).abs().max() < 1e-10, key
        seen |= alone.keys()
    assert seen == together.keys()
    other, _ = fitted(zoo, load_tiny, tmp_path / "other", NAMES, {**rows_of(), "law": rows_of()["law"][::-1][:5]})
    changed = {key[1] for key, vector in together.items() if (other[key] - vector).abs().max() > 1e-10}
    assert changed == {"softmax_vector_law"}, "nobody sees another's rows"


def data_folder(folder, by_task):
    folder.mkdir()
    for task, rows in by_task.items():
        for split in ("train", "test"):
            lines = [json.dumps({"prompt": row.prompt, "target": row.target}) + "\n" for row in rows]
            (folder / f"{task}.{split}.jsonl").write_text("".join(lines))
    return str(folder)


def test_a_run_that_was_stopped_in_the_middle_ends_bit_equal(zoo, tmp_path, monkeypatch):
    data, tiny = data_folder(tmp_path / "data", rows_of()), zoo["llama"]
    options = GateTraining(gate="phatgoose", steps=5, batch_size=4, save_every=4, max_length=64)

    def run(out, **words):
        return train_gates(str(tiny["base"]), tiny["adapters"], data, tmp_path / out, options, device="cpu", **words)

    run("whole")
    original, calls = loop.AnswerTrainer.training_step, []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(loop.AnswerTrainer, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    run("stopped", resume=True)
    assert len(calls) == 11 + 7, "it went on from the checkpoint of step 8 of 15"
    whole, stopped = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_saved_one_answers_alike_with_a_cache_also_under_names_with_dots(zoo, load_tiny, tmp_path, top_k):
    names = {"math": "v1.5%2E", "law": "v1%2E5", "code": "keys"}
    adapters = {names[name]: path for name, path in zoo["llama"]["adapters"].items()}
    model = moved(radargate.compose(load_tiny(), adapters, gate="phatgoose", top_k=top_k)).eval()
    model.save_pretrained(tmp_path / "bundle")
    again = radargate.load(load_tiny(), tmp_path / "bundle")
    ids = torch.randint(2, 250, (2, 7), generator=torch.Generator().manual_seed(0))
    words = {"max_new_tokens": 6, "do_sample": False}
    first = model.generate(ids, **words)
    assert torch.equal(first, again.generate(ids, use_cache=False, **words))
    with torch.no_grad(), radargate.using(model, {"keys": 0.0}):
        without = model(ids).logits
    assert not torch.equal(without, model(ids).logits)


def test_an_expert_without_rows_of_its_own_is_one_line_before_a_model_is_loaded(zoo, tasks, tmp_path):
    adapters = zoo["llama"]["adapters"]
    with pytest.raises(OptionError, match=r"there is none for 'math', only add, even\. Name the experts like"):
        radargate.train("no/such-base", adapters, tasks, tmp_path / "bundle", gate="phatgoose")
    with pytest.raises(OptionError, match="there is none for 'math'"):
        radargate.compare("no/such-base", adapters, tasks, tmp_path / "grid", gates=("phatgoose",))
    words = {"rules": [], "architectures": ["mole"], "seeds": 1}
    cells, left_out = all_cells(["add", "law"], gates=["all"], tasks=["add", "even"], **words)
    assert "phatgoose" not in {cell.system for cell in cells} and "there is none for 'law'" in left_out[0]
    cells, left_out = all_cells(["add", "even"], gates=["rival"], tasks=["add", "even", "more"], **words)
    assert "phatgoose" in {cell.system for cell in cells} and not left_out


def test_rows_that_were_all_too_long_are_named(zoo, load_tiny, tmp_path):
    by_task = {**rows_of(), "law": [Row("long " * 40, "yes", task="law")] * 3}
    with pytest.raises(
        DataError, match=r"expert 'law' is trained alone .* there are none, 3 are longer than `max_length`"
    ):
        fitted(zoo, load_tiny, tmp_path, NAMES, by_task)


def test_an_expert_that_changes_nothing_at_a_site_has_no_vector_to_train_there(zoo, load_tiny, tmp_path, caplog):
    caplog.set_level("INFO", logger="radargate")
    model = composed(zoo, load_tiny())
    layer = radar_layers(model)[0]
    with torch.no_grad():
        layer.bank("default").B[: layer.gate("default").site.ranks[0]] = 0
    options = GateTraining(gate="phatgoose", steps=4, batch_size=4, max_length=64).resolved()
    rows = [row for task in rows_of().values() for row in task]
    encoded = encode_rows(rows, load_tokenizer(str(zoo["llama"]["base"])), options, encoder_decoder=False)
    fit_gates(model, encoded, tmp_path, options, device="cpu")
    assert "except 1 tensors: its expert changes nothing at that site" in caplog.text
    assert "4 steps for each of 3 experts alone, on 36 rows of their own" in caplog.text
    assert not layer.gate("default").softmax_vector_math.any() and layer.gate("default").softmax_vector_law.any()


def test_it_is_trained_and_compared_from_the_command_line(zoo, tmp_path, capsys):
    data, tiny = data_folder(tmp_path / "data", rows_of()), zoo["llama"]
    named = [f"{name}={path}" for name, path in tiny["adapters"].items()]
    common = ["--data", data, "--steps", "2", "--batch-size", "2", "--max-length", "64", "--device", "cpu"]
    words = ["train", str(tiny["base"]), *named, *common, "--gate", "phatgoose", "--out", str(tmp_path / "bundle")]
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    stored = load_file(tmp_path / "bundle" / "adapter_model.safetensors")
    vectors = {name: tensor for name, tensor in stored.items() if "softmax_vector" in name}
    assert sum(v.numel() for v in vectors.values()) == record["metrics"]["trained_parameters"]
    words = [
        "compare",
        str(tiny["base"]),
        *named,
        *common,
        "--gates",
        "phatgoose",
        "--rules",
        "uniform",
        "--limit",
        "2",
    ]
    assert main([*words, "--max-new-tokens", "2", "--out", str(tmp_path / "grid")]) == 0
    assert "| phatgoose (mole) |" in capsys.readouterr().out
