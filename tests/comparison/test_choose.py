"""``radargate choose``: what can win is tried, the simplest of the best is taken, and any stop can go on."""

from __future__ import annotations

import json
import re
import shutil

import pytest

import radargate
from conftest import logged
from radargate.cli import main
from radargate.comparison.cells import Cell
from radargate.comparison.choosing import trials
from radargate.comparison.choosing.held_out import hold_out
from radargate.comparison.choosing.plan import SIZES, Plan, Round, plan_for, rounds_of
from radargate.comparison.choosing.run import choose
from radargate.comparison.choosing.trials import TRIES
from radargate.composition.verify import verify
from radargate.errors import DataError, OptionError
from radargate.io.records import read_records

ROUTED = "router=prompt router_start=select"
EXAMPLES = {"math": ["1+2=", "3+4="], "law": ["is 3 even?"], "code": ["def f"]}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("radargate.comparison.choosing.plan.SIZES", ((8, 4, 4),))


@pytest.fixture
def chosen(zoo, tasks):
    def make(out, **changes):
        how = {"batch_size": 4, "max_length": 64, "max_new_tokens": 2, "minutes": 60.0}
        tiny, more = zoo["llama"], {key: changes.pop(key) for key in ("examples", "resume") if key in changes}
        data = changes.pop("data", str(tasks))
        return choose(str(tiny["base"]), tiny["adapters"], data, out=out, device="cpu", **more, **how | changes)

    return make


def essence(out):
    """What a choice found, without what is another value every time."""
    records = read_records(out / "records.jsonl")
    scores = [(r["system"], r["task"], r["metrics"]["nll"], "cell" in r) for r in records if r["suite"] == "eval"]
    choice = json.loads((out / "record.json").read_text())["metrics"]
    return sorted(scores, key=str), {k: v for k, v in choice.items() if "seconds" not in k and k != "resumed"}


def test_the_taken_system_is_a_whole_bundle_with_records_and_page(chosen, tmp_path, zoo):
    out = tmp_path / "bundle"
    chosen(out)
    scores, choice = essence(out)
    tried = {system for system, _, _, cell in scores if cell}
    assert tried == {
        *("base", "expert: math", "expert: law", "expert: code", "uniform", "select", "select by=centroid"),
        *("cat", "stretch", f"stretch {ROUTED}", "radar", f"radar {ROUTED}"),
    }
    assert choice["taken"] in choice["level"] and choice["leader"] in choice["level"]
    reported = {system for system, _, _, cell in scores if not cell}
    assert {choice["taken"], choice["leader"], "base"} <= reported
    page = (out / "report.html").read_text()
    assert choice["taken"] in page and not (out / TRIES).exists()
    if choice["taken"] != "base":
        assert all(finding.ok for finding in verify(out))
        card = (out / "README.md").read_text()
        assert re.search(rf"## Scores\n\n\|.*\| {re.escape(choice['taken'])} \| \d\.\d+ \| \d\.\d+ to ", card, re.S)
        assert radargate.generate(str(out), ["1+1="], max_new_tokens=2)


def test_a_choice_stopped_anywhere_goes_on_to_the_same_end(chosen, tmp_path, monkeypatch):
    chosen(tmp_path / "whole")
    real, count = trials.run_cell, 0

    def stopping(*args, **kwargs):
        nonlocal count
        count += 1
        if count in (3, 12):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr("radargate.comparison.choosing.trials.run_cell", stopping)
    for again in (False, True):
        with pytest.raises(KeyboardInterrupt):
            chosen(tmp_path / "stopped", resume=again)
    chosen(tmp_path / "stopped", resume=True)
    assert essence(tmp_path / "stopped") == essence(tmp_path / "whole")
    whole = len([r for r in read_records(tmp_path / "whole" / "records.jsonl") if r["suite"] == "cell"])
    assert count == whole + 2  # the two that were stopped, and none twice
    with pytest.raises(radargate.RadarGateError, match="another options"):
        chosen(tmp_path / "stopped", resume=True, seed=3)


def test_a_choice_stopped_after_its_reports_trains_and_scores_nothing_again(chosen, tmp_path, monkeypatch):
    """Who goes on is decided by the round before, not by later records, least of all those of the test rows."""
    real = radargate.comparison.choosing.run._take
    monkeypatch.setattr("radargate.comparison.choosing.run._take", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        chosen(tmp_path / "b")
    before = read_records(tmp_path / "b" / "records.jsonl")
    monkeypatch.setattr("radargate.comparison.choosing.run._take", real)
    monkeypatch.setattr("radargate.comparison.choosing.trials.run_cell", None)
    chosen(tmp_path / "b", resume=True)
    after = read_records(tmp_path / "b" / "records.jsonl")
    assert after[: len(before)] == before and {r["suite"] for r in after[len(before) :]} <= {"train"}
    (tmp_path / "b" / "report.html").unlink()
    chosen(tmp_path / "b", resume=True)
    assert (tmp_path / "b" / "report.html").exists()


def test_a_system_that_cannot_work_is_left_out_and_said(chosen, tmp_path, monkeypatch):
    real = trials.run_cell

    def refusing(cell, grid):
        if cell.system in ("select", "cat"):
            raise OptionError("not with these adapters")
        return real(cell, grid)

    monkeypatch.setattr("radargate.comparison.choosing.trials.run_cell", refusing)
    chosen(tmp_path / "b")
    assert {s for s, _, _, _ in essence(tmp_path / "b")[0]} >= {"uniform", "stretch"}
    page = (tmp_path / "b" / "report.html").read_text()
    assert "cat: not with these adapters" in page and "select by=centroid: not with these adapters" in page


def test_a_test_row_that_is_too_long_is_said_before_anything_is_trained(chosen, tasks, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(tasks, folder)
    with open(folder / "add.test.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "9" * 600, "target": "9"}) + "\n")
    monkeypatch.setattr("radargate.comparison.choosing.trials.run_cell", None)
    with pytest.raises(DataError, match="512"):
        chosen(tmp_path / "b", data=str(folder))


def test_without_rows_nothing_but_select_can_be_asked_for(chosen, tmp_path):
    with pytest.raises(OptionError, match="without `data` only rule select can be built"):
        chosen(tmp_path / "b", data=None, examples=EXAMPLES, serve_as_one_lora=True)


def test_only_what_exports_as_one_lora_is_tried_where_that_is_asked(chosen, tmp_path):
    chosen(tmp_path / "b", serve_as_one_lora=True)
    tried = {system for system, _, _, cell in essence(tmp_path / "b")[0] if cell}
    assert {"uniform", "ties", "knots", "cat", "base"} <= tried and not tried & {"stretch", "radar", "select"}
    model = radargate.load(None, tmp_path / "b") if (tmp_path / "b" / "adapter_config.json").exists() else None
    if model is not None:
        radargate.export(model, tmp_path / "lora")


def test_the_union_lora_can_win_and_is_saved_whole(chosen, tmp_path, monkeypatch):
    monkeypatch.setattr("radargate.comparison.choosing.run.decide", _taking("union LoRA on all rows"))
    chosen(tmp_path / "b", union=True)
    assert essence(tmp_path / "b")[1]["taken"] == "union LoRA on all rows"
    assert all(finding.ok for finding in verify(tmp_path / "b"))


@pytest.mark.parametrize("label", ["base", "expert: law", "select", f"radar {ROUTED}"])
def test_whatever_is_taken_is_saved_so_that_it_can_be_used(chosen, tmp_path, monkeypatch, label):
    monkeypatch.setattr("radargate.comparison.choosing.run.decide", _taking(label))
    monkeypatch.setattr("radargate.comparison.choosing.candidates.GATES", ("radar:router=prompt,router_start=select",))
    out = tmp_path / "b"
    chosen(out)
    assert json.loads((out / "record.json").read_text())["metrics"]["taken"] == label
    assert (out / "adapter_config.json").exists() == (label != "base")
    if label != "base":
        config = json.loads((out / "adapter_config.json").read_text())
        assert not config["gate_only"] and (label != "expert: law" or config["experts"] == ["law"])
        assert radargate.generate(str(out), ["1+1="], max_new_tokens=2)


def _taking(label):
    """`decide`, with its choice set."""
    import dataclasses

    from radargate.comparison.choosing.decision import decide

    def deciding(records, order):
        found = decide(records, order)
        return dataclasses.replace(found, level=(label, *(one for one in found.level if one != label)))

    return deciding


def test_without_rows_examples_build_select_and_nothing_is_claimed(zoo, tmp_path, capsys):
    tiny = zoo["llama"]
    file = tmp_path / "examples.yaml"
    file.write_text(json.dumps({name: texts for name, texts in EXAMPLES.items() if name != "code"}))
    words = [f"{name}={path}" for name, path in tiny["adapters"].items()]
    out = tmp_path / "b"
    words += ["--examples", str(file), "--example", "code=def f", "--out", str(out), "--device", "cpu"]
    assert main(["choose", str(tiny["base"]), *words]) == 0
    printed = capsys.readouterr().out
    assert "Nothing was measured" in printed and "500 tell more" in printed
    model = radargate.load(None, out)
    direct = radargate.compose(str(tiny["base"]), tiny["adapters"], gate="select", examples=EXAMPLES)
    for (name, one), (_, other) in zip(model.state_dict().items(), direct.state_dict().items(), strict=True):
        assert one.equal(other), name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": None}, "nothing to choose by"),
        ({"data": None, "examples": {"math": ["1+2="], "law": ["x"]}}, "has no prompt for expert 'code'"),
        ({"data": None, "examples": {**EXAMPLES, "cod": ["y"]}}, "names 'cod', which is no expert"),
        ({"data": None, "examples": {**EXAMPLES, "law": EXAMPLES["code"]}}, "have the same example prompts"),
    ],
)
def test_what_cannot_be_chosen_by_is_one_line_before_a_model_is_loaded(chosen, tmp_path, monkeypatch, given, said):
    for module in ("run", "trials"):
        monkeypatch.setattr(f"radargate.comparison.choosing.{module}.load_for", None)
    with pytest.raises(OptionError, match=said):
        chosen(tmp_path / "b", **given)
    assert not (tmp_path / "b" / "run.json").exists()


def test_a_file_is_parted_by_prompts_and_one_too_small_is_refused(tmp_path):
    rows = [{"prompt": f"{i % 30}+1=", "target": str(i % 30 + 1), "task": "add"} for i in range(60)]
    rows += [{"prompt": f"{i}?", "target": "yes", "task": "few"} for i in range(5)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = []
    with logged(lines.append):
        held = hold_out(str(file))
    prompts = [{row.prompt for rows in s.values() for row in rows} for s in (held.fit, held.validation, held.test)]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]
    assert set(held.fit) == {"add", "few"} and set(held.validation) == set(held.test) == {"add"}
    assert [len(s["add"]) for s in (held.validation, held.test)] == [12, 12] and len(held.fit["add"]) == 36
    assert any(line.startswith("few: too few different prompts") for line in lines)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[-5:]))
    with pytest.raises(DataError, match="0 rows can be held out to choose by, expected at least 10"):
        hold_out(str(file))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:29]))  # with so few nothing could be significant
    with pytest.raises(DataError, match="6 rows can be held out"):
        hold_out(str(file))


@pytest.mark.parametrize("sizes", [(50,), (17, 17, 16), (13, 13, 12, 12), (7, 7, 6, 6, 6, 6, 6, 6)])
def test_fifty_rows_are_enough_however_they_are_shared_among_tasks(tmp_path, sizes):
    rows = [{"prompt": f"{t}: {i}?", "target": "yes", "task": f"t{t}"} for t, n in enumerate(sizes) for i in range(n)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = hold_out(str(tmp_path / "rows.jsonl"))
    assert len(held.validation) == len(held.test) == len(sizes)
    assert sum(map(len, held.validation.values())) >= 10 and all(held.fit.values())


def test_what_a_row_asks_is_its_prompt_and_its_choices_and_examples_are_no_longer_unseen(tmp_path):
    pairs = [
        {"prompt": "Which is right?", "choices": [f"{i}", f"{i + 1}"], "answer_index": 0, "target": f"{i}"}
        for i in range(60)
    ]
    adds = [{"prompt": f"{i}+1=", "target": str(i + 1)} for i in range(60)]
    for name, rows in (("pairs", pairs), ("adds", adds)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = hold_out(str(tmp_path / "pairs.jsonl"))
    assert len(held.validation["pairs"]) == len(held.test["pairs"]) == 12
    first = hold_out(str(tmp_path / "adds.jsonl"))
    known = [row.prompt for row in (*first.validation["adds"][:2], *first.test["adds"][:2])]
    second = hold_out(str(tmp_path / "adds.jsonl"), None, known)
    assert not {row.prompt for s in (second.validation, second.test) for row in s["adds"]} & set(known)


def test_splits_of_a_folder_are_kept_and_what_was_seen_is_left_out(tasks, tmp_path):
    held = hold_out(str(tasks))  # whose rows of validation are all among those of test
    for task in ("add", "even"):
        fit, validation, test = ({row.prompt for row in s[task]} for s in (held.fit, held.validation, held.test))
        assert [len(fit), len(validation), len(test)] == [22 + 6, 8, 12]
        assert len(fit | validation | test) == 48


def cells(count):
    return [Cell("base", "base", "base"), *(Cell(f"g{i}", "gate", f"g{i}", "mole", 0) for i in range(count))]


def test_the_largest_plan_that_fits_is_taken_and_the_dearest_systems_go_first(monkeypatch):
    monkeypatch.setattr("radargate.comparison.choosing.plan.SIZES", SIZES)

    def plan(seconds):
        return plan_for(cells(4), seconds, lambda cell, steps, rows: steps + rows, lambda rows: rows)

    whole = plan(1e9)
    assert (whole.rounds[-1].steps, whole.validation, whole.test) == SIZES[0] and not whole.left_out
    assert [r.kept for r in whole.rounds] == [4, 2, 1]
    for seconds in (1e9, 1200.0, 400.0, 200.0, 120.0):
        found = plan(seconds)
        assert found.seconds <= seconds and Plan.of(json.loads(json.dumps(found.record()))) == found
    short = plan(90.0)
    assert short.left_out == ("g2", "g3") or short.left_out[-1] == "g3"
    assert plan(45.0).rounds == () and rounds_of(1, 16) == (Round(1, 16),)
    with pytest.raises(OptionError, match="Give more `minutes`, or fewer adapters or tasks"):
        plan(1.0)
