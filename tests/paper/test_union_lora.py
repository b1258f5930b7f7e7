"""The union LoRA in experiments: which rows it sees and how many, for how long, and where cells are the same."""

from __future__ import annotations

import dataclasses
import json

import pytest

from radargate.cli import main
from radargate.io.records import read_records
from radargate.paper.catalog import EXPERIMENTS
from radargate.paper.expert_store import ExpertStore
from radargate.paper.findings import read_findings
from radargate.paper.planning import plan_places
from radargate.paper.points import load_material, points, train_rows, union_rows
from radargate.paper.predict import Rates
from test_experiment import cells, command, compared, sources  # noqa: F401

ALL, TIME = "union LoRA on all rows", "union LoRA in equal time"


def planned(name, sources, given=None, **changes):  # noqa: F811
    experiment = EXPERIMENTS.get(name)
    design = dataclasses.replace(experiment.plan("cpu", smoke=True), bases=("tiny",), **changes)
    material = load_material(str(sources), design)
    store = ExpertStore(sources / "no experts yet", given, design.recipe, material)
    return plan_places(experiment, design, material, store, "cpu")[0], design, material


@pytest.mark.parametrize("name", EXPERIMENTS.names())
def test_every_experiment_has_it_with_the_seeds_of_its_gates(sources, name):  # noqa: F811
    places, *_ = planned(name, sources, seeds=2)
    for point in dict.fromkeys(place.point for place in places):
        seeds = [p.cell.seed for p in places if p.point == point and p.cell.label == ALL]
        assert seeds == [0, 1]
        gates = {p.cell.seed for p in places if p.point == point and p.cell.kind == "gate"}
        assert gates == {0, 1}
        assert not any(p.cell.label == TIME for p in places)


def test_it_sees_the_rows_of_a_growing_bank_and_as_many(sources):  # noqa: F811
    places, design, material = planned("modules", sources)
    found = {len(p.point.experts): p for p in places if p.cell.label == ALL}
    for size, place in found.items():
        rows = (
            size * design.recipe.steps * design.recipe.batch_size + design.training.steps * design.training.batch_size
        )
        assert place.cell.options["steps"] * design.training.batch_size == rows
        assert union_rows(place.point, material) == {task: material.train[task] for task in place.point.experts}
    assert found[2].id != found[3].id and len(found[2].point.learned) == 2


def test_fewer_rows_for_the_gates_leave_it_as_it_is(sources):  # noqa: F811
    places, _, _ = planned("samples", sources)
    mine, gates = ([p for p in places if p.cell.label == label] for label in (ALL, "radar (mole)"))
    assert len(mine) == len(gates) == 2 and len({p.id for p in mine}) == 1 and len({p.id for p in gates}) == 2


def test_it_sees_the_rows_of_a_task_whose_expert_is_left_out_as_the_gates_do(sources):  # noqa: F811
    places, _, material = planned("hull", sources)
    for place in places:
        if place.cell.label == ALL:
            assert set(union_rows(place.point, material)) == {*place.point.experts, place.point.left_out}


def test_equal_time_is_the_predicted_time_of_all_experts_and_the_slowest_gate(sources):  # noqa: F811
    places, design, material = planned("ablation", sources, union_equal_time=True, architectures=("mole", "omoe"))
    (point,) = points(design, material)
    rates, train, union = Rates("tiny", "cpu"), train_rows(point, material), union_rows(point, material)
    experts = sum(rates.expert(material.train[task], design) for task in point.experts)

    def training(cell, rows):  # scoring costs nothing where there is nothing to score
        idle = rates.cell(dataclasses.replace(cell, seed=None), 2, 2, rows, {}, design)
        return rates.cell(cell, 2, 2, rows, {}, design) - idle

    gates = {p.cell.label: training(p.cell, train) for p in places if p.cell.kind == "gate"}
    assert max(gates, key=gates.get).endswith("(omoe)")
    (mine,) = (p.cell for p in places if p.cell.label == TIME)
    one = training(dataclasses.replace(mine, options={"steps": 1}), union)
    assert abs(training(mine, union) - (experts + max(gates.values()))) <= one / 2
    (other,) = (p.cell for p in places if p.cell.label == ALL)
    assert mine.options["steps"] > other.options["steps"], "a gate's step takes longer than a LoRA's"
    for device in ("cpu", "cuda"):
        again = Rates("tiny", device).equal_time_steps(
            [p.cell for p in places if p.cell.kind == "gate"],
            dict.fromkeys(point.experts, design.recipe.steps * design.recipe.batch_size),
            point.top_k,
            train,
            union,
            design,
        )
        assert again == mine.options["steps"]


def test_given_experts_say_how_many_rows_they_saw(sources, tmp_path, zoo):  # noqa: F811
    import shutil

    for task, adapter in zip(("aqua", "creak"), zoo["llama"]["adapters"].values(), strict=False):
        shutil.copytree(adapter, tmp_path / task)
    (tmp_path / "aqua" / "options.json").write_text(json.dumps({"steps": 7, "batch_size": 8}))
    places, design, _ = planned("ablation", sources, given=tmp_path)
    (mine,) = {p.cell.options["steps"] for p in places if p.cell.label == ALL}
    assert mine == 7 * 8 // 4 + design.recipe.steps + design.training.steps


def test_it_is_trained_and_reported_for_equal_time_where_asked(zoo, sources, tmp_path):  # noqa: F811
    out = tmp_path / "time"
    assert main(command("ablation", zoo, sources, out, "--gates", "stretch", "--union-equal-time")) == 0
    found = {c["cell"]["label"]: c for c in cells(out).values() if c["cell"]["system"] == "union LoRA"}
    assert set(found) == {ALL, TIME}
    assert found[ALL]["metrics"]["rows_read"] == (2 * 10 + 2) * 4  # two experts of ten steps, two steps of a gate
    assert found[TIME]["metrics"]["rows_read"] == found[TIME]["options"]["steps"] * 4
    assert all(cell["metrics"]["train_seconds"] > 0 for cell in found.values())
    page = (out / "report.md").read_text()
    assert f"{ALL}: 88 rows read in 22 steps, of 24 there are" in page and f"{TIME}: " in page
    assert read_records(out / "records.jsonl")[0]["design"]["union_equal_time"] is True


def test_an_experiments_records_of_before_read_as_what_they_were():
    found = read_findings(compared({None: {"union LoRA": {"sums": 10}, "radar (mole)": {"sums": 30}}}))
    before = "union LoRA on the gate's rows only"
    assert found.systems() == [before, "radar (mole)"]
    assert found.lead["acc"][0].second == before
