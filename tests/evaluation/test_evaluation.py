"""Scores are right: shared prefixes, padding and batches change nothing, and lm-eval decides alike."""

from __future__ import annotations

import json

import pytest
import torch

import radargate
from radargate.base_models.loading import load_tokenizer
from radargate.data.prompts import encode_row
from radargate.data.rows import Row
from radargate.data.sources import load_rows
from radargate.evaluation.metrics import RowScore, paired_difference, summarise, summarise_tasks
from radargate.evaluation.options import Scoring
from radargate.evaluation.run import evaluate
from radargate.evaluation.scoring import Scorer, generate
from radargate.training.texts import routers_of
from sweeps import pairs


def rows(count: int = 14) -> list[Row]:
    words = ["red", "green apple", "x", "yes it is", "no"]
    made = []
    for i in range(count):
        choices = tuple(words[(i + j) % 5] for j in range(2 + i % 3))
        made.append(
            Row(f"question {'very ' * (i % 4)}{i}?", choices[i % len(choices)], choices, i % len(choices), "t", str(i))
        )
    return made


def composed(zoo, family="llama", **kwargs):
    return radargate.compose(str(zoo[family]["base"]), zoo[family]["adapters"], **{"gate": "radar", **kwargs}).eval()


def direct(model, tokenizer, row, text, seq2seq) -> tuple[float, float]:
    """Log-likelihood of one candidate by itself: no batch, no padding, no cache."""
    pair = encode_row(row.prompt, text, tokenizer, seq2seq)
    if seq2seq:
        labels = torch.tensor([pair.continuation])
        logits = model(input_ids=torch.tensor([pair.context]), labels=labels).logits[0]
    else:
        ids = torch.tensor([pair.context + pair.continuation])
        logits = model(input_ids=ids).logits[0, len(pair.context) - 1 : -1]
    each = logits.log_softmax(-1).gather(-1, torch.tensor(pair.continuation)[:, None])[:, 0]
    return float(each.sum()), float(each[pair.lead :].sum())


@pytest.mark.parametrize(
    ("family", "template", "options"), pairs(["llama", "gpt2", "t5"], [False, True], [{}, {"router": "text"}])
)
@torch.no_grad()
def test_shared_prefixes_and_padded_batches_give_the_loglikelihoods_of_single_rows(zoo, family, template, options):
    model, tokenizer = composed(zoo, family, **options), load_tokenizer(str(zoo[family]["base"]))
    if options:
        radargate.describe_texts(model, [[40, 41, 42], [50, 51, 52, 53], [60, 60]])
        torch.nn.init.normal_(routers_of(model)[0].softmax_router, generator=torch.Generator().manual_seed(0))
    if template:
        tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}{{ ':\n' }}"
    scores = Scorer(model, tokenizer, batch_size=5).score(rows())
    for row, score in zip(rows(), scores, strict=True):
        for text, got in zip(row.candidates, score.loglikelihoods, strict=True):
            assert got == pytest.approx(direct(model, tokenizer, row, text, family == "t5")[0], abs=2e-4)
        gold = direct(model, tokenizer, row, row.target, family == "t5")[1]
        assert score.nll_sum == pytest.approx(-gold, abs=2e-4)
        assert score.correct == (
            max(range(len(score.loglikelihoods)), key=score.loglikelihoods.__getitem__) == row.answer_index
        )


@pytest.mark.parametrize("template", [False, True])
def test_lm_eval_makes_the_same_decision_on_every_row(zoo, template, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval_decisions import decisions

    assert lm_eval
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    model, tokenizer = composed(zoo), load_tokenizer(str(zoo["llama"]["base"]))
    if template:
        tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}{{ ':\n' }}"
    ours = [(s.correct, s.correct_norm) for s in Scorer(model, tokenizer, batch_size=4).score(rows(30))]
    assert decisions(model, tokenizer, rows(30)) == ours
    assert 0 < sum(a for a, _ in ours) < 30


def test_free_answers_are_compared_after_strip_and_lower_case(zoo):
    model, tokenizer = composed(zoo), load_tokenizer(str(zoo["llama"]["base"]))
    answer = generate(model, tokenizer, ["1+1="], max_new_tokens=4)[0]
    right = Row("1+1=", f" {answer.upper()} " if answer else "?", task="t", id="0")
    wrong = Row("1+1=", answer + "!", task="t", id="1")
    scores = Scorer(model, tokenizer, max_new_tokens=4).score([right, wrong])
    assert scores[0].correct == bool(answer) and not scores[1].correct
    assert scores[0].tokens > 0


def test_labels_take_the_form_of_the_target():
    row = Row("?", "(B)", ("cat", "dog", "cow"), 1)
    assert row.candidates == ("(A)", "(B)", "(C)")
    assert Row("?", "dog", ("cat", "dog"), 1).candidates == ("cat", "dog")
    assert Row("?", "2", ("cat", "dog"), 1).candidates == ("1", "2")


def test_intervals_hold_the_mean_and_pairs_beat_noise():
    scores = [RowScore(str(i), i % 4 != 0, i % 2 == 0, 0, 0, 2.0 + i % 3, 2) for i in range(60)]
    metrics = summarise(scores)
    assert metrics["acc"]["value"] == pytest.approx(0.75)
    assert metrics["acc"]["low"] < 0.75 < metrics["acc"]["high"]
    assert metrics["nll"]["value"] == pytest.approx(1.5)
    mean = summarise_tasks({"a": scores, "b": scores[:10]})
    assert mean["acc"]["value"] == pytest.approx((0.75 + 0.7) / 2)
    base = {"a": [s.nll for s in scores]}
    better = {"a": [s.nll - 0.1 for s in scores]}
    assert paired_difference(better, base)["p"] < 0.01
    assert paired_difference(base, base) == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_eval_scores_each_adapter_alone_and_keeps_complete_records(zoo, tasks, tmp_path):
    tiny = zoo["llama"]
    adapters = {name: str(path) for name, path in list(tiny["adapters"].items())[:2]}
    out = tmp_path / "scores.jsonl"
    records = evaluate(
        str(tiny["base"]),
        adapters,
        out,
        data=str(tasks),
        tasks=None,
        lm_eval_tasks=None,
        scoring=Scoring(limit=5, max_new_tokens=4),
        device="cpu",
    )
    assert [json.loads(line)["case"] for line in out.read_text().splitlines()] == [
        "math/add",
        "math/even",
        "math/mean",
        "law/add",
        "law/even",
        "law/mean",
    ]
    assert records[0]["metrics"]["n"] == 5 and len(records[0]["rows"]["correct"]) == 5
    assert records[0]["commit"] and records[0]["versions"]["torch"] and records[0]["data_hash"]
    assert records[0]["metrics"]["nll"]["value"] != records[3]["metrics"]["nll"]["value"]


def test_scoring_hands_the_head_whole_pieces_and_leaves_no_hook(zoo, tasks, load_tiny):
    model, seen = load_tiny(), []
    head = model.get_output_embeddings()
    watch = head.register_forward_hook(lambda _, args, output: seen.append(args[0].is_contiguous()))
    scorer = Scorer(model, load_tokenizer(str(zoo["llama"]["base"])), max_new_tokens=3)
    scorer.score(load_rows(tasks, "test")["add"])
    watch.remove()
    assert seen and all(seen) and not head._forward_pre_hooks
