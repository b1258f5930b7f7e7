"""``radargate experiment skills``: whole on a tiny model, resumed, refused where experts know too little; its statistics."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import make_adapter
from radargate.cli import main
from radargate.data.builtin.skills import PAIRS, pair_named, skill_rows
from radargate.errors import AdapterError, OptionError, RadarGateError, UnknownNameError
from radargate.io.records import make_record, read_records
from radargate.paper.design import SUITE
from radargate.paper.skills.bank import Bank, good_pairs, plain_base
from radargate.paper.skills.contrast import contrast, read_cells, verdict
from radargate.paper.skills.design import CONTRAST, SYSTEMS, SkillsDesign, plan, tried
from radargate.paper.skills.page import write_report
from radargate.paper.skills.parts import PARTS, mistake, part_scores, parts_of
from radargate.paper.skills.places import places, train_rows
from radargate.paper.skills.run import run_skills
from radargate.paper.skills.systems import _summed

NAMES = {  # those that the issue asks for, word for word
    *("base", "expert", "select", "uniform", "sum", "cat", "lorahub", "ties", "knots", "stretch", "radar", "signed"),
    *("signed-radar", "multiplicative", "vector", "lora", "fresh", "fresh-on-sum", "trained-on", "union", "union+rows"),
    "two-pass",
}
PAIR = pair_named("sum-number_word")


def test_a_smoke_run_has_every_system_goes_on_after_a_stop_and_writes_its_page(zoo, tmp_path, capsys):
    words = [
        "experiment",
        "skills",
        "--smoke",
        "--base",
        str(zoo["llama"]["base"]),
        "--out",
        str(tmp_path),
        "--limit",
        "2",
    ]
    assert main([*words, "--gates", "radar,base"]) == 0
    first = [r for r in read_records(tmp_path / "records.jsonl") if r["suite"] == "cell"]
    assert [r["cell"]["label"] for r in first] == ["radar", "base"]
    assert main(words) == 1 and "already holds this experiment" in capsys.readouterr().err
    assert main([*words, "--resume", "--rows", "20", "--rows", "0"]) == 0
    records = read_records(tmp_path / "records.jsonl")
    cells = {r["case"]: r for r in records if r["suite"] == "cell"}
    assert len(cells) == len([r for r in records if r["suite"] == "cell"])  # none was run twice
    assert {r["case"] for r in first} < set(cells)
    labels = {r["cell"]["label"] for r in cells.values()}
    assert labels == {"expert: sum", "expert: number_word", *(name for name in SYSTEMS if name != "expert")}
    assert NAMES - {"expert"} <= labels
    scored = {(r["cell"]["id"], r["task"]): r for r in records if r["suite"] == "eval"}
    for cell in cells.values():
        for task in PAIR.composed:
            assert len(scored[cell["case"], task]["rows"]["prediction"]) == 2
    assert any(r["system"] == "radar with Q = 0 (mole)" for r in records if r["suite"] == "eval")
    fresh = next(r for r in cells.values() if r["cell"]["label"] == "fresh")
    assert (
        fresh["at"] == {"pair": PAIR.name, "rows": 20, "expert_seed": 0} and fresh["metrics"]["trained_parameters"] > 0
    )
    assert {*fresh["metrics"]["probe"]["parts"]} == {*PAIR.composed}
    report = (tmp_path / "report.md").read_text()
    assert "says nothing of quality" in report and "No claim" in report and "| two-pass |" in report
    made = json.loads((tmp_path / "experts" / "seed-0" / "sum" / "adapter_config.json").read_text())
    assert made["base_model_name_or_path"] == str(zoo["llama"]["base"])


def test_experts_below_the_bar_are_said_with_numbers_before_any_cell(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("radargate.paper.skills.design.PRESETS", {"cpu": {"recipes": {}}})
    small = {"bases": (str(zoo["llama"]["base"]),), "pairs": (PAIR.name,), "expert_seeds": 1, "gates": ("radar",)}
    monkeypatch.setattr(SkillsDesign, "recipe_of", lambda self, atom, seed: plan("skills", "cpu", smoke=True).recipe)
    with pytest.raises(
        RadarGateError, match=r"sum-number_word: .*number_word \(seed 0\): 0\.000, sum \(seed 0\): 0\.000"
    ):
        run_skills("skills", "cpu", tmp_path, changes=small)
    suites = {r["suite"] for r in read_records(tmp_path / "records.jsonl")}
    assert suites == {"atom"}


def test_a_pair_with_one_bad_expert_is_left_out_and_others_stay():
    reached = {(atom, 0): 0.95 for pair in PAIRS for atom in (pair.first, pair.second)} | {("conversion", 0): 0.6}
    good, left_out = good_pairs(list(PAIRS), reached)
    assert "conversion-number_word" not in {pair.name for pair in good} and len(good) == len(PAIRS) - 1
    assert left_out == ["conversion-number_word: exact match on own test rows below 0.9: conversion (seed 0): 0.600"]


def test_given_experts_that_lack_an_atom_are_named_before_any_model_is_loaded(zoo, tmp_path):
    place = tmp_path / "seed-0" / "sum"
    place.parent.mkdir()
    make_adapter(zoo["llama"]["base"], place, 1, r=4, lora_alpha=8, target_modules=["q_proj"])
    with pytest.raises(
        AdapterError, match=r"'number_word' of seed 0, expected it in seed-0/number_word. Found: seed-0/sum"
    ):
        run_skills(
            "skills",
            "cpu",
            tmp_path / "out",
            experts=tmp_path,
            changes={"bases": (str(zoo["llama"]["base"]),), "expert_seeds": 1},
        )


def test_options_that_cannot_work_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'radar'"):
        plan("skills", "cpu", gates=("rader",))
    with pytest.raises(OptionError, match="has one base"):
        plan("skills", "cpu", bases=("one", "two"))
    with pytest.raises(OptionError, match="`top_k`"):
        plan("skills", "cpu", top_k=(2,))
    with pytest.raises(UnknownNameError, match="preset"):
        plan("skills", "cpus")


def test_the_contrast_comes_first_and_has_seven_systems_at_nine_units_on_two_pairs(tmp_path):
    design = plan("skills", "cpu")
    found = places(design, Bank(tmp_path, None, design, None), "base", None, "cpu")
    assert len({place.id for place in found}) == len(found)
    assert [place.cell.label for place in found[:7]] == list(CONTRAST)
    for pair in PAIRS[:2]:
        units = {
            (p.cell.label, p.expert_seed, p.cell.seed)
            for p in found
            if p.pair == pair and p.rows == 50 and p.cell.label in CONTRAST
        }
        assert len(units) == 7 * 9
    other = [p for p in found if p.rows not in (50, None) or p.pair not in PAIRS[:2]]
    assert {p.expert_seed for p in other} == {0} and {p.cell.seed for p in other} <= {0, None}
    assert sum(p.seconds for p in found) < 15 * 3600  # of one core
    labels = {"expert" if p.cell.kind == "expert" else p.cell.label for p in found}
    assert labels >= NAMES
    assert len(train_rows(PAIR, 20)[PAIR.composed[0]]) == 20 and {*train_rows(PAIR, 0)} == {"sum", "number_word"}


def test_every_trained_system_is_tried_at_as_many_rates_on_validation_rows_alone(tmp_path):
    design = plan("skills-tuning", "cpu")
    assert design.scoring.split == "validation" and design.rows == (50,)
    names = {text.partition(":lr=")[0] for text in design.systems}
    assert {*CONTRAST} <= names and all(len(tried(name)) == 3 for name in names)
    found = places(design, Bank(tmp_path, None, design, None), "base", None, "cpu")
    assert len(found) == 3 * len(names)
    rates = {p.cell.options["lr"] for p in found if p.cell.system == "radar" and len(p.cell.options) == 2}
    assert rates == {2e-3, 5e-3, 2e-2}


def test_answers_are_cut_into_parts_and_mistakes_have_kinds():
    tokens = [" ", "2", "5", " =", " f", "ünf", "und", "<end>"]
    assert parts_of(tokens) == [PARTS[0]] * 3 + [PARTS[1], PARTS[2], PARTS[3], PARTS[3], PARTS[4]]
    facts = {"25": "fünfundzwanzig", "26": "sechsundzwanzig"}
    for answer, kind in {
        "25 = fünfundzwanzig": "right",
        "25 = fünfundzwanzig\nmore": "right, but goes on",
        "26 = sechsundzwanzig": "first result wrong, words fit it",
        "25 = sechsundzwanzig": "first result right, words wrong",
        "26 = fünfundzwanzig": "both wrong",
        "25 =": "nothing after the first result",
        "fünfundzwanzig": "no connector",
        "": "no connector",
    }.items():
        assert mistake("25 = fünfundzwanzig", answer, facts) == kind


def test_scores_of_parts_add_up_to_the_loss_of_the_answer(zoo):
    base = str(zoo["llama"]["base"])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    row = skill_rows("sum_in_german", "test")[0]
    found = part_scores(model, tokenizer, {"task": [row]})["task"]
    ids = tokenizer.encode(row.prompt) + tokenizer.encode(f" {row.target}") + [tokenizer.eos_token_id]
    labels = [-100] * len(tokenizer.encode(row.prompt)) + ids[len(tokenizer.encode(row.prompt)) :]
    loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    count = sum(part["tokens"] for part in found.values())
    assert sum(part["nll"] * part["tokens"] for part in found.values()) / count == pytest.approx(float(loss), rel=1e-4)
    assert list(found) == list(PARTS) and found["connector"]["tokens"] == found["end"]["tokens"] == 1


def test_the_sum_of_two_experts_adds_both_updates_at_weight_1(zoo):
    folders = {name: str(folder) for name, folder in list(zoo["llama"]["adapters"].items())[:2]}
    grid, base = SimpleNamespace(adapters={"mole": folders}), str(zoo["llama"]["base"])

    def query(model):
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        return inner.model.layers[0].self_attn.q_proj(x)

    plain = AutoModelForCausalLM.from_pretrained(base)
    x = torch.randn(3, plain.config.hidden_size, generator=torch.Generator().manual_seed(0))
    zero = query(plain)
    own = [
        query(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)) - zero
        for folder in folders.values()
    ]
    both = query(_summed(AutoModelForCausalLM.from_pretrained(base), grid)) - zero
    torch.testing.assert_close(both, own[0] + own[1], rtol=1e-4, atol=1e-6)


def test_a_base_loses_its_chat_template_and_nothing_else(zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("RADARGATE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "chatty"
    tokenizer = AutoTokenizer.from_pretrained(zoo["llama"]["base"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    AutoModelForCausalLM.from_pretrained(zoo["llama"]["base"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    plain = plain_base(str(folder))
    assert AutoTokenizer.from_pretrained(plain).chat_template is None and plain == plain_base(str(folder))
    assert AutoTokenizer.from_pretrained(plain).encode("25 =") == tokenizer.encode("25 =")
    weights = "model.safetensors"
    assert (tmp_path / "chatty" / weights).read_bytes() == (
        tmp_path / "cache" / "models" / plain / weights
    ).read_bytes()
    assert plain_base(str(zoo["llama"]["base"])) == str(zoo["llama"]["base"])


def _records(units, values):
    """Records of a contrast: system → exact match on its two tasks, one row a tenth, the same in every unit but for a little."""
    rows, plan_cells, out = 10, [], []
    for name in CONTRAST:
        for e, s in units:
            cell_id = f"{name}-{e}-{s}"
            shown = {"id": cell_id, "label": name, "kind": "gate", "system": name, "architecture": "mole", "seed": s}
            at = {"pair": PAIR.name, "rows": 50, "expert_seed": e}
            plan_cells.append({"id": cell_id, "at": at})
            for task in PAIR.composed:
                right = values[name] + (e + s) % 2
                correct = [1] * right + [0] * (rows - right)
                columns = {
                    "id": [f"{task}/test/{i:04d}" for i in range(rows)],
                    "correct": correct,
                    "correct_norm": [None] * rows,
                }
                columns |= {"prediction": ["25 ="] * rows, "nll_sum": [1.0] * rows, "tokens": [2] * rows}
                out.append(make_record("eval", f"{name}/{task}", {}, cell=shown, system=name, task=task, rows=columns))
            metrics = {"trained_parameters": 7, "train_seconds": 1.0}
            out.append(make_record("cell", cell_id, metrics, cell=shown, at=at))
    design = {
        "base": "b",
        "training": {"steps": 1, "batch_size": 1},
        "recipe": {"rank": 1, "steps": 1, "lr": 0.1},
        "rates": {},
        "pairs": [PAIR.name],
        "rows": [50],
        "expert_seeds": 3,
        "seeds": 3,
    }
    facts = {
        "preset": "cpu",
        "smoke": False,
        "left_out": [],
        "question": "?",
        "design": design,
        "experts_given": True,
        "dtype": None,
    }
    return [make_record(SUITE, "skills", {"cells": len(plan_cells)}, plan=plan_cells, **facts), *out]


def test_the_contrast_claims_nothing_from_one_unit_and_synergy_only_over_all_six(tmp_path):
    nine = [(e, s) for e in range(3) for s in range(3)]
    worse = dict.fromkeys(CONTRAST, 2) | {"radar": 5}
    one = contrast(read_cells(_records(nine[:1], worse)))
    assert [d.other for d in one] == list(CONTRAST[1:]) and all(d.p is None for d in one)
    assert verdict(one).startswith("No claim: 1 unit of seeds is in, and with fewer than 8")
    assert verdict(contrast(read_cells(_records(nine[:7], worse)))).startswith("No claim: 7 units of seeds are in")
    found = contrast(read_cells(_records(nine, worse)))
    assert all(d.mean == pytest.approx(0.3) and d.p == pytest.approx(2 / 512) for d in found)
    assert all(d.corrected == pytest.approx(12 / 512) for d in found) and verdict(found).startswith(
        "Rotation brings synergy"
    )
    level = _records(nine, worse | {"signed": 5})
    assert "not significantly better than signed" in verdict(contrast(read_cells(level)))
    assert np.mean(list(contrast(read_cells(level))[0].tasks.values())) == pytest.approx(0)
    path, summary = write_report(level, tmp_path)
    assert "not significantly better than signed" in summary and "| fresh | +0.300 | 9 |" in path.read_text()
    assert "--pairs sum-number_word --rows 50 --expert-seeds 3 --seeds 3 --dtype" in path.read_text()
