"""The command line on classification heads: rows with a label are trained on by class, scored by accuracy, and compared."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import radargate
from conftest import tiny_tokenizer
from radargate.cli import main

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 258,
}
ROWS = [{"text": f"row {n} is {word}", "label": word} for n in range(6) for word in ("good", "bad")]


def save(model, folder, targets, task="SEQ_CLS"):
    """A base's folder with its tokenizer, and two adapters with the same head."""
    model.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        config = LoraConfig(task_type=task, target_modules=targets, init_lora_weights=False)
        get_peft_model(copy.deepcopy(model), config).save_pretrained(folder / name)
    return str(folder / "base"), [f"a={folder / 'a'}", f"b={folder / 'b'}"]


def bert(folder):
    torch.manual_seed(0)
    names = {"label2id": {"good": 0, "bad": 1}, "id2label": {0: "good", 1: "bad"}}
    return save(BertForSequenceClassification(BertConfig(**SMALL, **names)), folder, ["query", "value"])


def write(folder, rows):
    (folder / "mood.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "mood.jsonl")


def test_a_classifier_is_trained_scored_and_refuses_to_write(tmp_path, capsys):
    base, adapters = bert(tmp_path)
    data, out = write(tmp_path, ROWS), tmp_path / "bundle"
    common = ["--device", "cpu", "--batch-size", "4"]
    assert (
        main(["train", base, *adapters, "--data", data, "--out", str(out), "--steps", "6", "--lr", "0.05", *common])
        == 0
    )
    model = radargate.load(None, out)
    assert type(model.get_base_model()) is BertForSequenceClassification
    records = tmp_path / "records.jsonl"
    assert main(["eval", str(out), "--data", data, "--out", str(records), "--device", "cpu"]) == 0
    record = json.loads(records.read_text().splitlines()[0])
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        said = [int(model(input_ids=torch.tensor([tokenizer.encode(row["text"])])).logits.argmax()) for row in ROWS]
    right = [("good", "bad")[index] == row["label"] for index, row in zip(said, ROWS, strict=True)]
    assert record["metrics"]["acc"]["value"] == pytest.approx(sum(right) / len(right))
    assert record["rows"]["prediction"] == [("good", "bad")[index] for index in said]
    capsys.readouterr()
    assert main(["generate", str(out), "--prompt", "hello", "--device", "cpu"]) == 1
    assert "writes no text" in capsys.readouterr().err
    assert main(["eval", base, *adapters, "--data", data, "--out", str(records), "--device", "cpu"]) == 0
    assert main(["doctor", base, *adapters]) == 0


def test_a_label_that_the_head_does_not_know_is_named(tmp_path, capsys):
    base, adapters = bert(tmp_path)
    data = write(tmp_path, [*ROWS, {"text": "hm", "label": "so-so"}])
    assert main(["train", base, *adapters, "--data", data, "--out", str(tmp_path / "x"), "--device", "cpu"]) == 1
    assert "label is 'so-so', expected 0 to 1, or one of good, bad" in capsys.readouterr().err


def test_a_reward_model_is_trained_on_numbers(tmp_path):
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SMALL, num_labels=1))
    base, adapters = save(model, tmp_path, ["q_proj", "v_proj"])
    data = write(tmp_path, [{"prompt": row["text"], "label": float(row["label"] == "good")} for row in ROWS])
    out, records = tmp_path / "bundle", tmp_path / "records.jsonl"
    assert main(["train", base, *adapters, "--data", data, "--out", str(out), "--steps", "4", "--device", "cpu"]) == 0
    assert main(["eval", str(out), "--data", data, "--out", str(records), "--device", "cpu"]) == 0
    assert json.loads(records.read_text().splitlines()[0])["metrics"]["nll"]["value"] > 0


def test_classifiers_are_compared(tmp_path):
    base, adapters = bert(tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"mood.{split}.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    done = radargate.compare(
        base,
        dict(a.split("=", 1) for a in adapters),
        str(tmp_path),
        tmp_path / "out",
        gates=("stretch",),
        union_steps=2,
        device="cpu",
        steps=2,
        batch_size=2,
    )
    assert {r["cell"]["system"] for r in done if r["suite"] == "cell"} >= {"base", "a", "b", "uniform", "stretch"}


def test_what_answers_with_nothing_is_refused_in_one_line(tmp_path, capsys):
    torch.manual_seed(0)
    base, adapters = save(BertModel(BertConfig(**SMALL)), tmp_path, ["query"], "FEATURE_EXTRACTION")
    data = write(tmp_path, ROWS)
    assert main(["train", base, *adapters, "--data", data, "--out", str(tmp_path / "x"), "--device", "cpu"]) == 1
    assert "BertModel answers neither with text nor with a label" in capsys.readouterr().err
