"""``radargate compare`` end to end on a tiny model: every system, stopped and resumed, refused where it cannot work."""

from __future__ import annotations

import importlib
import json
import signal
import textwrap

import pytest

import fresh
from conftest import make_adapter
from radargate.architectures import ARCHITECTURES
from radargate.cli import main
from radargate.comparison.cells import all_cells, parse_system
from radargate.errors import OptionError
from radargate.gates import GATES
from radargate.gates.rules import RULES
from radargate.io.records import read_records


@pytest.fixture(scope="module")
def adapters(zoo, tmp_path_factory):
    """Two adapters of one rank, named like the tasks."""
    root = tmp_path_factory.mktemp("adapters")
    return [
        str(
            make_adapter(
                zoo["llama"]["base"], root / name, seed, r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]
            )
        )
        for seed, name in enumerate(("add", "even"))
    ]


def command(zoo, adapters, tasks, out, *words):
    return [
        "compare",
        str(zoo["llama"]["base"]),
        *adapters,
        "--data",
        str(tasks),
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--limit",
        "3",
        "--max-new-tokens",
        "2",
        "--union-steps",
        "2",
        "--device",
        "cpu",
        "--out",
        str(out),
        *words,
    ]


def cells(out):
    return [r for r in read_records(out / "records.jsonl") if r["suite"] == "cell"]


def test_every_gate_rule_and_architecture_runs_and_the_report_shows_them(zoo, adapters, tasks, tmp_path, capsys):
    out = tmp_path / "all"
    words = ("--gates", "all", "--rules", "all", "--architectures", "all", "--convert", "--seeds", "1")
    assert main(command(zoo, adapters, tasks, out, *words)) == 0
    shown = capsys.readouterr()
    assert "cells" in shown.err and "predicted" in shown.err and "left out: 'ties' does not work under" in shown.err
    systems = {(c["cell"]["system"], c["cell"]["architecture"]) for c in cells(out)}
    assert systems >= {(g, a) for g in GATES for a in ARCHITECTURES}
    assert {name for name, _ in systems} >= {"base", "add", "even", "union LoRA", *(r for r in RULES if r != "single")}
    page = (out / "report.html").read_text()
    for cell in cells(out):
        assert cell["cell"]["label"] in page
        assert cell["metrics"]["curve"] or cell["cell"]["kind"] != "gate"
    notes = {c["note"] for c in cells(out) if c["cell"]["architecture"] == "hydra"}
    assert all("converted" in note for note in notes)
    assert (out / "csv").is_dir() and "| radar (mole) |" in shown.out


def test_a_grid_stopped_in_the_middle_goes_on_and_recomputes_nothing(zoo, adapters, tasks, tmp_path):
    out = tmp_path / "grid"
    words = command(zoo, adapters, tasks, out, "--gates", "stretch,radar", "--rules", "uniform", "--seeds", "2")
    running = fresh.Process("-m", "radargate.cli", *words, stderr=fresh.PIPE)
    for line in running.stderr:
        if line.startswith("[4/"):
            running.send_signal(signal.SIGKILL)
            break
    running.wait()
    before = {c["case"]: c for c in cells(out)}
    assert len(before) >= 4
    # a torn last line and half a cell's records are what a crash leaves
    with open(out / "records.jsonl", "a") as file:
        orphan = next(r for r in read_records(out / "records.jsonl") if r["suite"] == "eval")
        file.write(json.dumps({**orphan, "cell": {**orphan["cell"], "id": "lost"}}) + "\n")
    assert main(words) == 1  # without --resume
    assert main([*words, "--resume"]) == 0
    after = {c["case"]: c for c in cells(out)}
    assert len(after) == 10 and all(after[case] == record for case, record in before.items())
    assert "lost" not in (out / "records.jsonl").read_text()
    assert main([*words, "--resume"]) == 0 and len(cells(out)) == 10


def test_the_same_cell_gives_the_same_scores(zoo, adapters, tasks, tmp_path):
    rows = []
    for name in ("one", "two"):
        assert main(command(zoo, adapters, tasks, tmp_path / name, "--gates", "radar", "--rules", "uniform")) == 0
        rows.append(
            [r["rows"] for r in read_records(tmp_path / name / "records.jsonl") if r["suite"] == "eval" and "rows" in r]
        )
    assert rows[0] == rows[1]


def test_a_gate_trains_with_its_own_rates_and_the_others_with_the_grids(zoo, adapters, tasks, tmp_path):
    words = ("--gates", "radar radar:rotation_lr=2e-1 radar:dense_start=0")
    assert main(command(zoo, adapters, tasks, tmp_path / "rates", *words)) == 0
    records = read_records(tmp_path / "rates" / "records.jsonl")
    found = {r["cell"]["label"]: r for r in records if r["suite"] == "cell" and r["cell"]["kind"] == "gate"}
    rates = {label: (r["options"]["rotation_lr"], r["options"]["dense_start"]) for label, r in found.items()}
    assert rates == {
        "radar (mole)": (0.005, 0.5),
        "radar rotation_lr=0.2 (mole)": (0.2, 0.5),
        "radar dense_start=0 (mole)": (0.005, 0),
    }
    assert all(r["options"]["gate_options"] == {} for r in found.values())
    angle = {label: r["metrics"]["mean_angle"] for label, r in found.items()}
    assert angle["radar rotation_lr=0.2 (mole)"] > 2 * angle["radar (mole)"] > 0


def test_a_dry_run_prints_cells_and_hours_and_writes_nothing(zoo, adapters, tasks, tmp_path, capsys):
    assert main(command(zoo, adapters, tasks, tmp_path / "dry", "--gates", "all", "--seeds", "3", "--dry-run")) == 0
    shown = capsys.readouterr().err
    assert "hours" in shown and "radar (mole) × 3 seeds" in shown
    assert not (tmp_path / "dry" / "records.jsonl").exists()


@pytest.mark.parametrize(
    "words,message",
    [
        (("--gates", "radr"), "Did you mean 'radar'"),
        (("--rules", "arow"), "Did you mean 'arrow'"),
        (("--architectures", "hidra"), "Did you mean 'hydra'"),
        (("--top-k", "5"), "top_k is 5, expected 1 to 2"),
        (("--gates", "stretch:temperature=0"), "temperature is 0"),
        (("--experts", "hydra"), "expected ARCHITECTURE=DIR"),
        (("--experts", "hydra=/nowhere"), "holds no folder with an adapter_config.json"),
        (("--rules", "pems", "--architectures", "omoe"), "mixes A and B apart"),
        (("--gates", "stretch:temperature"), "stretch: temperature: expected NAME=VALUE"),
        (("--gates", "radar:rotation_lr=0"), "rotation_lr is 0, expected a number above 0"),
        (("--gates", "radar:lr=.nan"), "lr is nan, expected a number above 0"),
        (("--gates", "radar:dense_start=2"), "dense_start is 2, expected a share"),
        (("--rules", "ties:lr=0.1"), "lr"),
    ],
)
def test_what_cannot_work_is_said_before_a_model_is_loaded(adapters, tasks, tmp_path, capsys, words, message):
    argv = [
        "compare",
        "no/such-model",
        *adapters,
        "--data",
        str(tasks),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "x"),
        *words,
    ]
    assert main(argv) == 1
    assert message in capsys.readouterr().err


def test_one_adapter_or_no_common_site_or_no_shared_A_is_refused(zoo, adapters, tasks, tmp_path, capsys):
    one = ["compare", "no/such-model", adapters[0], "--data", str(tasks), "--out", str(tmp_path / "x")]
    assert main(one) == 1 and "expected at least 2" in capsys.readouterr().err
    other = make_adapter(zoo["llama"]["base"], tmp_path / "other", 5, r=4, lora_alpha=16, target_modules=["down_proj"])
    apart = ["compare", "no/such-model", adapters[0], str(other), "--data", str(tasks), "--out", str(tmp_path / "x")]
    assert main(apart) == 1 and "have a site in common" in capsys.readouterr().err
    assert main(command(zoo, adapters, tasks, tmp_path / "y", "--gates", "stretch", "--architectures", "hydra")) == 1
    assert "share A" in capsys.readouterr().err


def test_what_a_cell_does_not_depend_on_is_not_in_its_id():
    given = {
        "base": "b",
        "dtype": None,
        "scoring": {"limit": 3},
        "test_hash": "t",
        "train_hash": "r",
        "training": {"steps": 2},
        "experts": {"mole": {"add": "1", "even": "2"}},
    }
    longer = {**given, "training": {"steps": 9}}
    other = {**given, "experts": {"mole": {"add": "1", "even": "3"}}}
    turned = {**given, "experts": {"mole": {"even": "2", "add": "1"}}}
    found, _ = all_cells(["add", "even"], gates=["radar"], rules=[], architectures=["mole"], seeds=1, union_steps=9)
    cells = {c.label: c for c in found}
    ids = {name: [cell.id(c) for c in (given, longer, other, turned)] for name, cell in cells.items()}
    for name in ("base", "expert: add"):
        assert len(set(ids[name])) == 1, name
    assert ids["expert: even"][0] == ids["expert: even"][1] != ids["expert: even"][2]
    assert len(set(ids["radar (mole)"][:3])) == 3 and ids["radar (mole)"][0] == ids["radar (mole)"][3]
    assert len(set(ids["union LoRA on all rows"])) == 4, "it takes over the first adapter's rank"


def test_systems_are_named_with_their_options():
    assert parse_system("arrow:mixing=ab,top_k=2") == ("arrow", {"mixing": "ab", "top_k": 2})
    found, left_out = all_cells(
        ["a", "b"],
        gates=["stretch:temperature=2.0"],
        rules=["lorahub:form=sane"],
        architectures=["mole"],
        seeds=2,
        union_steps=9,
    )
    assert [c.label for c in found if c.seed == 1] == [
        "union LoRA on all rows",
        "lorahub form=sane (mole)",
        "stretch temperature=2.0 (mole)",
    ]
    assert not left_out
    found, left_out = all_cells(["a", "b"], gates=["stretch"], rules=["all"], architectures=["hydra"], seeds=1)
    assert "ties" not in {c.system for c in found} and any("'ties' does not work" in line for line in left_out)
    with pytest.raises(OptionError, match="'ties' does not work"):
        all_cells(["a", "b"], gates=["stretch"], rules=["ties"], architectures=["hydra"], seeds=1)


def test_a_role_stands_for_all_gates_that_declare_it():
    def gates(*asked):
        found, _ = all_cells(["a", "b"], gates=asked, rules=[], architectures=["mole"], seeds=1)
        return [cell.system for cell in found if cell.kind == "gate"]

    assert gates("paper") == ["stretch", "rotation", "radar", "nexus", "tutel"]
    assert gates("radar", "control") == ["radar", "signed", "mlp", "vector", "lora", "multiplicative"]
    assert gates("rival") == ["phatgoose"]
    roles = {GATES.get(name).role for name in GATES}
    assert set(gates("all")) == set(GATES) and roles == {"paper", "gate", "control", "rival"}
    assert {RULES.get(name).role for name in RULES} == {"rule"}


def test_a_new_gate_is_one_file_and_one_line(zoo, adapters, tasks, tmp_path, capsys, monkeypatch):
    (tmp_path / "toy_gate.py").write_text(
        textwrap.dedent('''
        """A toy."""
        from dataclasses import dataclass
        import torch
        from radargate import ops
        from radargate.gates.base import Gate

        class ToyGate(Gate):
            """Prefers experts by one learned number each."""
            @dataclass(frozen=True)
            class Options:
                """None."""
            def __init__(self, site, options):
                super().__init__(site, options)
                self.softmax_taste = torch.nn.Parameter(0.01 * torch.arange(site.n).float())
            def weigh(self, call):
                logits = self.softmax_taste.to(call.x).expand(*call.x.shape[:-1], self.site.n)
                return ops.select(logits, call.top_k, multipliers=call.multipliers)
    ''')
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(GATES, "_entries", dict(GATES._entries))
    GATES.register("toy", "toy_gate:ToyGate")
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert "toy" in capsys.readouterr().out
    assert main(command(zoo, adapters, tasks, tmp_path / "toy", "--gates", "toy", "--rules", "uniform")) == 0
    assert "| toy (mole) |" in capsys.readouterr().out
    reference = importlib.import_module("reference")
    assert "| `toy` | Prefers experts by one learned number each. |" in reference.gates()
