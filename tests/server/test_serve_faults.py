"""A server at its edges: what fails stays with whom it belongs to, and odd requests, tokens and numbers are borne."""

from __future__ import annotations

import logging
import socket

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from radargate.cli import main
from radargate.server.answers import Answer
from radargate.server.batch import Batch
from radargate.server.engine import QueueFull
from radargate.server.jobs import Group
from radargate.server.requests import AnswerRequest, ChatBody, CompletionBody
from radargate.server.run import address
from radargate.server.sampling import Chooser, Chosen, Sampling
from test_serve import MESSAGES, Running, save_bundle, wait_until


@pytest.fixture(scope="module")
def bundle(zoo, tmp_path_factory):
    return str(save_bundle(zoo, tmp_path_factory.mktemp("faults") / "first"))


@pytest.fixture(scope="module")
def server(bundle):
    running = Running({"first": bundle}, max_tokens=450, slots=8)
    yield running
    running.stop()


def test_a_prompt_that_cannot_be_read_takes_no_running_answer_with_it(server, monkeypatch):
    read = Batch._read

    def fails(self, model, ids, mask, cache):
        if ids.shape[1] == 2:
            raise MemoryError("no room for two tokens")
        return read(self, model, ids, mask, cache)

    monkeypatch.setattr(Batch, "_read", fails)
    stream = iter(server.complete("q", max_tokens=450, stream=True))
    next(stream)
    refused = server.raw({"model": "first", "prompt": [7, 8], "temperature": 0})
    assert server.engine.running == 1, "the stream was to run beside it"
    assert refused.status_code == 500 and "no room for two tokens" in refused.json()["error"]["message"]
    assert list(stream)[-1].choices[0].finish_reason in ("length", "stop")
    assert server.raw({"model": "first", "prompt": [7, 8]}).status_code == 500, "and alone it fails too"


def test_the_engine_outlives_a_cache_that_cannot_be_made_smaller(server, monkeypatch):
    def fails(self, rows):
        raise MemoryError("no room")

    monkeypatch.setattr(Batch, "keep", fails)
    stream = server.complete("q", max_tokens=450, stream=True)
    next(iter(stream))
    stream.close()
    assert wait_until(lambda: server.engine.running == 0)
    monkeypatch.undo()
    assert server.engine.alive and server.complete("x").choices[0].finish_reason


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_has_ended_refuses_instead_of_letting_wait(bundle):
    running = Running({"first": bundle})
    running.engine._admit = None  # the next pass cannot call it
    running.engine.between(int).result(30)
    assert wait_until(lambda: not running.engine.alive)
    with pytest.raises(QueueFull, match="has failed"):
        running.engine.between(int)
    answer = running.raw({"model": "first", "prompt": "x"})
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "server_error"
    running.stop()


def test_a_failure_of_the_server_is_counted_as_one(server, monkeypatch):
    def fails(name):
        raise KeyError(name)

    monkeypatch.setattr(server.engine.bundles, "config", fails)
    assert httpx.get(server.url + "/v1/models").status_code == 500
    assert server.metrics()[("radargate_requests_total", "/v1/models", "500")] == 1


def test_a_client_that_leaves_while_it_sends_is_no_failure(server, caplog):
    key = ("radargate_requests_total", "/v1/completions", "499")
    before, logger = server.metrics().get(key, 0), logging.getLogger("uvicorn.error")
    logger.addHandler(caplog.handler)
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port)) as half:
        half.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
    assert wait_until(lambda: server.metrics().get(key, 0) == before + 1, 10)
    logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_low_limit_is_the_default_too_and_names_may_hold_a_slash(bundle):
    running = Running({"org/first": bundle}, max_tokens=8)
    answer = running.raw({"model": "org/first", "prompt": "x", "temperature": 0})
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 8
    assert running.client.models.retrieve("org/first").id == "org/first"
    missing = httpx.get(running.url + "/v1/models/org/frist")
    assert missing.status_code == 404 and "Did you mean 'org/first'" in missing.json()["error"]["message"]
    running.stop()


def test_what_says_nothing_may_stand_beside_a_message(server):
    said = {"role": "user", "content": [{"type": "text", "text": "x"}], "name": None, "tool_calls": []}
    fields = {"model": "first", "max_tokens": 3, "temperature": 0}
    answers = [
        server.raw({**fields, "messages": messages}, "/v1/chat/completions").json() for messages in ([said], MESSAGES)
    ]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_a_factor_too_small_for_float32_is_zero(server):
    assert server.engine.bundles.mask("first", {"law": 1e-50, "math": 1}) == (("law", 0.0),)


def test_tokens_look_different_also_where_a_decoder_drops_leading_spaces():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "▁a": 1, "a": 2, "s": 3}, unk_token="<unk>"))
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    tokens = [(Chosen(i, -1.0, ((1, -1.0), (2, -2.0))), 0) for i in (1, 3, 1)]

    def logprobs(chat):
        body = (ChatBody if chat else CompletionBody).model_construct(model="m")
        request = AnswerRequest(body, Group("m", ()), [[1]], Sampling(logprobs=2))
        return Answer(request, tokenizer)._logprobs(tokens)

    plain, chat = logprobs(False), logprobs(True)["content"]
    assert plain["tokens"] == [" a", "s", " a"] and plain["top_logprobs"][0] == {" a": -1.0, "a": -2.0}
    assert [one["token"] for one in chat] == plain["tokens"] and chat[0]["bytes"] == list(b" a")


def test_logprobs_are_the_models_own_whatever_the_penalty():
    logits = torch.tensor([2.0, 1.5, -1.0])
    chosen = Chooser(Sampling(logprobs=3), repetition_penalty=2.0, prompt=[0]).choose(logits)
    own = logits.log_softmax(-1).tolist()
    assert chosen.id == 1 and chosen.logprob == pytest.approx(own[1])
    assert dict(chosen.top) == pytest.approx(dict(enumerate(own)))


def test_every_token_that_was_chosen_is_penalised_next_time():
    chooser = Chooser(Sampling(), repetition_penalty=2.0, prompt=[3, 3])
    logits = torch.tensor([2.0, 1.5, -1.0, 2.5])
    assert [chooser.choose(logits).id for _ in range(4)] == [0, 1, 3, 3]


def test_a_tiny_temperature_takes_the_likeliest():
    logits = torch.tensor([1.0, 3.0, -float("inf"), 2.0])
    for top_p in (1.0, 0.5):
        assert Chooser(Sampling(temperature=1e-310, top_p=top_p, seed=1)).choose(logits).id == 1


def test_ports_and_addresses(capsys):
    for port in ("80000", "-1"):
        with pytest.raises(SystemExit):
            main(["serve", "nowhere", "--port", port])
        assert "is not within 0 to 65535" in capsys.readouterr().err
    assert address("127.0.0.1", 80) == "http://127.0.0.1:80" and address("::1", 80) == "http://[::1]:80"
