"""LoraHub as its paper has it: weights searched for each task, and no rank for what has to be told the task."""

from __future__ import annotations

import copy

import pytest
from transformers import AutoTokenizer

import radargate
from compare_records import compare_records
from radargate.comparison.analysis import analyse, contestants
from radargate.comparison.cells import Cell, all_cells
from radargate.comparison.tables import ranking_table
from radargate.data.sources import load_rows
from radargate.errors import OptionError
from radargate.evaluation.options import Scoring
from radargate.evaluation.run import score_system
from radargate.gates.rules.lorahub import LoraHubRule
from radargate.training.encoding import encode_for
from radargate.training.options import GateTraining
from radargate.training.search import search_weights
from test_compare import adapters, cells, command, main, read_records  # noqa: F401

LABEL = "lorahub budget=12 form=sane told the task (mole)"


def made(rules, task_rows, **changes):
    given = {"gates": ["stretch"], "architectures": ["mole"], "seeds": 2, "task_rows": task_rows, **changes}
    return [c for c in all_cells(["a", "b"], rules=rules, **given)[0] if c.system not in ("base", "a", "b", "stretch")]


def test_each_task_is_searched_on_its_own_rows_and_scored_with_its_own_weights(
    zoo,
    adapters,  # noqa: F811
    tasks,
    tmp_path,
    load_tiny,
):
    out = tmp_path / "told"
    words = ("--gates", "stretch", "--rules", "lorahub:budget=12,form=sane uniform")
    assert main(command(zoo, adapters, tasks, out, *words)) == 0
    told = {c["cell"]["seed"]: c for c in cells(out) if c["cell"]["label"] == LABEL}
    assert set(told) == {0} and {c["cell"]["kind"] for c in told.values()} == {"told"}
    records = [r for r in read_records(out / "records.jsonl") if r["suite"] == "eval" and r["task"] != "mean"]
    scored = {(r["cell"]["seed"], r["task"]): r["rows"] for r in records if r["system"] == LABEL}
    experts = dict(zip(("add", "even"), adapters, strict=True))
    tokenizer = AutoTokenizer.from_pretrained(zoo["llama"]["base"])
    training = GateTraining(steps=2, batch_size=2)
    found = set()
    for seed, cell in told.items():
        assert set(cell["metrics"]["search"]) == {"add", "even"}
        for task, search in cell["metrics"]["search"].items():
            # as the paper: this task's rows alone, then only these weights
            model = radargate.compose(load_tiny(), experts, gate="lorahub", form="sane", budget=12)
            own = encode_for(model.get_base_model(), load_rows(str(tasks), "train", [task])[task], tokenizer, training)
            assert search_weights(model, own, seed=seed, device="cpu")["search"]["weights"] == search["weights"]
            found.add(tuple(search["weights"].values()))
            alone = radargate.compose(
                load_tiny(), experts, gate="lorahub", form="sane", weights=search["weights"]
            ).eval()
            rows = load_rows(str(tasks), "test", [task], 3)
            scoring = Scoring(limit=3, max_new_tokens=2)
            (wanted, _) = score_system("x", alone, tokenizer, rows, scoring, {})
            for column in ("id", "correct", "prediction", "nll_sum"):
                assert wanted["rows"][column] == scored[seed, task][column]
            for name, weight in search["weights"].items():
                assert cell["metrics"]["usage"][task][name] == pytest.approx(weight, abs=1e-5)
    assert len(found) == 2, "every task has weights of its own"


def test_a_task_with_fewer_rows_than_the_search_wants_is_said_beforehand():
    with pytest.raises(OptionError, match="the search for each task wants 5 examples and q has 4 training rows"):
        made(["lorahub"], {"p": 9, "q": 4})
    assert [c.label for c in made(["lorahub:examples=4"], {"p": 9, "q": 4}, seeds=1)] == [
        "lorahub examples=4 told the task (mole)"
    ]
    found, left_out = all_cells(
        ["a", "b"], gates=["stretch"], rules=["all"], architectures=["mole"], seeds=1, task_rows={"p": 9, "q": 4}
    )
    assert "lorahub" not in {c.system for c in found} and sum("wants 5 examples" in line for line in left_out) == 2


def test_only_a_search_with_rows_of_every_task_is_told_the_task(monkeypatch):
    assert made(["lorahub"], None) == [Cell("lorahub", "rule", "lorahub (mole)", "mole", seed, {}) for seed in (0, 1)]
    assert {c.kind for c in made(["lorahub"], {"p": 9})} == {"told"}
    monkeypatch.setattr(LoraHubRule, "searches", classmethod(lambda cls, options: False))
    (cell,) = made(["lorahub"], {"p": 9})  # as where weights are given
    assert (cell.kind, cell.seed, cell.label) == ("rule", None, "lorahub (mole)")


def test_tasks_without_training_rows_let_it_search_once_and_this_is_said(zoo, adapters, tasks, tmp_path, capsys):  # noqa: F811
    import shutil

    data = shutil.copytree(tasks, tmp_path / "data")
    shutil.copy(data / "add.test.jsonl", data / "odd.test.jsonl")
    words = ("--gates", "stretch", "--rules", "lorahub:budget=2", "--dry-run")
    assert main(command(zoo, adapters, data, tmp_path / "out", *words)) == 0
    shown = capsys.readouterr().err
    assert "lorahub budget=2 (mole) searches its weights once, on the rows of all tasks: odd has no training" in shown


def test_what_is_told_the_task_leads_nothing_and_has_no_rank():
    records = copy.deepcopy(compare_records(gates=("radar", "stretch"), architectures=("mole",), missing=None))
    told = "lorahub told the task (mole)"
    for record in records:
        if record.get("cell", {}).get("label") == "ties":
            record["cell"] |= {"label": told, "kind": "told", "architecture": "mole"}
            if "rows" in record:  # better than all others
                record["rows"] |= {"correct": [1] * 40, "nll_sum": [0.001] * 40}
    analysis = analyse(records)
    assert analysis.standings["acc"][0].label == analysis.standings["nll"][0].label == told
    assert told not in contestants(analysis.results) and told not in analysis.leaders.values()
    tests = [*analysis.against_leader["nll"], *analysis.against_reference["nll"]]
    assert not any(told in (test.first, test.second) for test in tests)
    rows = {row["system"]: row for row in ranking_table(analysis).rows}
    assert rows[told]["rank"] is None and rows[told]["acc"] == 1.0
    assert min(row["rank"] for row in rows.values() if row["rank"]) == 1
    with pytest.raises(OptionError, match="no finished system"):
        analyse(records, reference=told)
