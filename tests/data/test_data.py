"""Rows are checked field by field, prompts split as in scoring, targets never cut, batches repeat by seed."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import tiny_tokenizer
from radargate.data.batches import AnswerCollator, encode_rows, step_order
from radargate.data.options import Batching
from radargate.data.prompts import encode_pair, encode_row
from radargate.data.rows import Row, parse_row
from radargate.data.sources import load_rows
from radargate.errors import DataError

GOOD = {"prompt": "p", "target": "a", "choices": ["a", "b"], "answer_index": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "field 'prompt' is ''"),
        ({"target": 3}, "field 'target' is 3, expected non-empty text"),
        ({"target": None}, "field 'target' is None"),
        ({"choices": ["a"]}, "at least 2"),
        ({"choices": "ab"}, "'choices'"),
        ({"answer_index": 2}, "'answer_index' is 2, expected 0 to 1"),
        ({"answer_index": None}, "'answer_index' is None"),
        ({"answer_index": True}, "'answer_index' is True"),
        ({"choices": None}, "without 'choices'"),
        ({"target": "z"}, "neither choices"),
        ({"choices": ["a", "a"]}, "twice"),
        ({"task": ["x"]}, "'task'"),
    ],
)
def test_a_row_that_does_not_fit_names_file_line_and_field(change, message, tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(DataError, match=r"t\.jsonl, line 2") as error:
        load_rows(file, "test")
    assert message in str(error.value)


def test_broken_files_are_named(tmp_path):
    for name, content, message in (
        ("a.jsonl", b"{not json}\n", "line 1: not valid JSON"),
        ("b.jsonl", b"\xff\xfe\n", "UTF-8"),
        ("c.jsonl.gz", b"no gzip", "cannot be read"),
        ("d.jsonl", b"\n", "holds no row"),
        ("e.csv", b"a,b\n", "holds no row"),
        ("e.txt", b"a,b\n", "expected a .jsonl"),
        ("f.jsonl", b"[1]\n", "expected a JSON object"),
        ("g.jsonl", b"[" * 200_000, "not valid JSON"),
        ("h.jsonl.gz", gzip.compress(b'{"prompt": "p"}')[:-9], "cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_rows(tmp_path / name, "test")
    with pytest.raises(DataError, match="no such file or folder"):
        load_rows(tmp_path / "nothing", "test")
    with pytest.raises(DataError, match="Did you mean 'mathematics'"):
        load_rows("builtin:mathematic", "test")
    with pytest.raises(DataError, match=r"no TASK\.test\.jsonl"):
        load_rows(tmp_path, "test")


def test_a_folder_gives_tasks_and_splits(tasks):
    train, test = load_rows(tasks, "train"), load_rows(tasks, "test", limit=5)
    assert {name: len(rows) for name, rows in train.items()} == {"add": 48, "even": 48}
    assert {name: len(rows) for name, rows in test.items()} == {"add": 5, "even": 5}
    assert list(load_rows(tasks, "train", tasks=["even"])) == ["even"]
    with pytest.raises(DataError, match="no task 'odd'"):
        load_rows(tasks, "train", tasks=["odd"])


text = st.text(alphabet="ab \n(.", min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(context=text, continuation=text)
def test_a_pair_loses_no_text_and_moves_trailing_space_to_the_continuation(context, continuation):
    tokenizer = tiny_tokenizer()
    pair = encode_pair(context, continuation, tokenizer)
    assert tokenizer.decode(pair.context + pair.continuation) == context + continuation
    assert tokenizer.decode(pair.context) == context.rstrip()
    assert pair.lead == len(context) - len(context.rstrip())


def test_loss_is_on_the_answer_and_its_end_only_and_the_template_newline_is_no_answer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}{{ '\n' }}"
    row = encode_rows([Row("hello", "yes")], tokenizer, Batching(max_length=99), encoder_decoder=False).rows[0]
    assert tokenizer.decode(row.input_ids) == "<hello>\nyes</s>"
    assert tokenizer.decode([t for t in row.labels if t != -100]) == "yes</s>"
    tokenizer.chat_template = None
    row = encode_rows([Row("hello", "yes")], tokenizer, Batching(max_length=99), encoder_decoder=False).rows[0]
    assert tokenizer.decode(row.input_ids) == "hello yes</s>"
    assert encode_row("a", "b", tokenizer, True).continuation == tokenizer.encode("b")


def test_targets_are_never_cut():
    encoded = encode_rows(
        [Row("p" * i, "t" * 5, task="x") for i in range(20)],
        tiny_tokenizer(),
        Batching(max_length=15),
        encoder_decoder=False,
    )
    assert encoded.dropped == {"x": 20 - len(encoded.rows)} and encoded.dropped["x"] > 0
    assert all(len([t for t in row.labels if t != -100]) == 7 for row in encoded.rows)  # delimiter, answer, end
    assert "dropped whole" in encoded.report()


def test_causal_batches_end_with_their_answers():
    tokenizer = tiny_tokenizer()
    rows = encode_rows(
        [Row("a", "yes"), Row("longer prompt", "no")], tokenizer, Batching(max_length=99), encoder_decoder=False
    ).rows
    batch = AnswerCollator(0, False)(rows)
    assert bool((batch["labels"][:, -1] == 1).all())
    assert batch["position_ids"][0, -1] == len(rows[0].input_ids) - 1
    assert bool(((batch["attention_mask"] == 0) == (batch["input_ids"] == 0)).all())
    assert AnswerCollator(0, True)(rows)["input_ids"][0, 0] != 0


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80),
    batch=st.integers(1, 9),
    steps=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_the_order_of_rows_is_fixed_by_the_seed_and_sees_every_row_before_any_twice(lengths, batch, steps, seed):
    order = step_order(lengths.__getitem__, len(lengths), batch, steps, seed)
    assert order == step_order(lengths.__getitem__, len(lengths), batch, steps, seed) and len(order) == steps
    per_pass = max(len(lengths) // batch, 1)
    first = [i for step in order[:per_pass] for i in step]
    assert len(first) == len(set(first))


def test_no_row_is_left_out_of_every_pass_for_its_length():
    order = step_order(lambda i: i + 1, 20, 8, 60, 0)
    assert {i for step in order for i in step} == set(range(20))
    assert all(len(set(step)) == 8 for step in order)


def test_parse_row_makes_ids_and_keeps_tasks():
    row = parse_row({"prompt": "p", "target": "t"}, "x", task="add", position=4)
    assert (row.id, row.task, row.candidates) == ("add/4", "add", ())
