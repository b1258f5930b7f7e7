"""Every command from its entry point: help with an example, one real run, one-line errors, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import reference
from radargate.cli import COMMANDS, build_parser, main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert f"example:\n  radargate {command}" in capsys.readouterr().out


def test_the_main_path_through_the_entry_point(zoo, tasks, tmp_path, capsys):
    base = str(zoo["llama"]["base"])

    def run(*words: str) -> str:
        assert main(list(words)) == 0
        return capsys.readouterr().out

    out = run(
        "experts",
        base,
        "--data",
        str(tasks),
        "--steps",
        "3",
        "--batch-size",
        "4",
        "--rank",
        "2",
        "--target-modules",
        "q_proj,v_proj",
        "--out",
        str(tmp_path / "experts"),
        "--device",
        "cpu",
    )
    adapters = [line.split("\t")[1] for line in out.splitlines()]
    assert [Path(a).name for a in adapters] == ["add", "even"]
    assert main(["experts", base, "--data", str(tasks), "--out", str(tmp_path / "experts")]) == 1
    assert "already holds an adapter. Use --resume" in capsys.readouterr().err
    assert "2 of 2 adapters can be used" in run("doctor", base, *adapters)
    assert "2 of 2 adapters can be used" in run("doctor", base, adapters[0], "--device", "cpu", adapters[1])
    assert "adapters" not in (alone := run("doctor", base)) and "backend: " in alone
    config = tmp_path / "flags.yaml"
    config.write_text("gate: stretch\nsteps: 99\nbatch_size: 4\nsave-every: 2\noption: [temperature=2.0]\n")
    record = json.loads(
        run(
            "train",
            base,
            *adapters,
            "--data",
            str(tasks),
            "--config",
            str(config),
            "--steps",
            "4",
            "--out",
            str(tmp_path / "bundle"),
            "--json",
            "--tensorboard",
            "--device",
            "cpu",
        )
    )
    assert record["options"]["gate"] == "stretch" and record["options"]["steps"] == 4
    assert record["options"]["gate_options"] == {"temperature": 2.0}
    assert list((tmp_path / "bundle" / "checkpoints").rglob("events.out.*"))
    out = run(
        "eval",
        str(tmp_path / "bundle"),
        "--data",
        str(tasks),
        "--limit",
        "4",
        "--max-new-tokens",
        "3",
        "--out",
        str(tmp_path / "scores.jsonl"),
    )
    assert out.startswith("bundle\taccuracy")
    run(
        "eval",
        base,
        *adapters,
        "--data",
        str(tasks),
        "--limit",
        "2",
        "--max-new-tokens",
        "3",
        "--out",
        str(tmp_path / "scores.jsonl"),
    )
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 9
    answers = run(
        "generate",
        str(tmp_path / "bundle"),
        "--prompt",
        "1+1=",
        "--prompt",
        "is 4 even?",
        "--max-new-tokens",
        "3",
        "--expert",
        "add=0.5",
        "--json",
    ).splitlines()
    assert [json.loads(a)["prompt"] for a in answers] == ["1+1=", "is 4 even?"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Unknown command 'trian'. Did you mean 'train'"),
        (["eval", "{base}", "--out", "x"], "nothing to score"),
        (["eval", "{base}", "--data", "nowhere", "--out", "x"], "no such file or folder"),
        (
            ["train", "{base}", "{math}", "--data", "{tasks}", "--gate", "rader", "--out", "{tmp}/b"],
            "Did you mean 'radar'",
        ),
        (
            ["train", "{base}", "{math}", "--data", "{tasks}", "--top-k", "3", "--out", "{tmp}/b"],
            "top_k is 3, expected 1 to 1",
        ),
        (["train", "{base}", "{math}", "{math}", "--data", "{tasks}", "--out", "{tmp}/b"], "two adapters are called"),
        (
            ["train", "{base}", "{math}", "--data", "{tasks}", "--option", "x", "--out", "{tmp}/b"],
            "expected NAME=VALUE",
        ),
        (
            [
                "train",
                "{base}",
                "{math}",
                "--data",
                "{tasks}",
                "--top-k",
                "1",
                "--dense-start",
                "2",
                "--out",
                "{tmp}/b",
            ],
            "dense_start is 2",
        ),
        (["doctor", "no/such-base", "{math}"], "was not found"),
        (["doctor", "{tmp}", "{math}"], "has no config.json"),
        (["generate", "{base}", "--prompt", "x", "--expert", "law=0"], "holds no composition"),
        (["eval", "x.gguf", "--data", "{tasks}", "--out", "x"], "does not exist"),
        (["train", "--config", "{tmp}/none.yaml"], "cannot be read"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_one(words, message, zoo, tasks, tmp_path, capsys):
    tiny = zoo["llama"]
    values = {"base": tiny["base"], "math": tiny["adapters"]["math"], "tasks": tasks, "tmp": tmp_path}
    assert main([word.format(**values) for word in words]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("radargate: error:")]) == 1


def test_the_installed_command_runs():
    result = subprocess.run(
        [Path(sys.executable).parent / "radargate", "--help"], capture_output=True, text=True, check=True
    )
    for command in COMMANDS:
        assert command in result.stdout


def test_every_command_is_on_the_page_of_commands():
    page = reference.pages()["reference/commands.md"]
    for command in COMMANDS:
        assert f"radargate {command}" in page
    assert build_parser()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_speaks_the_fields_words(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = re.sub(r"\s+", " ", capsys.readouterr().out.lower())
    for own in ("told apart", "anew", "errand", "gate numbers"):
        assert own not in words
    assert not re.search(r"(?<!learning )(?<!win )\brates?\b", words)
