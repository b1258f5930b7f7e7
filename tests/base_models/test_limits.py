"""Texts that do not fit a model: one line before anything is trained, scored or answered."""

from __future__ import annotations

import json

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

import radargate
from conftest import make_adapter, tiny_tokenizer
from radargate.base_models.limits import Limits
from radargate.cli import main
from radargate.errors import DataError

SMALL = {
    "vocab_size": 258,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture
def home(tmp_path):
    """A function that makes a base of few positions, an adapter, a bundle and rows."""

    def make(kind: str, tokens: tuple[str, ...] = ()):
        if kind == "rotary":
            model = LlamaForCausalLM(LlamaConfig(**SMALL, max_position_embeddings=40, eos_token_id=1, pad_token_id=0))
        else:
            model = GPT2LMHeadModel(
                GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=40, vocab_size=258, eos_token_id=1)
            )
        base = tmp_path / "base"
        model.save_pretrained(base)
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(list(tokens))
        tokenizer.save_pretrained(base)
        targets = ["q_proj"] if kind == "rotary" else ["c_attn"]
        adapter = make_adapter(base, tmp_path / "a", seed=1, r=2, target_modules=targets)
        radargate.compose(str(base), {"a": adapter}).save_pretrained(tmp_path / "bundle")
        return base, adapter, tmp_path / "bundle"

    return make


def rows(tmp_path, *prompts: str):
    for split in ("train", "test"):
        text = "".join(json.dumps({"prompt": p, "target": "yes"}) + "\n" for p in prompts)
        (tmp_path / f"t.{split}.jsonl").write_text(text)
    return tmp_path


@pytest.mark.parametrize("kind", ["rotary", "learned"])
def test_a_text_of_more_tokens_than_positions_is_one_line_everywhere(home, tmp_path, capsys, kind):
    base, adapter, bundle = home(kind)
    data, long = str(rows(tmp_path, "short", "x" * 60)), "x" * 60
    commands = {
        "eval": ["eval", str(bundle), "--data", data, "--out", str(tmp_path / "s.jsonl"), "--max-new-tokens", "4"],
        "generate": ["generate", str(bundle), "--prompt", long, "--max-new-tokens", "4"],
        "explore": ["explore", str(bundle), "--prompt", long, "--out", str(tmp_path / "x.html")],
    }
    for name, command in commands.items():
        assert main(command) == 1, name
        error = capsys.readouterr().err.splitlines()[-1]
        assert "more than the 40 positions of the base" in error, (name, error)
    assert not (tmp_path / "s.jsonl").exists()
    train = ["train", str(base), str(adapter), "--data", data, "--steps", "1", "--out", str(tmp_path / "o")]
    assert main(train) == 0
    assert "being longer than `max_length` 40 tokens: 1 of t" in capsys.readouterr().err.replace(
        "--max-length", "`max_length`"
    )


def test_a_token_that_the_embeddings_lack_is_one_line_everywhere(home, tmp_path, capsys):
    base, adapter, bundle = home("rotary", ("<law>",))
    data = str(rows(tmp_path, "is it", "<law> is it"))
    train = ["train", str(base), str(adapter), "--data", data, "--steps", "1"]
    commands = (
        [*train, "--out", str(tmp_path / "o1")],
        [*train, "--out", str(tmp_path / "o2"), "--option", "router=text"],
        ["experts", str(base), "--data", data, "--steps", "1", "--out", str(tmp_path / "o3")],
        ["eval", str(bundle), "--data", data, "--out", str(tmp_path / "s.jsonl"), "--max-new-tokens", "4"],
        ["generate", str(bundle), "--prompt", "<law> is it", "--max-new-tokens", "4"],
        ["explore", str(bundle), "--prompt", "<law> is it", "--out", str(tmp_path / "x.html")],
    )
    for command in commands:
        assert main(command) == 1, command
        error = capsys.readouterr().err.splitlines()[-1]
        assert "'<law>' (258), and the base has embeddings for 258 tokens" in error, (command, error)
    assert main(["doctor", str(base), str(adapter)]) == 0
    assert "its tokenizer has 259 tokens, its embeddings 258" in capsys.readouterr().err
    assert main(["generate", str(bundle), "--prompt", "is it", "--max-new-tokens", "4"]) == 0


def test_positions_behind_a_padding_token_are_counted():
    config = RobertaConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=1
    )
    config.max_position_embeddings = 20
    assert Limits.of(RobertaModel(config)).positions == 18


def test_the_row_is_named():
    with pytest.raises(DataError, match="row t/3 has 5 tokens and 4 are to be written, more than the 8 positions"):
        Limits(10, 8).check([1, 2, 3, 4, 5], "row t/3", more=4)


def test_scoring_rows_that_the_gates_were_trained_on_is_said(zoo, tmp_path, capsys):
    base, adapters = zoo["llama"]["base"], zoo["llama"]["adapters"]
    for split, numbers in (("train", range(8)), ("test", range(20, 24))):
        text = "".join(json.dumps({"prompt": f"{i}+1=", "target": str(i + 1)}) + "\n" for i in numbers)
        (tmp_path / f"add.{split}.jsonl").write_text(text)
    words = ["train", str(base), *map(str, adapters.values()), "--data", str(tmp_path), "--steps", "1"]
    assert main([*words, "--batch-size", "4", "--out", str(tmp_path / "bundle")]) == 0
    capsys.readouterr()
    score = ["eval", str(tmp_path / "bundle"), "--data", str(tmp_path), "--out", str(tmp_path / "s.jsonl")]
    assert main(score) == 0
    assert "trained on" not in capsys.readouterr().err
    assert main([*score, "--split", "train"]) == 0
    assert "of 8 rows are ones that bundle was trained on" in capsys.readouterr().err
