"""Which rows are each expert's own: by its name, or by who answers them best."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import radargate
from conftest import logged
from radargate.base_models.loading import load_base, load_tokenizer
from radargate.data.prompts import encode_row
from radargate.data.sources import load_rows
from radargate.errors import DataError
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining
from radargate.training.own_rows import MOST, rows_by_expert


def literal_loss(base, adapter, rows, tokenizer) -> float:
    """Mean loss over the answer tokens of all rows, one row at a time."""
    model = radargate.compose(base, {"only": adapter}, gate="uniform", top_k=1).eval()
    total, count = 0.0, 0
    for row in rows:
        pair = encode_row(row.prompt, row.target, tokenizer, False)
        answer = [*pair.continuation, tokenizer.eos_token_id]
        ids = torch.tensor([pair.context + answer])
        logs = model(ids).logits[0, :-1].log_softmax(-1)
        total -= float(logs.gather(-1, ids[0, 1:, None])[-len(answer) :].sum())
        count += len(answer)
    model.unload()
    return total / count


def test_a_task_without_an_expert_of_its_name_belongs_to_the_one_that_answers_it_best(zoo, tasks):
    tiny, by_task = zoo["llama"], load_rows(tasks, "train")
    base, tokenizer = load_base(str(tiny["base"])), load_tokenizer(str(tiny["base"]))
    best = {}
    for task, rows in by_task.items():
        losses = {n: literal_loss(base, a, rows[:MOST], tokenizer) for n, a in tiny["adapters"].items()}
        best[task] = min(losses, key=losses.__getitem__)
    lines: list[str] = []
    with logged(lines.append):
        found = rows_by_expert(base, tiny["adapters"], by_task, tokenizer, GateTraining())
    for name in tiny["adapters"]:
        want = [row for task, rows in by_task.items() if best[task] == name for row in rows]
        assert found[name] == want
    assert any("answers each task best" in line for line in lines)


def test_names_of_tasks_come_first_and_cost_nothing(zoo, tasks, monkeypatch):
    adapters = dict(zip(("even", "add"), zoo["llama"]["adapters"].values(), strict=False))
    monkeypatch.setattr("radargate.training.own_rows.compose", None)
    by_task = load_rows(tasks, "train")
    assert rows_by_expert(None, adapters, by_task, None, GateTraining()) == {n: by_task[n] for n in ("even", "add")}


def test_rows_that_are_all_too_long_are_refused_and_one_such_task_is_nobodys_trouble(zoo, tasks):
    tiny, by_task = zoo["llama"], load_rows(tasks, "train")
    base, tokenizer = load_base(str(tiny["base"])), load_tokenizer(str(tiny["base"]))
    with pytest.raises(DataError, match="longer than `max_length` 2 tokens"):
        rows_by_expert(base, tiny["adapters"], by_task, tokenizer, GateTraining(max_length=2))
    long = [replace(row, task="long", prompt="9" * 300) for row in by_task["add"][:3]]
    found = rows_by_expert(base, tiny["adapters"], {**by_task, "long": long}, tokenizer, GateTraining(max_length=64))
    assert sorted(row.id for rows in found.values() for row in rows if row.task != "long") == sorted(
        row.id for rows in by_task.values() for row in rows
    )


@pytest.mark.parametrize("names", [("even", "add"), ("math", "law", "code")])
def test_select_trains_from_any_rows_and_answers_when_loaded(zoo, tasks, tmp_path, names):
    """The command that a user has: no task need be named like an adapter; who is best at none is left out."""
    tiny = zoo["llama"]
    adapters = dict(zip(names, tiny["adapters"].values(), strict=False))
    options = GateTraining(gate="select", max_length=64)
    train_gates(str(tiny["base"]), adapters, str(tasks), tmp_path / "b", options, device="cpu")
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert len(config["experts"]) == 2 and set(config["experts"]) <= set(names)
    assert "examples" not in config["gate_options"]
    model = radargate.load(None, tmp_path / "b")
    assert len(radargate.generate(model, ["3+1=", "is 4 even?"], max_new_tokens=3)) == 2
