"""Rows as people have them: every form and file gives the same rows, and what fits none is told what is nearest."""

from __future__ import annotations

import copy
import gzip
import json
import pickle
import shutil

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import AddedToken

from conftest import logged, tiny_tokenizer
from radargate.cli import main
from radargate.data.batches import encode_rows
from radargate.data.options import Batching
from radargate.data.prompts import Conversation, end_token, render_context, stop_tokens
from radargate.data.rows import rows_hash
from radargate.data.sources import has_split, load_rows, with_columns
from radargate.errors import DataError

TEMPLATE = (
    "<s>{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}"
    "{% endif %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
SYSTEM, BUT = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "But?"}


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.add_tokens([AddedToken("<end>", special=True)], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def only(path, split="train"):
    (rows,) = load_rows(path, split).values()
    return rows


def first(tmp_path, raw):
    return only(write(tmp_path / "t.jsonl", [raw]))[0]


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "Hi", "target": "Ho", "source": "web", "lang": None, "meta": {"a": 1}},
        {"prompt": "Hi", "completion": "Ho"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": "Hi", "completion": [ASSISTANT]},
        {"messages": [USER, ASSISTANT]},
        {"messages": [USER, ASSISTANT, BUT]},
        {"messages": json.dumps([USER, ASSISTANT])},
        {"messages": {"role": ["user", "assistant"], "content": ["Hi", "Ho"]}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ASSISTANT]},
        {"prompt": "Hi", "prompt_id": "1", "messages": [USER, ASSISTANT], "completion": None},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "system": ""},
        {"conversations": [USER, ASSISTANT]},
        {"instruction": "Hi", "input": "", "output": "Ho", "text": "### Instruction"},
        {"instruction": "Hi", "input": None, "output": "Ho"},
        {"instruction": "Hi", "context": "", "response": "Ho", "category": "talk"},
        {"question": "Hi", "answer": "Ho"},
        {"text": "Hi", "label": "Ho"},
        {"text": "Hi", "label": 1, "label_text": "Ho"},
        {"input": "Hi", "output": "Ho"},
    ],
    ids=lambda raw: ",".join(raw),
)
def test_every_form_gives_the_same_prompt_and_answer(raw, tmp_path):
    row = first(tmp_path, raw)
    assert (row.prompt, row.target, row.choices) == ("Hi", "Ho", ()) and type(row.prompt) is str


def test_an_alpaca_input_follows_its_instruction_and_numbers_are_texts(tmp_path):
    assert first(tmp_path, {"instruction": "Say", "input": "Hi", "output": "Ho"}).prompt == "Say\n\nHi"
    assert first(tmp_path, {"question": "2^100", "answer": 2**100}).target == str(2**100)
    assert first(tmp_path, {"question": "1/2", "answer": 0.5}).target == "0.5"


@pytest.mark.parametrize(
    ("raw", "turns"),
    [
        ({"messages": [SYSTEM, USER, ASSISTANT]}, [SYSTEM, USER]),
        ({"messages": [USER, ASSISTANT, BUT, ASSISTANT]}, [USER, ASSISTANT, BUT]),
        ({"messages": [{**SYSTEM, "role": "developer"}, USER, ASSISTANT]}, [SYSTEM, USER]),
        ({"system": "Be brief.", "conversations": [USER, ASSISTANT]}, [SYSTEM, USER]),
        ({"system_prompt": "Be brief.", "question": "Hi", "response": "Ho"}, [SYSTEM, USER]),
        ({"prompt": "Hi", "target": "Ho", "system": "Be brief."}, [SYSTEM, USER]),
        ({"instruction": "But?", "output": "Ho", "history": [["Hi", "Ho"]]}, [USER, ASSISTANT, BUT]),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, [SYSTEM, USER]),
    ],
    ids=lambda part: ",".join(part) if isinstance(part, dict) else "",
)
def test_turns_before_the_last_answer_are_the_prompt(raw, turns, tmp_path):
    row = first(tmp_path, raw)
    assert row.target == "Ho" and list(row.prompt.messages) == turns
    assert row.prompt == "\n".join(turn["content"] for turn in turns)  # what a base without template reads


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"messages": [USER]}, "no turn is the assistant's"),
        ({"messages": [ASSISTANT]}, "comes first"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "is empty"),
        ({"messages": [USER, {"role": "tool", "content": "3"}, ASSISTANT]}, r"messages\[1\] has the role 'tool'"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"id": "1"}]}]}, r"messages\[1\] calls tools"),
        ({"messages": ["Hi", "Ho"]}, r"messages\[0\] is 'Hi', expected {role, content}"),
        ({"messages": []}, "expected a list of {role, content}"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]}, "expected text"),
        ({"prompt": "Hi", "completion": ""}, "field 'completion' is '', expected non-empty text"),
        ({"prompt": "Hi", "completion": None}, "fields prompt fit no form.*completion is missing or null"),
        ({"question": "Hi", "answer": float("nan")}, "field 'answer' is nan"),
        ({"question": "Hi", "answer": {"text": ["Ho"]}}, "field 'answer' is {'text'"),
        ({"question": "Hi", "answer": 1, "choices": ["a", "b"]}, "'answer_index' is None"),
        ({"prompt": "Hi", "completion": "Ho", "label": False}, "as KTO takes it"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": "He"}, "two answers to prefer between.*`column` target=chosen"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, BUT]}, "`column` messages=chosen"),
        ({"text": "Once upon a time"}, "A text alone has no answer in it"),
        ({"promt": "Hi", "target": "Ho"}, "fields promt, target fit no form.*prompt/target.*prompt is missing"),
        ({"problem": "Hi", "solution": "Ho"}, "fields problem, solution fit no form"),
        ({"text": "Hi", "label": -1}, "field 'label' is -1"),
        ({"text": "Hi", "label": {"a": 1}}, "field 'label' is "),
        ({"text": "Hi", "label": [0, 1]}, r"field 'label' is \[0, 1\]"),
        ({"instruction": "Hi", "output": "Ho", "history": ["Hi"]}, "field 'history'"),
        ({}, "no field with a value fit"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_fits_no_form_is_refused_with_file_row_fields_and_nearest_form(raw, message, tmp_path):
    file = write(tmp_path / "t.jsonl", [{"prompt": "Hi", "target": "Ho"}, raw])
    with pytest.raises(DataError, match=r"t\.jsonl, line 2.*" + message) as error:
        load_rows(file, "train")
    assert "\n" not in str(error.value)


ROWS = [{"prompt": 'a\nb, "c"', "completion": "1"}, {"prompt": "ü🙂", "completion": "007"}]
CSV = 'prompt,completion,note\r\n"a\nb, ""c""",1,\r\nü🙂,007,x\r\n'


def packed_files(folder):
    """The same two rows in every kind of file, by name."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    plain = {
        "a.jsonl": lines.encode(),
        "mark.jsonl": b"\xef\xbb\xbf" + lines.encode(),
        "crlf.jsonl": lines.replace("\n", "\r\n").encode(),
        "list.json": json.dumps(ROWS, indent=1).encode(),
        "within.json": b"\xef\xbb\xbf" + json.dumps({"version": 1, "data": ROWS}).encode(),
        "lines.json": lines.encode(),
        "t.csv": CSV.encode(),
        "mark.csv": b"\xef\xbb\xbf" + CSV.encode(),
        "semicolon.csv": b'prompt;completion\n"a\nb, ""c""";1\n' + "ü🙂;007\n".encode(),
        "t.tsv": b'prompt\tcompletion\n"a\nb, ""c"""\t1\n' + "ü🙂\t007\n".encode(),
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "t.parquet")
    plain["t.parquet"] = (folder / "t.parquet").read_bytes()
    zst = pyarrow.Codec("zstd")
    packed = {f"{name}.gz": gzip.compress(content) for name, content in plain.items()}
    packed |= {f"{name}.zst": zst.compress(content, asbytes=True) for name, content in plain.items()}
    return plain | packed


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    for name, content in packed_files(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        rows = [(row.prompt, row.target) for row in only(tmp_path / name)]
        assert rows == [(raw["prompt"], raw["completion"]) for raw in ROWS], name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "holds no row"),
        ("t.csv", b"prompt,completion\n", "holds no row"),
        ("t.csv", b"prompt,prompt\na,b\n", "first line: field 'prompt' stands twice"),
        ("t.csv", b"prompt,completion\na,b\nc\n", "row 2: 1 cells, expected 2"),
        ("t.csv", b'prompt,completion\na,"b\n', "row 1: unexpected end of data|first line: unexpected end of data"),
        ("t.csv", b"prompt,completion\na,\n", "row 1: .*completion is missing or null"),
        ("t.csv", "prompt,completion\nä,b\n".encode("latin-1"), "cannot be read as a UTF-8 table"),
        ("t.csv", "prompt,completion\na,b\n".encode("utf-16"), "it is UTF-16. Save it as UTF-8"),
        ("t.json", b"", "holds no row"),
        ("t.json", b"[]", "holds no row"),
        ("t.json", b"[1]", "row 1: found int"),
        ("t.json", b"3", "expected a list of rows"),
        ("t.json", b'{"a": [{"prompt": ', "not valid JSON"),
        ("t.json", b'{"train": [{"prompt": "a"}]}', "fields train fit no form"),
        ("t.json", b"\xff\xfe[\x00]\x00", "it is UTF-16"),
        ("t.jsonl", b'{"prompt": "a", "prompt": "b", "target": "c"}', "line 1: not valid JSON .*'prompt' stands twice"),
        ("t.parquet", b"", "cannot be read as Parquet"),
        ("t.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("t.jsonl.zst", b"no zstd", "cannot be read as UTF-8 JSON lines"),
        ("t.json.gz", b"no gzip", "cannot be read as UTF-8 JSON"),
        ("t.xlsx", b"", "expected a .jsonl"),
        ("t.json.gz", gzip.compress(b" " * (100 << 20)), "unfolds to more than"),
    ],
)
def test_broken_files_are_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_rows(tmp_path / name, "train")
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_labels_are_the_choices_and_numbers_of_classes_get_their_names(tmp_path):
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(4)]
    plain = only(write(tmp_path / "t.jsonl", rows))
    assert [(row.target, row.choices, row.answer_index) for row in plain[:2]] == [
        ("0", ("0", "1"), 0),
        ("1", ("0", "1"), 1),
    ]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "t.parquet")
    named = only(tmp_path / "t.parquet")
    assert [(row.target, row.candidates) for row in named[:2]] == [("bad", ("bad", "good")), ("good", ("bad", "good"))]
    many = only(write(tmp_path / "many.jsonl", [{"text": "t", "label": f"l{i}"} for i in range(150)]))
    assert not any(row.choices for row in many)
    pair = first(tmp_path, {"premise": "It rains.", "hypothesis": "It is wet.", "label": "yes"})
    assert pair.prompt == "premise: It rains.\nhypothesis: It is wet."


def test_parquet_lists_of_turns_and_nulls_are_read(tmp_path):
    table = pyarrow.Table.from_pylist(
        [{"messages": [USER, ASSISTANT], "id": 7}, {"messages": [SYSTEM, USER, ASSISTANT], "id": None}]
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    rows = only(tmp_path / "t.parquet")
    assert [row.id for row in rows] == ["7", "t/2"] and list(rows[1].prompt.messages) == [SYSTEM, USER]
    twice = pyarrow.table([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="'prompt' stands twice"):
        load_rows(tmp_path / "twice.parquet", "train")


def test_the_form_and_what_is_not_used_are_said_in_one_line(tmp_path):
    rows = [{"messages": [USER, ASSISTANT], "source": "web"}, {"prompt": "Hi", "completion": "Ho"}]
    lines: list[str] = []
    with logged(lines.append):
        load_rows(write(tmp_path / "t.jsonl", rows), "train")
        load_rows(write(tmp_path / "own.jsonl", [{"prompt": "Hi", "target": "Ho"}]), "train")
    (line,) = lines
    assert line.endswith(
        "t.jsonl: 1 rows as messages (messages), 1 rows as prompt/completion (prompt, completion); not used: source"
    )


def test_columns_of_other_names_are_named(tmp_path, capsys):
    file = write(tmp_path / "t.jsonl", [{"the problem": "Hi", "solution & more": 3, "target": None}])
    source = with_columns(str(file), {"prompt": "the problem", "target": "solution & more"})
    (row,) = only(source)
    assert (row.prompt, row.target) == ("Hi", "3") and not has_split(source, "train")
    with pytest.raises(DataError, match=r"line 1: Unknown column 'problem'\. Did you mean 'the problem'"):
        load_rows(with_columns(str(file), {"prompt": "problem"}), "train")
    preferred = write(tmp_path / "p.jsonl", [{"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}])
    assert only(with_columns(str(preferred), {"messages": "chosen"}))[0].target == "Ho"
    assert main(["eval", "nothing", "--data", str(file), "--column", "prompt=no", "--out", str(tmp_path / "o")]) == 1
    assert "Unknown column 'no'" in capsys.readouterr().err
    assert main(["eval", "nothing", "--tasks", "x", "--column", "prompt=no", "--out", str(tmp_path / "o")]) == 1
    assert "--column names columns of --data" in capsys.readouterr().err
    assert main(["eval", "nothing", "--data", str(file), "--out", str(tmp_path / "o")]) == 1
    assert "--column" in capsys.readouterr().err


def test_folders_hold_any_kind_of_file_and_splits_without_a_task(tmp_path):
    folder = tmp_path / "talk"
    folder.mkdir()
    (folder / "train.csv").write_text(CSV)
    (folder / "test-00000-of-00001.parquet").write_bytes(packed_files(tmp_path)["t.parquet"])
    write(folder / "add.train.jsonl", [{"prompt": "1+1", "target": "2"}])
    assert {task: len(rows) for task, rows in load_rows(folder, "train").items()} == {"add": 1, "talk": 2}
    assert list(load_rows(folder, "test")) == ["talk"] and has_split(folder, "test")


def test_the_template_is_applied_once_and_an_answer_ends_as_an_assistant_turn(tmp_path):
    tokenizer = chat_tokenizer()
    row = first(tmp_path, {"messages": [SYSTEM, USER, ASSISTANT, BUT, ASSISTANT]})
    batch = encode_rows([row], tokenizer, Batching(max_length=200), encoder_decoder=False).rows[0]
    whole = tokenizer.apply_chat_template([*row.prompt.messages, ASSISTANT], tokenize=True)["input_ids"]
    assert batch.input_ids == whole and whole.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode([token for token in batch.labels if token != -100]) == "Ho<end>"
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert end_token(tokenizer) == end and stop_tokens(tokenizer) == [tokenizer.eos_token_id, end]
    tokenizer.chat_template = None
    assert stop_tokens(tokenizer) == [end_token(tokenizer)] == [tokenizer.eos_token_id]
    assert render_context(row.prompt, tokenizer) == "Be brief.\nHi\nHo\nBut?"


def test_a_long_conversation_is_measured_with_its_template(tmp_path):
    row = first(tmp_path, {"messages": [USER, ASSISTANT] * 20})
    encoded = encode_rows(
        [row, first(tmp_path, {"messages": [USER, ASSISTANT]})],
        chat_tokenizer(),
        Batching(max_length=150),
        encoder_decoder=False,
    )
    assert encoded.dropped == {"t": 1}


def test_what_a_template_refuses_names_the_row(tmp_path):
    row = first(tmp_path, {"messages": [USER, SYSTEM, ASSISTANT]})
    with pytest.raises(DataError, match=r"t\.jsonl, line 1: the chat template refuses .*: system comes first"):
        encode_rows([row], chat_tokenizer(), Batching(), encoder_decoder=False)[0]


def test_a_conversation_survives_copies_and_its_roles_count_in_hashes(tmp_path):
    row = first(tmp_path, {"messages": [SYSTEM, USER, ASSISTANT]})
    for again in (pickle.loads(pickle.dumps(row)), copy.deepcopy(row)):
        assert isinstance(again.prompt, Conversation) and again.prompt.messages == row.prompt.messages
    other = first(tmp_path, {"messages": [{**SYSTEM, "role": "user"}, USER, ASSISTANT]})
    assert other.prompt == row.prompt and rows_hash([other]) != rows_hash([row])


def test_chats_train_and_labels_are_scored_through_the_command_line(zoo, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(zoo["llama"]["base"], base)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<end>", "</s>").replace("<s>", "")
    tokenizer.save_pretrained(base)
    talk = write(tmp_path / "talk.jsonl", [{"messages": [SYSTEM, USER, ASSISTANT, BUT, ASSISTANT]}] * 8)
    adapters = [str(path) for path in zoo["llama"]["adapters"].values()]
    words = ["--data", str(talk), "--gate", "radar", "--steps", "2", "--batch-size", "2"]
    words += ["--out", str(tmp_path / "bundle")]
    assert main(["train", str(base), *adapters, *words]) == 0
    assert "8 rows as messages" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("review,stars\ngood,1\nbad,0\nfine,1\n")
    words = ["--data", str(tmp_path / "t.csv"), "--column", "text=review", "--column", "label=stars"]
    assert main(["eval", str(tmp_path / "bundle"), *words, "--out", str(tmp_path / "scores.jsonl")]) == 0
    record = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    assert record["task"] == "t" and set(record["rows"]["prediction"]) <= {0, 1}
    assert main(["eval", str(tmp_path / "bundle"), "--data", str(talk), "--out", str(tmp_path / "chat.jsonl")]) == 0
