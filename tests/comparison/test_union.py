"""The LoRA trained on all tasks' rows: as many rows as experts and gate saw, and what records of before are called."""

from __future__ import annotations

import copy
import json

import pytest

from compare_records import TASKS, compare_records
from conftest import logged
from radargate.comparison.analysis import analyse
from radargate.comparison.cells import all_cells
from radargate.comparison.grid import Grid
from radargate.comparison.page import compare_page
from radargate.comparison.union import USUAL_ROWS, steps_of_union, train_union
from radargate.data.sources import load_rows
from radargate.errors import OptionError
from radargate.io.records import read_records
from radargate.training.experts import rows_read, train_experts
from radargate.training.options import ExpertOptions, GateTraining
from test_compare import adapters, cells, command, main  # noqa: F401

FILE = "adapter_model.safetensors"


def told(folder, steps, batch_size):
    """An adapter folder as our own training leaves it."""
    folder.mkdir()
    (folder / "options.json").write_text(json.dumps({"steps": steps, "batch_size": batch_size}))
    return str(folder)


def test_steps_are_those_of_all_experts_and_the_gate_in_rows(tmp_path):
    folders = {"a": told(tmp_path / "a", 30, 8), "b": told(tmp_path / "b", 7, 5)}
    lines: list[str] = []
    with logged(lines.append):
        steps = steps_of_union(folders, GateTraining(steps=11, batch_size=4))
    assert steps == -(-(30 * 8 + 7 * 5) // 4) + 11
    assert len(lines) == 1 and "do not say" not in lines[0] and f"{steps} steps of 4 rows" in lines[0]


def test_an_adapter_that_does_not_say_its_rows_counts_as_one_of_ours(tmp_path):
    folders = {"a": told(tmp_path / "a", 30, 8), "b": "somebody/adapter", "c": str(tmp_path)}
    lines: list[str] = []
    with logged(lines.append):
        steps = steps_of_union(folders, GateTraining(steps=11, batch_size=8))
    assert USUAL_ROWS == 100 * 8 and steps == 30 + 100 + 100 + 11
    assert len(lines) == 1 and "800 taken for each of 2 that do not say theirs" in lines[0]


@pytest.mark.parametrize("content", [{}, {"steps": 3}, {"steps": "3", "batch_size": 2}, {"steps": 0, "batch_size": 2}])
def test_options_that_say_no_rows_are_none(tmp_path, content):
    (tmp_path / "options.json").write_text(json.dumps(content))
    assert rows_read(tmp_path) is None


def test_what_an_expert_of_ours_read_is_known_from_its_folder(zoo, tasks, tmp_path):
    options = ExpertOptions(steps=3, batch_size=2, rank=2)
    folders = train_experts(str(zoo["llama"]["base"]), str(tasks), tmp_path, options, tasks=["add"], device="cpu")
    assert rows_read(folders["add"]) == 6


def test_a_comparison_trains_it_for_as_long_as_its_adapters_say(zoo, adapters, tasks, tmp_path, capsys):  # noqa: F811
    import shutil

    known = [shutil.copytree(path, tmp_path / f"known{i}" / path.rpartition("/")[2]) for i, path in enumerate(adapters)]
    for folder, steps in zip(known, (2, 3), strict=True):
        (folder / "options.json").write_text(json.dumps({"steps": steps, "batch_size": 4}))
    words = command(zoo, map(str, known), tasks, tmp_path / "out", "--gates", "stretch", "--seeds", "2")
    place = words.index("--union-steps")
    del words[place : place + 2]
    assert main(words) == 0
    assert "the union LoRA gets 12 steps of 2 rows" in capsys.readouterr().err  # (2 + 3) · 4 / 2 + 2
    unions = [c for c in cells(tmp_path / "out") if c["cell"]["system"] == "union LoRA"]
    assert [(c["cell"]["label"], c["cell"]["seed"]) for c in unions] == [("union LoRA on all rows", s) for s in (0, 1)]
    for cell in unions:
        assert cell["metrics"]["rows_read"] == 24 and cell["metrics"]["train_seconds"] > 0
        assert (cell["options"]["steps"], cell["options"]["lr"]) == (12, 1e-3)
        assert cell["note"] == "24 rows read in 12 steps, of 96 there are"
    records = read_records(tmp_path / "out" / "records.jsonl")
    assert records[0]["request"]["union_steps"] == 12


def test_it_is_the_lora_that_the_recipe_makes_of_all_rows(zoo, adapters, tasks, tmp_path, load_tiny):  # noqa: F811
    from transformers import AutoTokenizer

    from radargate.comparison.options import Comparison

    base = load_tiny()
    train, more = load_rows(str(tasks), "train", ["add"]), load_rows(str(tasks), "train")
    training = GateTraining(steps=2, batch_size=2, max_length=64).resolved()
    grid = Grid(
        base,
        AutoTokenizer.from_pretrained(zoo["llama"]["base"]),
        {"mole": dict(zip(("add", "even"), adapters, strict=True))},
        train,
        {},
        None,
        Comparison(training=training, union_lr=3e-3),
        {},
        tmp_path / "work",
        "cpu",
        union=more,
    )
    (cell,) = [
        c
        for c in all_cells(["add", "even"], gates=["radar"], rules=[], architectures=["mole"], seeds=4, union_steps=5)[
            0
        ]
        if c.system == "union LoRA" and c.seed == 3
    ]
    _, facts, note = train_union(cell, grid)
    options = ExpertOptions(
        steps=5, batch_size=2, max_length=64, lr=3e-3, seed=3, rank=4, alpha=16, target_modules=("q_proj", "v_proj")
    )
    expected = train_experts(load_tiny(), more, tmp_path / "same", options, union="union", device="cpu")["union"]
    made = tmp_path / "work" / "union" / "union"
    assert (made / FILE).read_bytes() == (expected / FILE).read_bytes()
    assert facts["rows_read"] == 10 and note == "10 rows read in 5 steps, of 96 there are"


def test_steps_that_cannot_be_are_refused():
    with pytest.raises(OptionError, match="union_steps is 0, expected at least 1"):
        all_cells(["a", "b"], gates=["radar"], rules=[], architectures=["mole"], seeds=1, union_steps=0)


def test_records_of_before_read_as_what_they_were_beside_new_ones():
    new = compare_records(gates=("radar", "stretch"), architectures=("mole",), missing=None)
    old = copy.deepcopy([r for r in new if r.get("cell", {}).get("system") == "union LoRA"])
    for record in old:
        record["cell"] |= {"label": "union LoRA", "id": "of before"}
        record["case"] = record["case"].replace("union LoRA on all rows", "union LoRA")
        if "rows" in record:
            record["rows"]["correct"] = [1] * len(record["rows"]["id"])
    before, now = "union LoRA on the gate's rows only", "union LoRA on all rows"
    systems = analyse([*new, *old]).results.systems
    assert {before, now} < set(systems) and "union LoRA" not in systems
    assert float(systems[before].seed_means("acc", TASKS)[0]) == 1.0 > float(systems[now].seed_means("acc", TASKS)[0])
    page = compare_page([*new, *old], reference="union LoRA")  # as it was called then
    assert "Every system minus union LoRA on the gate&#x27;s rows only" in page
    alone = [r for r in [*new, *old] if r.get("cell", {}).get("label") != now]
    assert before in analyse(alone).results.systems and now not in analyse(alone).results.systems
