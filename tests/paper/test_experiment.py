"""``radargate experiment`` end to end on a tiny model: every experiment, stopped and resumed, refused where it cannot work."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from radargate.cli import main
from radargate.comparison.ranking import standings
from radargate.errors import DataError
from radargate.evaluation.metrics import row_values
from radargate.io.records import append_records, make_record, read_records
from radargate.paper.catalog import EXPERIMENTS
from radargate.paper.design import PRESETS
from radargate.paper.findings import read_findings
from radargate.paper.page import make_parts, write_report
from radargate.paper.points import base_identity, cells_of, load_material, points
from radargate.paper.simplex import simplex_weights

TASKS = ("aqua", "creak", "esnli")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder of sources: three learned tasks in two of them, and others with test rows only."""
    root = tmp_path_factory.mktemp("sources")
    names = {"flan_cot": TASKS, "natural_instructions": TASKS, "glue": ("rte", "qqp"), "math": ("gsm8k",)}
    for source, tasks in names.items():
        (root / source).mkdir()
        for place, task in enumerate(tasks):
            for split, count in (
                (("train", 12), ("validation", 6), ("test", 6))
                if source in ("flan_cot", "natural_instructions")
                else (("test", 6),)
            ):
                rows = [
                    {
                        "prompt": f"{task} {task[i % 3]}{i}?" + "." * place,
                        "target": ("yes", "no")[(i + place) % 2],
                        "choices": ["yes", "no"],
                        "answer_index": (i + place) % 2,
                    }
                    for i in range(count)
                ]
                (root / source / f"{task}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def command(name, zoo, sources, out, *words, base="llama"):
    return [
        "experiment",
        name,
        "--smoke",
        "--base",
        str(zoo[base]["base"]),
        "--data",
        str(sources),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--steps",
        "2",
        "--limit",
        "3",
        *words,
    ]


def cells(out):
    return {r["case"]: r for r in read_records(out / "records.jsonl") if r["suite"] == "cell"}


@pytest.mark.parametrize("name", EXPERIMENTS.names())
def test_every_experiment_runs_and_its_report_comes_from_its_records(zoo, sources, tmp_path, capsys, name):
    out = tmp_path / name
    base = "t5" if name == "model-size" else "llama"
    words = (
        []
        if name == "ablation" or name.startswith("routed")
        else ["--gates", "rotation,radar" if name == "angles" else "stretch,radar"]
    )
    assert main(command(name, zoo, sources, out, *words, base=base)) == 0
    shown = capsys.readouterr()
    assert "predicted" in shown.err and "cells finished (preset cpu, shrunk to a smoke run" in shown.out
    page = (out / "report.md").read_text()
    assert (out / "figure-1.svg").exists() and "](figure-1.svg)" in page and "No figure" not in page
    plan = next(r for r in read_records(out / "records.jsonl") if r["suite"] == "experiment")
    assert {place["id"] for place in plan["plan"]} == set(cells(out))
    if name != "hull":
        assert not any(place["at"]["leave_one_out"] for place in plan["plan"])
    (out / "report.md").unlink()
    write_report(read_records(out / "records.jsonl"), out)
    assert (out / "report.md").read_text() == page


def test_a_router_has_no_text_where_single_tokens_are_looked_at(zoo, sources, tmp_path, capsys):
    out = tmp_path / "angles"
    assert main(command("angles", zoo, sources, out, "--gates", "radar:router=text")) == 1
    assert "needs the whole text" in capsys.readouterr().err and not (out / "records.jsonl").exists()


def test_a_stopped_experiment_goes_on_and_recomputes_nothing(zoo, sources, tmp_path, monkeypatch, capsys):
    out, ran = tmp_path / "stopped", []
    from radargate.paper import workshop as module

    run = module.run_cell

    def counted(cell, grid, cell_id):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell_id)
        return run(cell, grid, cell_id)

    words = command("modules", zoo, sources, out, "--gates", "stretch")
    monkeypatch.setattr(module, "run_cell", counted)
    assert main(words) == 130
    before = cells(out)
    experts = {file: file.stat().st_mtime_ns for file in (out / "experts").rglob("*.safetensors")}
    assert len(before) == 2 and len(experts) >= 2
    monkeypatch.setattr(module, "run_cell", run)
    assert main(words) == 1 and "--resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    after = cells(out)
    assert len(after) == 7  # base and two experts once, the union LoRA and stretch for each bank
    assert all(after[case] == record for case, record in before.items())
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in experts.items())
    monkeypatch.setattr(module, "load_base", None)  # nothing is left to load a model for
    assert main([*words, "--resume"]) == 0 and cells(out) == after
    assert (
        main(command("samples", zoo, sources, out)) == 1 and "holds the experiment modules" in capsys.readouterr().err
    )


def test_without_data_an_experiment_runs_on_the_built_in_tasks(zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "experiment",
        "ablation",
        "--preset",
        "cpu",
        "--smoke",
        "--base",
        str(zoo["llama"]["base"]),
        "--device",
        "cpu",
    ]
    assert main([*words, "--steps", "2", "--limit", "3", "--gates", "stretch,radar"]) == 0
    assert "cells finished (preset cpu, shrunk to a smoke run" in capsys.readouterr().out
    page = (tmp_path / "runs" / "ablation" / "report.md").read_text()
    assert "oracle" in page and "parameters trained" in page and "expert: " not in page


def test_named_tasks_are_learned_where_the_data_have_them_and_gates_may_have_rates_of_their_own(zoo, sources, tmp_path):
    design = EXPERIMENTS.get("ablation").plan("cpu", smoke=True)
    named = dataclasses.replace(
        design,
        named=("flan_cot/esnli", "natural_instructions/creak"),
        rates=("radar:lr=0.02,rotation_lr=0.05",),
        gates=("stretch", "radar"),
    )
    material = load_material(str(sources), named)
    assert set(material.train) == set(material.test) == {"esnli", "creak"}
    (point,) = points(named, material)
    trained = {cell.label: cell.training for cell in cells_of(point, named)[0] if cell.kind == "gate"}
    assert trained == {"stretch (mole)": {}, "radar (mole)": {"lr": 0.02, "rotation_lr": 0.05}}
    # data that lack a named source are taken as they are
    assert set(load_material(str(sources / "flan_cot"), named).train) == set(TASKS)
    missing = dataclasses.replace(named, named=("flan_cot/nowhere",))
    with pytest.raises(DataError, match="no task 'nowhere'"):
        load_material(str(sources), missing)


def test_a_bank_grows_by_experts_of_other_tasks_that_nothing_learns(sources):
    # the source of the others names aqua's rows as quickest, and they must not push a learned task out
    design = dataclasses.replace(
        EXPERIMENTS.get("crowded").plan("cpu", smoke=True),
        experts=(2, 3),
        named=("flan_cot/esnli", "flan_cot/creak"),
        others="natural_instructions",
    )
    material = load_material(str(sources), design)
    assert list(material.train) == ["creak", "esnli", "aqua"] and list(material.test) == ["creak", "esnli"]
    alone, crowded = points(design, material)
    assert alone.experts == alone.learned == crowded.learned == ("creak", "esnli")
    assert crowded.experts == ("creak", "esnli", "aqua")
    with pytest.raises(DataError, match="has 3 tasks with training rows, expected at least 4"):
        load_material(str(sources), dataclasses.replace(design, experts=(2, 4)))


def test_tasks_count_where_their_own_expert_beats_the_base():
    right = {
        "base": {"learnt": 0, "chance": 20},
        "expert: learnt": {"learnt": 40, "chance": 20},
        "expert: chance": {"learnt": 0, "chance": 20},
        "radar (mole)": {"learnt": 30, "chance": 20},
        "stretch (mole)": {"learnt": 10, "chance": 20},
    }
    found = read_findings(compared({None: right}))
    assert found.counting(None, "acc") == ["learnt"]
    (test,) = found.where_it_counts["acc"]
    assert (test.first, test.second) == ("radar (mole)", "stretch (mole)")
    assert test.difference == pytest.approx(0.5)
    helps = next(table for table in make_parts(found).summary if table.name == "experts_help")
    assert helps.texts()[0] == ["accuracy", "1 of 2", "1.000", "0.750", "0.75", "learnt"]
    assert found.lead["acc"][0].first == "radar (mole)"  # the oracle has to be told the task
    assert "oracle" in found.systems() and not any(label.startswith("expert: ") for label in found.systems())


def compared(right, axis=None, **columns):
    """Records of an experiment: place on the axis → label → task → how many of its 40 rows are right."""
    plan, records = [], []
    for place, systems in right.items():
        for label, tasks in systems.items():
            kind = "gate" if "mole" in label else label.partition(":")[0]
            name = label.removeprefix("expert: ").removesuffix(" (mole)")
            cell = {
                "id": f"{label} {place}",
                "system": name,
                "kind": kind,
                "architecture": "mole" if kind == "gate" else None,
                "label": label,
                "seed": 0 if kind == "gate" else None,
            }
            plan.append({**cell, "at": {"experts": place, "leave_one_out": None, "train_rows": 1}})
            for task, count in tasks.items():
                rows = {
                    "id": list(range(40)),
                    "correct": [int(i < count) for i in range(40)],
                    "nll_sum": [1.0] * 40,
                    "tokens": [1] * 40,
                    **columns.get(task, {}),
                }
                records.append(
                    make_record("eval", f"{label}/{task}", {}, cell=cell, task=task, system=label, rows=rows)
                )
            records.append(make_record("cell", cell["id"], {"trained_parameters": 1}, cell=cell, options={}))
    design = {"seeds": 1, "limit": 40, "steps": 1, "batch_size": 1, "expert_steps": 1}
    return [
        make_record(
            "experiment",
            "ablation",
            {},
            plan=plan,
            axis=axis,
            layout="axis" if axis else "tasks",
            preset="cpu",
            smoke=False,
            design=design,
            question="?",
            paper="",
            left_out=[],
        ),
        *records,
    ]


def test_translations_count_by_chrf_and_nll_and_not_by_accuracy():
    right = {None: {"base": {"sums": 10, "wmt14": 0}, "radar (mole)": {"sums": 30, "wmt14": 0}}}
    (grid,) = read_findings(compared(right, wmt14={"chrf": [25.0] * 40})).by_value.values()
    assert (grid.tasks_of("acc"), grid.tasks_of("chrf"), grid.tasks_of("nll")) == (
        ("sums",),
        ("wmt14",),
        ("sums", "wmt14"),
    )
    assert {s.label: s.value for s in standings(grid, "acc")} == {"base": 0.25, "radar (mole)": 0.75}
    assert standings(grid, "chrf")[0].value == 25.0


def test_what_more_experts_do_to_radar_is_held_against_what_they_do_to_others():
    right = {
        5: {"radar (mole)": {"a": 30}, "stretch (mole)": {"a": 30}},
        40: {"radar (mole)": {"a": 25}, "stretch (mole)": {"a": 15}},
    }
    found = read_findings(compared(right, "experts"))
    assert [t.difference for t in found.change["acc"]] == pytest.approx([-0.125, -0.375])
    (test,) = found.resists["acc"]
    assert test.difference == pytest.approx(0.25) and test.better == "radar (mole)"
    resists = next(table for table in make_parts(found).tables if table.name == "resists")
    assert resists.texts()[0][:3] == ["radar (mole) − stretch (mole)", "accuracy", "+0.250"]


def test_cells_of_one_experiment_serve_another(zoo, sources, tmp_path, monkeypatch, capsys):
    from radargate.paper import workshop as module

    first, second = tmp_path / "modules", tmp_path / "convergence"
    assert main(command("modules", zoo, sources, first, "--gates", "stretch")) == 0
    monkeypatch.setattr(module, "load_base", None)  # all is there, so nothing is left to load a model for
    words = command("convergence", zoo, sources, second, "--gates", "stretch")
    assert main([*words, "--reuse", str(tmp_path)]) == 1 and "found no records.jsonl" in capsys.readouterr().err
    other = tmp_path / "of another command"
    append_records(other / "records.jsonl", [make_record("eval", "radar", {})])
    assert main([*words, "--reuse", str(other), "--dry-run"]) == 0 and "(0 finished before)" in capsys.readouterr().err
    into = command("ablation", zoo, sources, other, "--gates", "stretch,radar", "--resume")
    assert main(into) == 1 and "holds records of another command" in capsys.readouterr().err
    assert len(read_records(other / "records.jsonl")) == 1
    assert not second.exists()
    assert main([*words, "--reuse", str(first)]) == 0
    assert cells(second) == cells(first) and "](figure-1.svg)" in (second / "report.md").read_text()


def test_a_gate_that_rotates_is_scored_again_with_its_rotation_off(zoo, sources, tmp_path):
    first, second = tmp_path / "ablation", tmp_path / "fitting"
    assert main(command("ablation", zoo, sources, first, "--gates", "stretch,radar")) == 0
    records = read_records(first / "records.jsonl")
    (cell,) = (r for r in records if r["suite"] == "cell" and r["cell"]["label"] == "radar (mole)")
    labels = [r["cell"]["label"] for r in records if r.get("cell", {}).get("id") == cell["case"]]
    assert labels == ["radar (mole)"] * 3 + ["radar with Q = 0 (mole)"] * 3 + ["radar (mole)"]  # its own record is last
    assert not any("stretch with" in r["case"] for r in records)
    (results,) = read_findings(records).by_value.values()
    turned, unturned = (results.systems[label] for label in ("radar (mole)", "radar with Q = 0 (mole)"))
    assert any(not np.array_equal(turned.rows["nll"][task], unturned.rows["nll"][task]) for task in results.tasks)
    assert "| radar (mole) − radar with Q = 0 (mole) |" in (first / "report.md").read_text()
    words = command("fitting", zoo, sources, second, "--gates", "stretch,radar", "--reuse", str(first))
    assert main(words) == 0  # cells that are taken over bring both
    there = [r for r in read_records(second / "records.jsonl") if r.get("cell", {}).get("id") == cell["case"]]
    assert [r["cell"]["label"] for r in there] == labels


def test_tables_show_the_records_numbers(zoo, sources, tmp_path):
    out = tmp_path / "numbers"
    assert main(command("fitting", zoo, sources, out, "--gates", "stretch", "--seeds", "2", "--json")) == 0
    records = read_records(out / "records.jsonl")
    plan = [p for p in next(r for r in records if r["suite"] == "experiment")["plan"] if p["label"] == "stretch (mole)"]
    with open(out / "csv" / "tasks_nll.csv") as file:
        row = next(row for row in csv.DictReader(file) if row["system"] == "stretch (mole)")
    evals = [
        r
        for r in records
        if r["suite"] == "eval" and r["task"] == "aqua" and r["cell"]["id"] in {p["id"] for p in plan}
    ]
    assert len(evals) == 2
    assert float(row["aqua"]) == pytest.approx(np.mean([row_values(r, "nll") for r in evals]), abs=1e-12)
    assert row["seeds"] == "2" and f"{float(row['mean']):.3f}" in (out / "report.md").read_text()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["ablation", "samples", "generalization", "hull"])
def test_a_dry_run_prints_cells_and_hours_and_loads_no_model(sources, tmp_path, monkeypatch, capsys, name, preset):
    from radargate.paper import workshop as module

    monkeypatch.setattr(module, "load_base", None)
    words = ["--data", str(sources), "--out", str(tmp_path / "dry"), "--dry-run", "--device", "cpu", "--smoke"]
    assert main(["experiment", name, "--preset", preset, *words]) == 0
    shown = capsys.readouterr().err
    assert "hours" in shown and "radar (mole)" in shown and "experts to train" in shown
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    "words,message",
    [
        (["ablatoin"], "Did you mean 'ablation'"),
        (["ablation", "--preset", "cpus"], "Did you mean 'cpu'"),
        (["ablation", "--smoke", "--top-k", "5"], "top_k is 5, expected 1 to 2"),
        (["ablation", "--smoke", "--gates", "radr"], "Did you mean 'radar'"),
        (["ablation", "--smoke", "--top-k", "1", "--top-k", "2"], "ablation has one value of top_k"),
        (["modules"], "has 3 tasks with training rows, expected at least 40"),
        (["ablation", "--smoke", "--experts", "nowhere"], "no adapter for"),
        (["model-size", "--experts", "nowhere"], "name one with --base"),
    ],
)
def test_what_cannot_work_is_said_before_a_model_is_loaded(sources, tmp_path, capsys, words, message):
    base = [] if words[0] == "model-size" else ["--base", "no/such-model"]
    assert (
        main(["experiment", *words, *base, "--data", str(sources), "--out", str(tmp_path / "x"), "--device", "cpu"])
        == 1
    )
    assert message in capsys.readouterr().err


def test_data_without_the_sources_is_refused(sources, tmp_path, capsys):
    words = ["--smoke", "--base", "no/such-model", "--out", str(tmp_path / "x"), "--device", "cpu"]
    assert main(["experiment", "generalization", *words, "--data", str(sources / "flan_cot")]) == 1
    assert "tests on benchmarks that nothing was trained on" in capsys.readouterr().err
    assert main(["experiment", "ablation", *words, "--data", str(tmp_path)]) == 1
    assert "found neither a folder flan_cot" in capsys.readouterr().err


def test_another_dtype_is_another_experiment_for_cells_and_experts(zoo, sources, tmp_path, capsys):
    words = command("ablation", zoo, sources, tmp_path / "one", "--gates", "stretch")
    assert main([*words, "--dtype", "float32"]) == 0
    capsys.readouterr()
    assert main([*words, "--dtype", "bfloat16", "--resume", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "(0 finished before), 2 experts to train" in said
    assert main([*words, "--dtype", "float32", "--resume", "--dry-run"]) == 0
    assert "(0 finished before)" not in (said := capsys.readouterr().err) and " 0 experts to train" in said


def test_experts_of_one_experiment_serve_another(zoo, sources, tmp_path):
    assert main(command("ablation", zoo, sources, tmp_path / "one", "--gates", "stretch")) == 0
    (experts,) = (tmp_path / "one" / "experts").iterdir()
    assert (
        main(command("samples", zoo, sources, tmp_path / "two", "--gates", "stretch", "--experts", str(experts))) == 0
    )
    assert not (tmp_path / "two" / "experts").exists()


def test_the_nearest_point_of_a_hull_is_found_and_certified():
    generator = torch.Generator().manual_seed(0)
    corners = torch.randn(40, 5, 9, generator=generator, dtype=torch.float64)
    inside = torch.rand(40, 5, generator=generator, dtype=torch.float64)
    inside = inside / inside.sum(-1, keepdim=True)
    gram = corners @ corners.transpose(-1, -2)
    for point in ((inside[..., None] * corners).sum(1), torch.randn(40, 9, generator=generator, dtype=torch.float64)):
        inner = (corners @ point[..., None])[..., 0]
        w, gap = simplex_weights(gram, inner)
        assert (w >= 0).all() and torch.allclose(w.sum(-1), torch.ones(40, dtype=torch.float64))
        slope = (gram @ w[..., None])[..., 0] - inner
        assert ((slope * w).sum(-1) - slope.amin(-1) <= gap + 1e-9).all() and float(gap.max()) < 1e-6
    assert float(((w[..., None] * corners).sum(1) - point).norm(dim=-1).min()) > 0.1


def test_the_hull_holds_what_its_names_say_on_an_encoder_decoder_too(zoo, sources, tmp_path):
    out = tmp_path / "hull"
    assert main(command("hull", zoo, sources, out, "--gates", "radar", base="t5")) == 0
    sites = [
        site for cell in cells(out).values() if "probe" in cell["metrics"] for site in cell["metrics"]["probe"]["sites"]
    ]
    assert {site["site"].split(".")[0] for site in sites} == {"encoder", "decoder"}
    for site in sites:
        assert 0 <= site["span"] <= site["hull"] + 1e-6 and site["hull"] <= site["one"] + 1e-6 and site["angle"] > 0
        assert site["gate"] > site["span"] - 1e-6 or site["turned_hull"] < site["hull"]


def test_angles_are_those_of_the_outputs_and_start_at_no_turn(zoo, sources, tmp_path, load_tiny):
    from radargate import compose
    from radargate.composition.composing import radar_layers
    from radargate.paper.site_outputs import outputs

    model = compose(load_tiny(), zoo["llama"]["adapters"], gate="radar", top_k=1)
    layer = next(layer for layer in radar_layers(model) if len(layer.entries["default"][1]["experts"]) == 3)
    x = torch.randn(5, layer.base_layer.in_features)
    found = outputs(layer, x)
    bank = layer.bank("default")
    parts = zip(
        ((x @ bank.A.T) * bank.scale(x)).split(list(bank.ranks), -1), bank.B.split(list(bank.ranks)), strict=True
    )
    torch.testing.assert_close(found.plain, torch.stack([h @ B for h, B in parts], 1))
    assert found.angle == 0 and torch.equal(found.plain, found.turned)
    with torch.no_grad():
        layer.gate("default").rotation_up.normal_()
        found = outputs(layer, x)
        gated = layer.gated(x, "default")  # top-1: the chosen expert, turned and weighed, is the whole update
        chosen = found.turned.gather(1, gated.indices[..., None].expand(-1, 1, found.turned.shape[-1]))[:, 0]
        torch.testing.assert_close(layer.update(x, "default"), gated.weights * chosen)


def test_a_base_of_a_folder_is_known_by_its_weights_whatever_they_are_kept_in(tmp_path):
    found = set()
    for name, content in (
        ("config.json", b"{}"),
        ("pytorch_model.bin", b"1"),
        ("pytorch_model.bin", b"22"),
        ("merges.txt", b"a b"),
    ):
        (tmp_path / name).write_bytes(content)
        found.add(base_identity(str(tmp_path)))
    assert len(found) == 4 and base_identity("smollm2-135m") == "smollm2-135m"


def test_lorahub_is_told_the_task_where_it_was_learned_and_leads_nothing(sources):
    from radargate.paper.expert_store import ExpertStore
    from radargate.paper.planning import plan_places

    for name, benchmarks, kind in (("ablation", None, "told"), ("generalization", "paper", "rule")):
        experiment = EXPERIMENTS.get(name)
        plan = experiment.plan("cpu", smoke=True)
        design = dataclasses.replace(plan, bases=("tiny",), rules=("lorahub",), benchmarks=benchmarks)
        material = load_material(str(sources), design)
        places, _ = plan_places(
            experiment, design, material, ExpertStore(sources, None, design.recipe, material), "cpu"
        )
        found = {p.cell.label: p for p in places if p.cell.system == "lorahub"}
        assert {label: p.cell.kind for label, p in found.items()} == {
            "lorahub told the task (mole)" if kind == "told" else "lorahub (mole)": kind
        }
    told = "lorahub told the task (mole)"
    records = compared({None: {told: {"sums": 40}, "radar (mole)": {"sums": 30}, "base": {"sums": 10}}})
    for record in records:
        if record.get("cell", {}).get("label") == told:
            record["cell"]["kind"] = "told"
    found = read_findings(records)
    assert [(t.first, t.second) for t in found.lead["acc"]] == [("radar (mole)", "base")]
    assert told in found.systems()
