"""Answers are judged as their task needs: translations as sacrebleu does, math by value and in time."""

from __future__ import annotations

import importlib.util
import multiprocessing
import threading

import pytest

import radargate
from conftest import HANG
from radargate.base_models.loading import load_tokenizer
from radargate.comparison.results import _judged_by
from radargate.data.rows import ANSWER_METRICS, Row, parse_row, rows_hash
from radargate.errors import DataError
from radargate.evaluation import answers
from radargate.evaluation.answers import TASK_METRICS, check_metrics, judge, metric_of
from radargate.evaluation.math_answers import MathChecker, equal_answers
from radargate.evaluation.metrics import RowScore, paired_difference, row_values, summarise, summarise_tasks
from radargate.evaluation.options import Scoring
from radargate.evaluation.run import score_system

HYPOTHESES = [
    "The cat sat on a mat.",
    "Das ist ein kleines Haus.",
    "It rains.",
    "",
    "He went there yesterday by train , too .",
]
REFERENCES = [
    "The cat sat on the mat.",
    "Dies ist ein kleines Haus am See.",
    "It is raining.",
    "Nothing.",
    "Yesterday he went there by train, too.",
]


def translations() -> list[Row]:
    return [Row("?", text, task="wmt14_en_xx", id=str(i)) for i, text in enumerate(REFERENCES)]


def scored(rows: list[Row], texts: list[str]) -> list[RowScore]:
    made = []
    for row, text in zip(rows, texts, strict=True):
        verdict = judge(row, text)
        made.append(
            RowScore(
                row.id,
                verdict.correct,
                None,
                text,
                None,
                1.0,
                1,
                metric=metric_of(row),
                values=verdict.values,
                stats=verdict.stats,
                timed_out=verdict.timed_out,
            )
        )
    return made


def test_chrf_and_bleu_are_sacrebleus_own():
    sacrebleu = pytest.importorskip("sacrebleu")
    scores = scored(translations(), HYPOTHESES)
    metrics = summarise(scores)
    for name, scorer in (("chrf", sacrebleu.CHRF()), ("bleu", sacrebleu.BLEU())):
        assert metrics[name]["value"] == pytest.approx(scorer.corpus_score(HYPOTHESES, [REFERENCES]).score)
        assert metrics[name]["signature"] == str(scorer.get_signature())
        assert 0 <= metrics[name]["low"] < metrics[name]["value"] < metrics[name]["high"] <= 100
    for score, hypothesis, reference in zip(scores, HYPOTHESES, REFERENCES, strict=True):
        assert score.values["chrf"] == sacrebleu.sentence_chrf(hypothesis, [reference]).score
    perfect = scored(translations(), REFERENCES)
    mean = summarise_tasks({"a": scores, "b": perfect})
    assert mean["chrf"]["value"] == pytest.approx((metrics["chrf"]["value"] + 100) / 2)
    assert mean["acc"]["value"] == 0.5
    assert "chrf" not in summarise_tasks({"a": scores, "b": [RowScore("0", True, None, "", None, 1.0, 1)]})


def test_a_translation_ends_with_its_line():
    pytest.importorskip("sacrebleu")
    row = translations()[0]
    assert judge(row, f"\n{row.target}\nEnglish phrase: more").correct
    assert judge(row, f"{row.target}\nmore").values["chrf"] == pytest.approx(100)


RIGHT = [
    ("42", "First 17, then more.\n#### 42"),
    ("42", "The answer is 42 dollars."),
    ("1234", "She pays $1,234."),
    ("1234", "#### 1,234"),
    ("8", "8.0"),
    ("-3", "#### -3"),
    ("42", "It is \\boxed{42}."),
    ("2000", "the total is 2,000.00"),
    ("\\frac{1}{2}", "0.5"),
    ("\\frac{1}{2}", "so $\\boxed{\\frac{2}{4}}$."),
    ("\\frac{1}{2}", "\\frac{1}{2}"),
    ("\\frac12", "1/2"),
    ("5\\text{ cm}", "5"),
    ("5", "5 cm"),
    ("90^\\circ", "90"),
    ("\\text{Evelyn}", "Evelyn"),
    ("(3,4)", "(3, 4)"),
    ("x^2+2x+1", "(x+1)^2"),
    ("2\\sqrt{3}", "$\\sqrt{12}$"),
    ("[2,5)", "$[2,5)$"),
    ("42", "#### 42\n\nQuestion: what is three threes?\n#### 9"),
    ("It adds up. #### 72", "72"),
]
WRONG = [
    ("42", "41"),
    ("42", "it is 4.2"),
    ("42", ""),
    ("42", "no idea"),
    ("3", "We have 5 + 2 = 7"),
    ("(3,4)", "(4, 3)"),
    ("\\frac{1}{2}", "\\frac{2}{1}"),
    ("\\pi", "3.14159"),
    ("42", "42 is not it; #### 43"),
    ("\\text{Evelyn}", "Angela"),
]


def test_math_answers_are_equal_by_value():
    pytest.importorskip("math_verify")
    for expected, pairs in ((True, RIGHT), (False, WRONG)):
        for gold, answer in pairs:
            assert judge(Row("?", gold, task="gsm8k", id="0"), answer).correct is expected, (gold, answer)


def test_hostile_answers_end_in_time_and_the_next_is_checked():
    pytest.importorskip("math_verify")
    checker = MathChecker(limit=3.0)
    assert checker.equal("42", "42.0") is True  # the process is up
    for text in ("9" * 100_000, "(" * 20_000, "\\frac{" * 5_000, "$10^{10^{10^{10}}}$", "a" * 1_000_000):
        assert not checker.equal("42", text)
    assert checker.equal("1/2", "0.5") is True
    checker.close()
    assert checker.equal("1/2", "0.5") is True
    checker.close()


def test_a_row_that_is_not_decided_in_time_is_wrong_and_counted(monkeypatch):
    monkeypatch.setattr("radargate.evaluation.math_answers.equal_answers", lambda gold, answer: None)
    rows = [Row("?", "42", task="gsm8k", id=str(i)) for i in range(2)]
    scores = scored(rows, ["41", "42"])
    assert [s.correct for s in scores] == [False, True]
    assert summarise(scores)["timed_out"] == 1


def _child(answer: str, replies) -> None:
    replies.put(equal_answers("1/2", answer))


def test_math_is_checked_in_threads_and_in_forked_processes():
    pytest.importorskip("math_verify")
    found: list[bool | None] = []
    threads = [threading.Thread(target=lambda i=i: found.append(equal_answers(str(i), f"{i}.0"))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
    context = multiprocessing.get_context("fork")
    replies = context.Queue()
    children = [context.Process(target=_child, args=(answer, replies), daemon=True) for answer in ("0.5", "2")]
    for child in children:
        child.start()
    assert sorted([replies.get(timeout=HANG), replies.get(timeout=HANG)]) == [False, True]
    assert equal_answers("7", "7.0") is True


def test_the_tasks_name_decides_and_the_row_overrides():
    assert metric_of(Row("?", "a", task="wmt14_en_de")) == metric_of(Row("?", "a", task="wmt16-ro-en")) == "translation"
    assert metric_of(Row("?", "1", task="gsm8k_main")) == metric_of(Row("?", "1", task="math")) == "math"
    assert metric_of(Row("?", "1", task="mathematics")) == metric_of(Row("?", "1", task="addition")) == "exact_match"
    assert metric_of(Row("?", "a", ("a", "b"), 0, task="gsm8k")) == "choice"
    assert metric_of(Row("?", "1", task="gsm8k", metric="exact_match")) == "exact_match"
    assert {metric for _, metric in TASK_METRICS} <= set(ANSWER_METRICS)
    row = parse_row({"prompt": "?", "target": "1", "metric": "math"}, "f, line 1")
    assert metric_of(row) == "math" and rows_hash([row]) != rows_hash([Row("?", "1", id=row.id)])
    with pytest.raises(DataError, match=r"f, line 1: field 'metric' is 'mth', expected one of exact_match, math"):
        parse_row({"prompt": "?", "target": "1", "metric": "mth"}, "f, line 1")
    with pytest.raises(DataError, match="for free answers"):
        parse_row(
            {"prompt": "?", "target": "a", "choices": ["a", "b"], "answer_index": 0, "metric": "math"}, "f, line 1"
        )


@pytest.mark.parametrize(("task", "package"), [("gsm8k", "math-verify"), ("wmt14_en_de", "sacrebleu")])
def test_a_missing_package_is_named_before_anything_is_scored(task, package, monkeypatch):
    monkeypatch.setattr(answers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=rf"{task}.*needs {package}: pip install 'radargate\[eval\]'.*exact_match"):
        check_metrics([Row("?", "1", task="other"), Row("?", "1", task=task)])
    check_metrics([Row("?", "1", task=task, metric="exact_match"), Row("?", "a", ("a", "b"), 0, task=task)])


def test_records_name_the_metric_and_keep_a_number_a_row(zoo):
    if importlib.util.find_spec("sacrebleu") is None or importlib.util.find_spec("math_verify") is None:
        pytest.skip("needs the extra eval")
    tiny = zoo["llama"]
    model = radargate.compose(str(tiny["base"]), tiny["adapters"], gate="radar").eval()
    rows = {"wmt14_en_xx": translations(), "gsm8k": [Row("1+1=", "2", task="gsm8k", id=str(i)) for i in range(2)]}
    scoring = Scoring(max_new_tokens=3)
    records = score_system("s", model, load_tokenizer(str(tiny["base"])), rows, scoring, {})
    assert [r.get("metric") for r in records] == [{"translation": 5}, {"math": 2}, None]
    values = row_values(records[0], "chrf")
    assert len(values) == 5 and paired_difference({"t": values}, {"t": values})["p"] == 1.0
    with pytest.raises(DataError, match="have no 'chrf'"):
        row_values(records[1], "chrf")
    assert _judged_by(records[1]) == "math" != _judged_by({})
