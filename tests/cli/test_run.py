"""``radargate run``: other tools load a bundle in a process that imports radargate nowhere else."""

from __future__ import annotations

import json
import os

import pytest
import torch

import fresh
import radargate
from radargate.cli import main

TASK = """
task: tiny_even
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{label}}"
target_delimiter: " "
"""
SCRIPT = """
import sys
from transformers import AutoModelForCausalLM
from helper_beside import prompt
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
print(model(prompt).logits.sum().item())
"""


@pytest.fixture
def bundle(load_tiny, zoo, tmp_path):
    model = radargate.compose(str(zoo["llama"]["base"]), zoo["llama"]["adapters"]).eval()
    model.save_pretrained(tmp_path / "bundle")
    return model, tmp_path / "bundle"


def outside(*words: str, **kwargs) -> str:
    """Standard output of ``python -m radargate run …`` in a process of its own."""
    done = fresh.run("-m", "radargate", "run", *words, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lm_eval_command_scores_a_bundle_as_the_bundle(bundle, zoo, tmp_path):
    model, folder = bundle
    rows = tmp_path / "rows.json"
    questions = [f"is {i} even?" for i in range(3)]
    rows.write_text("\n".join(json.dumps({"question": q, "label": i % 2}) for i, q in enumerate(questions)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.replace("ROWS", str(rows)))
    outside(
        *("lm_eval", "--model", "hf", "--model_args", f"pretrained={zoo['llama']['base']},peft={folder},dtype=float32"),
        *("--tasks", "tiny_even", "--include_path", str(tmp_path / "tasks"), "--device", "cpu"),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
        env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    from conftest import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    for row in found:
        asked = row["arguments"]["gen_args_0"]
        context = tokenizer(asked["arg_0"])["input_ids"]
        answer = tokenizer(asked["arg_1"])["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        want = logits.gather(-1, torch.tensor(answer)[:, None]).sum()
        assert abs(float(row["filtered_resps"][0][0]) - float(want)) < 1e-3


def test_a_script_finds_what_lies_beside_it_and_its_own_words(bundle, tmp_path):
    model, folder = bundle
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "helper_beside.py").write_text("import torch\nprompt = torch.arange(2, 14)[None]\n")
    said = outside(str(tmp_path / "script.py"), str(folder))
    with torch.no_grad():
        assert float(said) == pytest.approx(float(model(torch.arange(2, 14)[None]).logits.sum()), abs=1e-3)


def test_a_module_takes_its_own_flags_and_exit_code(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "json.tool", "--config", "x"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m json.tool")


@pytest.mark.parametrize("tool", ["lm_evil", "no/such/script.py", "..", "no.such.module"])
def test_what_is_not_there_is_one_line(tool, capsys):
    assert main(["run", tool]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"radargate: error: {tool}")
    assert error.count("\n") == 1
