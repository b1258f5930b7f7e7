"""Prompts without the text that a task's prompts share, and with that text in other words: what is changed, and what hashes it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from radargate.cli import main
from radargate.data.prompts import Conversation
from radargate.data.rows import Row
from radargate.errors import DataError, OptionError
from radargate.paper.catalog import EXPERIMENTS
from radargate.paper.expert_store import ExpertStore
from radargate.paper.paraphrases import PARAPHRASES
from radargate.paper.planning import plan_places
from radargate.paper.points import base_identity, load_material, points
from radargate.paper.prompts import in_form, shared_text
from test_experiment import cells, command, sources  # noqa: F401


def rows(task, *prompts):
    return {task: [Row(prompt, "yes", task=task) for prompt in prompts]}


def prompts(by_task):
    return [row.prompt for found in by_task.values() for row in found]


@pytest.mark.parametrize(
    ("texts", "shared"),
    [
        (['Say: "red fish"\nEnd.', 'Say: "blue"\nEnd.'], ('Say: "', '"\nEnd.')),
        (["Is it warm today", "Is it wet away"], ("Is it ", "")),  # neither "w" nor "ay" is a word
        (["Number 12 here", "Number 15 here"], ("Number ", " here")),
        (["Is it", "Is it, now"], ("Is it", "")),
        (["one", "two"], ("", "")),
    ],
)
def test_what_prompts_share_ends_at_borders_of_words(texts, shared):
    assert shared_text(texts) == shared


def test_test_rows_lose_what_the_training_rows_share():
    train = rows("a", "Do this: x 1 Answer:", "Do this: y 2 Answer:")
    test = rows("a", "Do this: x 3 Answer:", "Do this: x 4 Answer:", "Nothing of it")
    train, test, notes = in_form("cut", train, test)
    assert prompts(train) == ["x 1", "y 2"] and prompts(test) == ["x 3", "x 4", "Nothing of it"]
    assert notes == ["prompts of a that lack the text shared by its training rows stay as they are"]


def test_other_paraphrases_stand_in_test_rows_than_in_training_rows_and_a_row_keeps_its_own():
    given = [f'Review: "{i} and {i}"\nGood or bad?' for i in range(80)]
    train, test = rows("sst2", *given[:40]), rows("sst2", *given[40:])
    first, second, notes = in_form("paraphrased", train, test)
    assert not notes and all(f"{i} and {i}" in text for i, text in enumerate(prompts(first) + prompts(second)))

    def ways(texts, start):
        return {text.replace(f"{i} and {i}", "{}") for i, text in enumerate(texts, start)}

    assert ways(prompts(first), 0) == set(PARAPHRASES["sst2"][:5])
    assert ways(prompts(second), 40) == set(PARAPHRASES["sst2"][5:])
    fewer = in_form("paraphrased", {"sst2": train["sst2"][::-3]}, test)[0]
    assert prompts(fewer) == prompts(first)[::-3]  # whatever stands around it


def test_every_task_has_ten_wordings_that_differ_and_say_every_label_where_there_are_labels():
    labels = {"sst2": {"negative", "positive"}, "task109": {"spam", "ham"}}
    labels |= dict.fromkeys(("task512", "task875"), frozenset({"joy", "love", "anger", "fear", "sadness", "surprise"}))
    names = {name.rpartition("/")[2] for name in EXPERIMENTS.get("routed").design["named"]}
    assert set(PARAPHRASES) == names
    for task, ways in PARAPHRASES.items():
        assert len(set(ways)) == 10 and all(way.count("{}") == 1 for way in ways)
        assert all(label in way.lower() for way in ways for label in labels.get(task.split("_")[0], ()))


@pytest.mark.parametrize("form", ["cut", "paraphrased"])
def test_prompts_that_have_nothing_of_their_own_or_several_turns_are_refused(form):
    same = rows("sst2", "Is it good?", "Is it good? Yes, it is")
    with pytest.raises(
        DataError, match=r"sst2: found a prompt that is nothing but what all of them share, 'Is it good\?'"
    ):
        in_form(form, same, {})
    turns = Conversation([{"role": "user", "content": "hello"}], "rows.jsonl, line 1")
    with pytest.raises(DataError, match="line 1: found a conversation"):
        in_form(form, rows("sst2", turns, turns), {})
    with pytest.raises(OptionError, match="prompts is 'cutt', expected one of: as given, cut, paraphrased"):
        in_form("cutt", {}, {})


def planned(name, sources, tmp_path, **changes):  # noqa: F811
    """Ids of an experiment's cells by label, and where the experts of its first point lie."""
    experiment = EXPERIMENTS.get(name)
    design = experiment.plan("cpu", smoke=True, bases=("tiny",))
    design = dataclasses.replace(design, **changes)
    material = load_material(str(sources), design)
    store = ExpertStore(tmp_path, None, design.recipe, material)
    places, _ = plan_places(experiment, design, material, store, "cpu")
    point = points(design, material)[0]
    return {p.cell.label: p.id for p in places}, store._folder("tiny", base_identity("tiny"), point.experts, "mole")


def test_cells_and_experts_of_other_prompts_are_other_cells_and_experts(sources, tmp_path):  # noqa: F811
    gates = ("stretch",)
    plain, folder = planned("routed", sources, tmp_path, gates=gates)
    again, same = planned("routed-cut", sources, tmp_path, gates=gates, prompts="as given", rules=("select",))
    cut, other = planned("routed-cut", sources, tmp_path, gates=gates)
    assert folder == same != other
    assert {label: plain[label] for label in again if label in plain} == {
        label: again[label] for label in again if label in plain
    }
    assert {"select (mole)", "stretch (mole)", "base"} <= set(plain) & set(cut)
    assert not set(plain.values()) & set(cut.values())


def test_a_selecting_rule_knows_the_rows_of_experts_that_no_gate_learns_from(zoo, sources, tmp_path):  # noqa: F811
    """Its id hashes them, and nothing else's does: experts that are given say nothing of rows."""
    given = {"named": ("flan_cot/esnli", "flan_cot/creak"), "others": "natural_instructions", "experts": (3,)}
    before, _ = planned("crowded", sources, tmp_path, **given)
    other = tmp_path / "other"
    for source in ("flan_cot", "natural_instructions"):
        (other / source).mkdir(parents=True)
        for file in (sources / source).iterdir():
            text = (
                file.read_text().replace("aqua a3?", "aqua three?")
                if file.name.startswith("aqua.train")
                else file.read_text()
            )
            (other / source / file.name).write_text(text)

    class Same(ExpertStore):
        def hashes(self, base, tasks, architecture):
            return dict.fromkeys(tasks, "given")

    def ids(data):
        experiment = EXPERIMENTS.get("crowded")
        design = dataclasses.replace(experiment.plan("cpu", smoke=True, bases=("tiny",)), **given)
        material = load_material(str(data), design)
        places, _ = plan_places(experiment, design, material, Same(tmp_path, None, design.recipe, material), "cpu")
        return {p.cell.label: p.id for p in places}

    first, second = ids(sources), ids(other)
    assert {label for label in first if first[label] != second[label]} == {
        "select (mole)",
        "select by=centroid (mole)",
        "select features=hidden (mole)",
        "union LoRA on all rows",  # which learns from them too
    }
    assert set(first) == set(before)


def test_the_report_says_which_prompts_were_read_and_which_tasks_kept_theirs(zoo, sources, tmp_path):  # noqa: F811
    out = tmp_path / "routed-paraphrased"
    assert main(command("routed-paraphrased", zoo, sources, out, "--gates", "stretch")) == 0
    page = (out / "report.md").read_text()
    assert "each task put in ten ways" in page and "aqua has no paraphrases and keeps its prompts" in page
    assert {r["cell"]["label"] for r in cells(out).values()} >= {"select (mole)", "select by=centroid (mole)"}
    plan = json.loads((out / "records.jsonl").read_text().splitlines()[0])
    assert plan["design"]["prompts"] == "paraphrased"
