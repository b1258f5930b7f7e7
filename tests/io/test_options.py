"""Each option once: flags, help and objects from the same fields; messages that know no flags; ids that never change."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import logging
import re
from dataclasses import asdict
from pathlib import Path

import pytest

import radargate
from radargate.cli import build_parser, flags, main
from radargate.comparison.cells import UNION, Cell
from radargate.errors import OptionError
from radargate.evaluation.options import Scoring
from radargate.io.records import content_hash
from radargate.paper.catalog import EXPERIMENTS
from radargate.paper.points import Point, cell_conditions
from radargate.registry import option
from radargate.training.options import ExpertOptions, GateTraining

SOURCE = Path(radargate.__file__).parent
# real command lines of pip, git and vLLM, commands to copy, and colours of a page
OTHERS = {
    "base_models/cache.py": ("--no-deps", "--quiet", "--dest"),
    "comparison/choosing/page.py": (' --prompt "…"\nradargate serve ',),  # a command to copy
    "io/records.py": ("--porcelain", "--untracked-files=no"),
    "paper/skills/page.py": (
        *("--preset", "--smoke", "--experts benchmarks/skills", "--pairs ", "--rows ", "--expert-seeds "),
        *(" --seeds ", "--dtype "),
    ),
    "vllm/arguments.py": ("--served-model-name", "--middleware", "--no-"),
    "vllm/server.py": ("--logits-processors", "--help"),
}
COMMANDS_TO_COPY = {"quickstart/page.py": "<pre>radargate doctor", "report/page.py": "\n:root {"}


def literals(path: Path) -> list[str]:
    """String literals of a module, docstrings aside; the parts of an f-string joined."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [node.value for node in constants if id(node) not in docs]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_the_library_names_options_and_only_the_command_line_names_flags(path):
    name = path.relative_to(SOURCE).as_posix()
    if name.startswith(("cli/", "bench/")):
        return
    for text in literals(path):
        if text in OTHERS.get(name, ()) or text.startswith(COMMANDS_TO_COPY.get(name, "\0")):
            continue
        assert not re.search(r"(?<![\w-])--[a-z]", text), f"{text!r} names a flag: write `option` instead"


def test_the_command_line_says_flags_where_the_library_says_options(zoo, tasks, tmp_path, capsys):
    known = {"out": "--out", "gate_options": "--option"}
    assert (
        flags.in_flags("give `out` or `gate_options`, not `elsewhere`", known)
        == "give --out or --option, not elsewhere"
    )
    tiny, out = zoo["llama"], tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("{}")
    words = [str(tiny["base"]), str(tiny["adapters"]["math"]), "--data", str(tasks), "--out", str(out), "--top-k", "1"]
    assert main(["train", *words, "--device", "cpu"]) == 1
    assert "Use --resume to continue it, or choose another --out." in capsys.readouterr().err
    logging.getLogger("radargate").info("longer than `max_length` 3, of `unknown`")
    assert "longer than --max-length 3, of unknown" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class Mine:
    """Options of every kind."""

    count: int = option(3, "how many", least=1)
    share: float | None = option(None, "how much of `count`", above=0)
    names: tuple[str, ...] = option(("a", "b"), "which")
    several: tuple[int, ...] = option((1,), "each", repeat=True)
    table: dict[str, int] = option({}, "a table", flag="entry")
    fast: bool = option(False, "no waiting")
    hidden: int = 7


def test_flags_help_and_object_come_from_the_fields(capsys):
    parser = argparse.ArgumentParser()
    flags.add_options(parser, Mine, several=None)
    shown = parser.format_help()
    assert "how many (default 3)" in shown and "how much of --count" in shown and "which (default a,b)" in shown
    assert "hidden" not in shown
    words = ["--share", "0.5", "--names", "x:a=1,b=2 y", "--several", "2", "--several", "4", "--entry", "k=1", "--fast"]
    made = flags.build(parser.parse_args(words), Mine, hidden=1)
    assert made == Mine(3, 0.5, ("x:a=1,b=2", "y"), (2, 4), {"k": 1}, True, 1)
    assert flags.values(parser.parse_args([]), Mine)["several"] is None
    for words, message in ((["--count", "0"], "0 is not at least 1"), (["--share", "0"], "0 is not above 0")):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        assert message in capsys.readouterr().err


def test_what_the_command_line_builds_is_what_python_has_by_default():
    args = build_parser().parse_args(["train", "base", "adapter", "--data", "d", "--out", "o"])
    assert flags.build(args, GateTraining) == GateTraining()
    args = build_parser().parse_args(["experts", "base", "--data", "d", "--out", "o", "--target-modules", "q,v"])
    assert flags.build(args, ExpertOptions) == ExpertOptions(target_modules=("q", "v"))


def test_a_presets_rates_are_filled_in_and_a_share_is_checked():
    paper = GateTraining(preset="paper", lr=0.1).resolved()
    assert paper.rates == (0.1, 1e-4) and paper.dense_start == 0.0 and GateTraining().resolved().rates == (5e-3, 5e-3)
    with pytest.raises(OptionError, match="dense_start is 2"):
        GateTraining(dense_start=2).resolved()


CELLS = {
    "base": Cell("base", "base", "base"),
    "radar": Cell("radar", "gate", "radar (mole)", "mole", 0, {}),
    "union": Cell(UNION, "rule", UNION, seed=0),
}
# as stored before options had classes of their own: a changed id would run stored experiments again
STORED = {"base": "75ecb20ff2150cfc", "radar": "8762a6db1cbd3506", "union": "184ce8b685adba31"}
STORED_OF = {
    "cpu": {
        "base": "9b333d8b1923ad78",
        "radar": "c9b1468beb0db410",
        "union": "62d90925301717b9",
        "recipe": "3a886182e9e853c2",
    },
    "gpu": {
        "base": "1cf40eaf36f3915e",
        "radar": "c5c5b0b694403c4f",
        "union": "012a4b47f82fe790",
        "recipe": "94b23da84ed172d0",
    },
    "paper": {
        "base": "87f82439d20e6554",
        "radar": "eeab8b0bc4afb301",
        "union": "39e0b1471958bb1f",
        "recipe": "d03fc8256d88ec87",
    },
}
EXPERTS = {"mole": {"math": "1", "law": "2"}}


def test_ids_of_a_comparisons_cells_are_those_of_before():
    training = GateTraining(steps=7, batch_size=2, top_k=1).resolved()
    conditions = {
        "base": "tiny",
        "dtype": None,
        "experts": EXPERTS,
        "training": training.shared(),
        "union_lr": 1e-3,
        "scoring": asdict(Scoring(limit=3)),
        "train_hash": "t",
        "test_hash": "s",
    }
    assert {name: cell.id(conditions) for name, cell in CELLS.items()} == STORED


@pytest.mark.parametrize("preset", STORED_OF)
def test_ids_of_an_experiments_cells_and_of_its_experts_are_those_of_before(preset):
    design = EXPERIMENTS.get("ablation").plan(preset)
    point = Point("tiny", ("math", "law"), ("math", "law"), None, 2)
    found = {
        name: cell.id(cell_conditions(cell, point, design, ("t", "s"), "tiny", EXPERTS, None))
        for name, cell in CELLS.items()
    }
    assert {**found, "recipe": content_hash(asdict(design.recipe))} == STORED_OF[preset]


def test_a_designs_record_is_flat_as_before():
    flat = EXPERIMENTS.get("ablation").plan("gpu", steps=5, limit=7, bases=("tiny",)).flat()
    assert (flat["steps"], flat["expert_steps"], flat["batch_size"], flat["limit"]) == (5, 300, 8, 7)
    assert flat["bases"] == ("tiny",) and not {"training", "recipe", "scoring"} & set(flat)


def test_the_second_learning_rate_is_asked_from_the_gate(zoo, load_tiny, monkeypatch):
    from radargate.gates.radar import RadarGate

    model = radargate.compose(load_tiny(), zoo["llama"]["adapters"])
    groups = radargate.parameter_groups(model, 1e-3, 1e-2)
    assert [(group["name"], group["lr"]) for group in groups] == [("softmax", 1e-3), ("rotation", 1e-2)]
    everything = {"softmax": [], "rotation": None}
    monkeypatch.setattr(RadarGate, "parameter_groups", lambda gate: {**everything, "rotation": list(gate.parameters())})
    (only,) = (g for g in radargate.parameter_groups(model, 1e-3, 1e-2) if g["name"] == "rotation")
    assert len(only["params"]) == sum(len(group["params"]) for group in groups)
