"""One LoRA fitted to a composition: the closed form is the best one, plain PEFT loads it, its record is what one measures."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

import radargate
from conftest import FAMILIES, tiny_tokenizer
from radargate.cli import main
from radargate.composition.composing import radar_layers
from radargate.data.batches import AnswerCollator
from radargate.data.options import Batching
from radargate.data.sources import load_rows
from radargate.errors import AdapterError, DataError, OptionError, RadarGateError
from radargate.evaluation.scoring import Scorer
from radargate.experts.adapters import read_adapter
from radargate.exporting import fit as fitted_lora
from radargate.exporting.fit import fit_lora, fit_sites
from radargate.exporting.gguf import gguf_names, interleaved, write_gguf
from radargate.exporting.options import Fitting
from radargate.exporting.reading import fit_and_held_out, make_batches
from radargate.exporting.reduced_rank import RIDGES, Moments, reduced_rank
from test_tracing import compose


def moments_of(x, u, pieces=1):
    made = Moments(x.shape[1], u.shape[1])
    for part in range(pieces):
        made.add(x[part::pieces], u[part::pieces])
    return made


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def augmented_best(x, u, rank, ridge):
    """Reduced-rank ridge regression the other way: least squares on rows with √λ below, projected onto the fit's main directions."""
    below = torch.cat([x, math.sqrt(ridge) * torch.eye(x.shape[1], dtype=x.dtype)])
    full = torch.linalg.lstsq(below, torch.cat([u, u.new_zeros(x.shape[1], u.shape[1])]), driver="gelsd").solution
    _, _, main_directions = torch.linalg.svd(below @ full, full_matrices=False)
    return full @ main_directions[:rank].T @ main_directions[:rank]


def objective(x, u, M, ridge):
    return float((u - x @ M).square().sum() + ridge * M.square().sum())


@pytest.mark.parametrize("tokens", [400, 12], ids=["many tokens", "fewer tokens than widths"])
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_no_map_of_that_rank_comes_closer(tokens, rank):
    x = random(tokens, 20) * torch.logspace(0, 2, 20, dtype=torch.float64)
    u = x @ random(20, 14, seed=1) + 3 * random(tokens, 14, seed=2)
    found = reduced_rank(moments_of(x, u, pieces=3), rank)
    M, want = found.A.T @ found.B, augmented_best(x, u, rank, found.ridge)
    assert found.A.shape == (rank, 20) and found.B.shape == (rank, 14)
    assert objective(x, u, M, found.ridge) == pytest.approx(objective(x, u, want, found.ridge), rel=1e-9)
    torch.testing.assert_close(x @ M, x @ want, rtol=1e-5, atol=1e-5 * float(u.abs().max()))
    assert found.residual == pytest.approx(float((u - x @ M).norm() / u.norm()), rel=1e-6)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):  # nor does any step away from it
        a = found.A + 1e-3 * found.A.norm() * torch.randn(found.A.shape, generator=generator, dtype=torch.float64)
        assert objective(x, u, a.T @ found.B, found.ridge) >= objective(x, u, M, found.ridge)


def test_a_map_of_low_rank_is_found_as_it_is_and_no_larger():
    x, A, B = random(300, 16), random(3, 16, seed=1), random(3, 10, seed=2)
    found = reduced_rank(moments_of(x, x @ A.T @ B), 8)
    assert len(found.A) == 3 and found.residual < 1e-5
    torch.testing.assert_close(found.A.T @ found.B, A.T @ B, rtol=1e-5, atol=1e-5)


def test_hard_inputs_stay_finite_and_close():
    """Equal columns, columns of zeros, one ten thousand times larger, and one token only."""
    x = random(200, 12)
    x[:, 3], x[:, 5], x[:, 7] = x[:, 2], 0.0, 1e4 * x[:, 7]
    u = x[:, :4] @ random(4, 6, seed=1)
    found = reduced_rank(moments_of(x, u), 4)
    assert found.residual < 1e-3 and all(bool(torch.isfinite(part).all()) for part in (found.A, found.B))
    one = reduced_rank(moments_of(x[:1], u[:1]), 4)
    assert len(one.A) == 1 and one.residual < 1e-3
    for nothing in (moments_of(x, 0 * u), moments_of(0 * x, u)):
        empty = reduced_rank(nothing, 4)
        assert empty.A.shape == (0, 12) and empty.B.shape == (0, 6) and empty.residual == 0


def test_the_ridge_is_the_one_that_cross_validation_prefers():
    """Noise asks for a large one, none for the smallest; and it is the least of the textbook's formula."""
    x, M = random(40, 30), random(30, 8, seed=1)
    still, noisy = (reduced_rank(moments_of(x, x @ M + noise * random(40, 8, seed=2)), 30) for noise in (0.0, 30.0))
    largest = float(torch.linalg.matrix_norm(x, 2) ** 2)
    assert still.ridge == pytest.approx(RIDGES[0] * largest) and noisy.ridge > 1e3 * still.ridge
    u = x @ M + 30 * random(40, 8, seed=2)

    def error(ridge):
        hat = x @ torch.linalg.solve(x.T @ x + ridge * torch.eye(30, dtype=torch.float64), x.T)
        return float((u - hat @ u).square().sum()) / float(1 - hat.trace() / 40) ** 2

    assert noisy.ridge == pytest.approx(min((share * largest for share in RIDGES), key=error))


@pytest.fixture
def rows(tasks):
    return fit_and_held_out(tasks, None, None, None)


def sites_of(model, rows, rank=4, batch_size=8):
    batches, _ = make_batches(
        model, tiny_tokenizer(), [r for group in rows.values() for r in group], Batching(batch_size=batch_size)
    )
    layers = radar_layers(model)
    return fit_sites(model, layers, batches, rank)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_padding_and_passes_change_nothing(zoo, load_tiny, rows, family, monkeypatch):
    model = compose(zoo, load_tiny(family), family)
    whole = sites_of(model, rows[1])
    monkeypatch.setattr(fitted_lora, "MOMENT_NUMBERS", 1)  # one site a pass
    single = sites_of(model, rows[1], batch_size=1)
    assert list(whole) == list(single) == [layer.site for layer in radar_layers(model)]
    for site, found in whole.items():
        assert found.residual == pytest.approx(single[site].residual, rel=1e-3, abs=1e-6)
        M, other = (one.A.T @ one.B for one in (found, single[site]))
        assert float((M - other).norm()) <= 1e-3 * float(M.norm())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_fit_is_loaded_by_peft_and_loses_what_its_record_says(zoo, load_tiny, rows, tmp_path, family):
    model, tokenizer = compose(zoo, load_tiny(family), family), tiny_tokenizer()
    record = fit_lora(model, tmp_path / "lora", *rows, Fitting(4), tokenizer=tokenizer, note="mine")
    assert record == json.loads((tmp_path / "lora" / "record.json").read_text()) and record["note"] == "mine"
    metrics, held_out = record["metrics"], rows[1]
    plain = PeftModel.from_pretrained(load_tiny(family), tmp_path / "lora").eval()
    systems = {"composition": model, "lora": plain, "base": load_tiny(family)}
    means = {}
    for name, system in systems.items():
        scorer = Scorer(system, tokenizer, max_new_tokens=1)
        scores = {task: scorer.score(group) for task, group in held_out.items()}
        means[name] = sum(sum(s.nll for s in group) / len(group) for group in scores.values()) / len(scores)
        assert metrics["nll"][name]["value"] == pytest.approx(means[name], abs=1e-4)
        assert metrics["nll"][name]["low"] <= metrics["nll"][name]["value"] <= metrics["nll"][name]["high"]
    assert len({round(value, 4) for value in means.values()}) == 3, (
        "the three differ, so that mixing them up would show"
    )
    for other in ("composition", "base"):
        assert metrics["difference"][f"lora - {other}"]["difference"] == pytest.approx(
            means["lora"] - means[other], abs=1e-4
        )
    read = read_adapter("lora", tmp_path / "lora")
    missed = literal_residuals(model, tokenizer, held_out, read)
    for site, found in metrics["residual"]["sites"].items():
        assert found["held_out"] == pytest.approx(missed[site], rel=1e-3, abs=1e-5)
        assert found["rank"] == read.sites[site].rank <= 4
        assert found["fit_any_rank"] <= found["fit"] + 1e-6 < 1
    assert metrics["residual"]["highest"] == pytest.approx(max(missed.values()), rel=1e-3)
    assert record["rows"] == {"fit": 96, "held_out": 24} and record["rank"] == 4 and not record["dropped"]


def literal_residuals(model, tokenizer, by_task, adapter):
    """Site → share missed, row by row, from what the layers put out and what their base layers do."""
    sums = {}

    def look(layer, args, output):
        if layer.site not in adapter.sites:
            return
        x = args[0]
        A, B = adapter.read(layer.site)
        u = output - layer.base_layer(x)
        missing = u - adapter.sites[layer.site].scale * x @ A.T @ B.T
        pair = sums.setdefault(layer.site, [0.0, 0.0])
        pair[0] += float(missing.double().square().sum())
        pair[1] += float(u.double().square().sum())

    hooks = [layer.register_forward_hook(look) for layer in radar_layers(model)]
    seq2seq = model.config.is_encoder_decoder
    for group in by_task.values():
        for row in group:
            _, encoded = make_batches(model, tokenizer, [row], Batching(batch_size=1))
            batch = AnswerCollator(0, seq2seq)(encoded.rows)
            model(**{name: batch[name] for name in ("input_ids", "labels") if name in batch})
    for hook in hooks:
        hook.remove()
    return {site: (missed / size) ** 0.5 for site, (missed, size) in sums.items()}


@torch.no_grad()
def test_a_static_rule_fitted_with_room_enough_is_the_exact_one(zoo, load_tiny, rows, tmp_path):
    model = compose(zoo, load_tiny(), gate="uniform")
    record = fit_lora(model, tmp_path / "lora", *rows, Fitting(24), tokenizer=tiny_tokenizer())
    assert record["metrics"]["residual"]["highest"] < 1e-2
    plain, ids = PeftModel.from_pretrained(load_tiny(), tmp_path / "lora").eval(), tiny_tokenizer().encode("7+1= 8")
    ids = torch.tensor([ids])
    change = (model(input_ids=ids).logits - load_tiny()(input_ids=ids).logits).abs().max()
    torch.testing.assert_close(
        plain(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=float(0.02 * change)
    )


def test_more_rank_misses_less_and_the_model_is_left_as_it_was(zoo, load_tiny, rows, tmp_path):
    model = compose(zoo, load_tiny()).train()
    before, ids = [], torch.arange(5, 25)[None]
    missed = {}
    for rank in (1, 8):
        before.append(model.eval()(input_ids=ids).logits)
        model.train()
        record = fit_lora(model, tmp_path / str(rank), *rows, Fitting(rank), tokenizer=tiny_tokenizer())
        missed[rank] = record["metrics"]["residual"]["sites"]
        assert model.training
    assert torch.equal(*before) and all(missed[8][site]["fit"] < missed[1][site]["fit"] for site in missed[1])


def test_what_cannot_be_fitted_says_so(zoo, load_tiny, rows, tmp_path, tasks):
    model = compose(zoo, load_tiny())
    for rank in (0, 25):
        with pytest.raises(OptionError, match=f"rank is {rank}, expected 1 to 24"):
            fit_lora(model, tmp_path / "lora", *rows, Fitting(rank), tokenizer=tiny_tokenizer())
    with pytest.raises(DataError, match="No row is left"):
        fit_lora(model, tmp_path / "lora", *rows, Fitting(2, max_length=3), tokenizer=tiny_tokenizer())
    assert not (tmp_path / "lora").exists()
    fit_lora(model, tmp_path / "lora", *rows, Fitting(2), tokenizer=tiny_tokenizer())
    with pytest.raises(AdapterError, match="already holds an adapter"):
        fit_lora(model, tmp_path / "lora", *rows, Fitting(2), tokenizer=tiny_tokenizer())
    tutel = radargate.compose(load_tiny(), zoo["llama"]["adapters"], gate="tutel", top_k=2, capacity=1.0)
    with pytest.raises(RadarGateError, match="depend on the other tokens"):
        fit_lora(tutel, tmp_path / "tutel", *rows, Fitting(2), tokenizer=tiny_tokenizer())


def test_rows_that_are_too_long_are_measured_nowhere(zoo, load_tiny, rows, tmp_path, monkeypatch):
    model, (fit, held_out) = compose(zoo, load_tiny()), rows
    long = replace(held_out["add"][0], prompt="x" * 600)
    records = []
    for name, given in (("plain", held_out), ("long", {**held_out, "add": [long, *held_out["add"]], "words": [long]})):
        records.append(fit_lora(model, tmp_path / name, fit, given, Fitting(2), tokenizer=tiny_tokenizer()))
    plain, with_long = records
    assert with_long["dropped_held_out"] and not plain["dropped_held_out"]
    assert all(plain[key] == with_long[key] for key in ("rows", "data_hash", "metrics"))
    monkeypatch.setattr(fitted_lora, "fit_sites", None)  # it must not come so far
    with pytest.raises(DataError, match="No row is left"):
        fit_lora(model, tmp_path / "lora", fit, {"words": [long]}, Fitting(2), tokenizer=tiny_tokenizer())


def test_of_two_compositions_on_one_base_the_named_one_is_exported(zoo, rows, tmp_path):
    for name, experts in (("mine", ("math", "law")), ("other", ("code",))):
        adapters = {expert: zoo["llama"]["adapters"][expert] for expert in experts}
        radargate.compose(str(zoo["llama"]["base"]), adapters, gate="uniform", top_k=1).save_pretrained(tmp_path / name)
    first = radargate.load(None, tmp_path / "mine", adapter_name="mine")
    both = radargate.load(first.get_base_model(), tmp_path / "other", adapter_name="other")
    radargate.save_as_lora(both, tmp_path / "lora", adapter_name="other")
    assert all(site.endswith("q_proj") for site in read_adapter("lora", tmp_path / "lora").sites)
    with pytest.raises(OptionError, match="composition 'mine' is not active, found other"):
        fit_lora(both, tmp_path / "fitted", *rows, Fitting(2), tokenizer=tiny_tokenizer(), adapter_name="mine")


def test_rows_to_measure_on_are_others_than_those_to_fit_to(tasks, tmp_path):
    fit, held = fit_and_held_out(tasks, ["add"], 7, 3)
    assert fit == load_rows(tasks, "train", ["add"], 7) and held == load_rows(tasks, "test", ["add"], 3)
    alone = tasks / "add.train.jsonl"
    fit, held = fit_and_held_out(alone, None, None, None)
    assert len(fit["add"]) == 39 and len(held["add"]) == 9
    assert not {row.prompt for row in fit["add"]} & {row.prompt for row in held["add"]}
    (tmp_path / "few.jsonl").write_text("".join(alone.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(DataError, match="its largest task has 4 rows: every 5th is held out"):
        fit_and_held_out(tmp_path / "few.jsonl", None, None, None)


@pytest.fixture
def bundle(zoo, load_tiny, tmp_path):
    compose(zoo, load_tiny()).save_pretrained(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_the_command_fits_measures_and_writes_gguf(bundle, zoo, tasks, tmp_path, capsys):
    words = ["export", str(bundle), "--base", str(zoo["llama"]["base"]), "--device", "cpu"]
    fit = ["--rank", "3", "--data", str(tasks), "--fit-rows", "20", "--limit", "6"]
    assert main([*words, *fit, "--out", str(tmp_path / "lora")]) == 0
    said = capsys.readouterr().out
    assert "NLL of the right answer on held-out rows: composition" in said and "PeftModel.from_pretrained" in said
    assert main([*words, *fit, "--to", "gguf", "--json", "--out", str(tmp_path / "gguf")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["rows"] == {"fit": 40, "held_out": 12} and record["bundle"] == "bundle"
    assert (tmp_path / "gguf" / "adapter.gguf").is_file() and (tmp_path / "gguf" / "record.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rank", "4"], "--rank 4 fits a LoRA to data; give --data SOURCE"),
        (["--data", "x"], "--data is for a LoRA that is fitted to data; give --rank N too"),
        (["--json"], "--json is for a LoRA that is fitted to data"),
        ([], "or fit one to data (--rank and --data)"),
        (["--rank", "99", "--data", "{tasks}"], "rank is 99, expected 1 to 24"),
        (["--rank", "4", "--data", "nowhere"], "no such file or folder"),
    ],
)
def test_wrong_flags_of_export_are_one_clear_line(bundle, zoo, tasks, tmp_path, capsys, words, message):
    words = [word.format(tasks=tasks) for word in words]
    base = str(zoo["llama"]["base"])
    assert main(["export", str(bundle), "--base", base, "--device", "cpu", "--out", str(tmp_path / "o"), *words]) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.glob("o/*"))


def saved(zoo, load_tiny, folder, family):
    model = radargate.compose(load_tiny(family), zoo[family]["adapters"], gate="uniform")
    radargate.save_as_lora(model, folder)
    return model.get_base_model().config, read_adapter("lora", folder)


def test_a_gguf_adapter_holds_the_same_numbers(zoo, load_tiny, tmp_path):
    for family, sites in (
        ("llama", {"self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v", "mlp.down_proj": "ffn_down"}),
        ("gpt2", {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up"}),
    ):
        config, adapter = saved(zoo, load_tiny, tmp_path / family, family)
        write_gguf(tmp_path / family, tmp_path / f"{family}.gguf", config)
        reader = GGUFReader(tmp_path / f"{family}.gguf")
        fields = {name: field.contents() for name, field in reader.fields.items()}
        alpha = max(site.rank for site in adapter.sites.values())
        assert fields["general.type"] == "adapter" and fields["general.architecture"] == family
        assert fields["adapter.type"] == "lora" and fields["adapter.lora.alpha"] == alpha
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        assert len(tensors) == 2 * len(adapter.sites) and len({site.rank for site in adapter.sites.values()}) > 1
        for site in adapter.sites:
            part, layer = next(part for part in sites if site.endswith(part)), int(site.split(".")[2])
            a, b = (tensors.pop(f"blk.{layer}.{sites[part]}.weight.lora_{side}") for side in "ab")
            if part == "self_attn.q_proj":  # back, as transformers reads llama.cpp's files
                b = LlamaTensorProcessor()._reverse_permute_weights(b, 4, 4)
            A, B = adapter.read(site)
            assert a.shape == tuple(A.shape) and b.shape == tuple(B.shape)
            scaled = alpha / a.shape[0] * torch.tensor(b @ a)  # as llama.cpp scales each site
            torch.testing.assert_close(scaled, adapter.sites[site].scale * B @ A, rtol=1e-4, atol=1e-5)
        assert not tensors


def test_keys_are_reordered_by_their_own_heads(load_tiny):
    B = random(12, 3)  # 2 heads of keys of width 6
    back = LlamaTensorProcessor()._reverse_permute_weights(interleaved(B, 2).numpy(), 4, 2)
    assert np.array_equal(back, B.numpy()) and not torch.equal(interleaved(B, 2), B)
    config = load_tiny().config
    assert gguf_names(config, ["model.layers.1.self_attn.k_proj"]) == {
        "model.layers.1.self_attn.k_proj": "blk.1.attn_k.weight"
    }


def test_what_gguf_cannot_hold_is_refused(zoo, load_tiny, tmp_path, capsys):
    with pytest.raises(OptionError, match=r"a base of type 't5' is not known here, only: gemma"):
        gguf_names(load_tiny("t5").config, [])
    config = load_tiny().config
    with pytest.raises(OptionError, match=r"no weight for model\.layers\.0\.odd"):
        gguf_names(config, ["model.layers.0.odd"])
    config.tie_word_embeddings = True
    with pytest.raises(OptionError, match="shares its weight with the input embeddings"):
        gguf_names(config, ["lm_head"])
    model = radargate.compose(load_tiny("t5"), zoo["t5"]["adapters"], gate="uniform")
    model.save_pretrained(tmp_path / "t5")
    words = [
        "export",
        str(tmp_path / "t5"),
        "--base",
        str(zoo["t5"]["base"]),
        "--to",
        "gguf",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--device", "cpu"]) == 1
    assert "--to lora" in capsys.readouterr().err and not (tmp_path / "o").exists()
