"""Requests as real clients send them: neutral fields, prompts sent back with log-probabilities, web pages and other hosts."""

from __future__ import annotations

import gzip
import json

import httpx
import openai
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import radargate
from conftest import HANG, tiny_tokenizer
from radargate.cli import main
from radargate.errors import OptionError
from radargate.server.guard import Guard
from radargate.server.limits import Limits
from radargate.server.text import prompt_text
from test_serve import MESSAGES, Running, bundles, server  # noqa: F401

TEXT, PROMPT = {"model": "first", "max_tokens": 4, "temperature": 0}, "is it so?"
CHAT = {**TEXT, "messages": MESSAGES}


@pytest.fixture(scope="module")
def open_server(bundles):  # noqa: F811
    """Without a key, with one origin and one host more."""
    limits = {"allow_origin": ("http://localhost:3000",), "allowed_host": ("*.example.org",)}
    running = Running({"first": bundles["first"]}, **limits)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def closed_server(bundles):  # noqa: F811
    running = Running({"first": bundles["first"]})
    yield running
    running.stop()


def ask(running, fields):
    chat = "messages" in fields
    response = running.raw(fields, "/v1/chat/completions" if chat else "/v1/completions")
    return response.status_code, response.json()


@pytest.mark.parametrize(
    "more",
    [
        {"store": False, "metadata": {}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
        {"service_tier": "auto", "parallel_tool_calls": True, "prompt_cache_retention": "24h", "store": True},
        {"reasoning_effort": "none", "verbosity": "medium", "modalities": ["text"], "audio": None, "prediction": None},
        {"reasoning_effort": "medium", "web_search_options": None, "moderation": None},
        {"logit_bias": {}, "tools": [], "tool_choice": "none", "functions": [], "function_call": "none", "n": 1},
        {"tools": None, "tool_choice": "auto", "response_format": {"type": "text"}, "stop": None, "seed": None},
        {"frequency_penalty": 0.0, "presence_penalty": 0, "top_k": -1, "repetition_penalty": 1.0, "min_p": 0},
        {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "top_logprobs": 0, "logprobs": False},
        {"keep_alive": "5m", "cache_prompt": True, "chat_template_kwargs": {}, "echo": False},
        {"stream_options": None, "max_completion_tokens": None, "top_p": 1},
        {"messages": [{**MESSAGES[0], "name": "ann", "cache_control": {"type": "ephemeral"}}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
            ]
        },
    ],
    ids=lambda more: next(iter(more)),
)
def test_fields_that_ask_for_nothing_pass(server, more):  # noqa: F811
    status, answer = ask(server, {**CHAT, **more})
    assert status == 200, answer
    assert answer["choices"] == ask(server, CHAT)[1]["choices"]


def test_an_answer_can_be_sent_back_whole(server):  # noqa: F811
    told = server.client.chat.completions.create(**CHAT).choices[0].message
    again = server.client.chat.completions.create(**{**CHAT, "messages": [*MESSAGES, told, *MESSAGES]})
    assert again.choices[0].message.content is not None
    empty = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [], "annotations": [], "audio": None}
    bare = ask(server, {**CHAT, "messages": [*MESSAGES, {"role": "assistant", "content": ""}, *MESSAGES]})
    assert ask(server, {**CHAT, "messages": [*MESSAGES, empty, *MESSAGES]})[1]["choices"] == bare[1]["choices"]
    assert ask(server, {**CHAT, "messages": [{"role": "developer", "content": "x"}, *MESSAGES]})[0] == 200


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"reasoning_effort": "high"}, "reasoning_effort", "reasoning_effort is not supported"),
        ({"verbosity": "low"}, "verbosity", "not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"top_k": 20}, "top_k", "not supported"),
        ({"min_p": 0.1}, "min_p", "not supported"),
        ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
        ({"echo": True}, "echo", "not supported"),
        ({"web_search_options": {}}, "web_search_options", "not supported"),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "messages",
            "tool_calls is not",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "content is missing"),
        ({"messages": [{**MESSAGES[0], "tool_call_id": "1"}]}, "messages", "tool_call_id is not supported"),
        ({"messages": [{**MESSAGES[0], "refusal": "no"}]}, "messages", "refusal is not supported"),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_what_would_change_an_answer_is_refused_by_name(server, more, param, message):  # noqa: F811
    status, answer = ask(server, {**CHAT, **more})
    assert (status, answer["error"]["param"]) == (400, param) and message in answer["error"]["message"]


def test_streams_take_openais_options(server):  # noqa: F811
    options = {"include_usage": True, "include_obfuscation": False}
    chunks = list(server.client.chat.completions.create(**CHAT, stream=True, stream_options=options))
    assert chunks[-1].usage.completion_tokens == 4


def test_a_repetition_penalty_is_that_of_generate(server, bundles):  # noqa: F811
    model, tokenizer = radargate.load(None, bundles["first"]), tiny_tokenizer()
    ids = torch.tensor([tokenizer.encode("abcab ")])
    want = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, repetition_penalty=5.0, eos_token_id=1)
    fields = {**TEXT, "prompt": ids[0].tolist(), "max_tokens": 12, "repetition_penalty": 5.0}
    got = ask(server, {**fields, "return_token_ids": True})[1]["choices"][0]
    assert got["token_ids"] == [token for token in want[0, ids.shape[1] :].tolist() if token != 1]
    assert ask(server, {**fields, "repetition_penalty": 1.0})[1]["choices"][0]["text"] != got["text"]


@pytest.mark.parametrize("prompt", [PROMPT, tiny_tokenizer().encode(PROMPT), "x" * 300])
def test_a_prompt_comes_back_with_the_models_logprobs(server, bundles, prompt):  # noqa: F811
    ids = prompt if isinstance(prompt, list) else tiny_tokenizer().encode(prompt)
    alone = server.complete(prompt, max_tokens=5, logprobs=2).choices[0]
    got = server.complete(prompt, max_tokens=5, logprobs=2, echo=True).choices[0]
    text = tiny_tokenizer().decode(ids)
    assert got.text == text + alone.text
    count = len(ids)
    assert got.logprobs.tokens[count : count + len(alone.logprobs.tokens)] == alone.logprobs.tokens
    assert got.logprobs.text_offset[: count + 1] == [*range(count), len(text)]
    assert got.logprobs.token_logprobs[0] is None and got.logprobs.top_logprobs[0] is None
    with torch.no_grad():
        logs = radargate.load(None, bundles["first"])(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    want = logs[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert got.logprobs.token_logprobs[1:count] == pytest.approx(want.tolist(), abs=1e-4)
    for at, top in enumerate(got.logprobs.top_logprobs[1:count]):
        assert sorted(top.values(), reverse=True) == pytest.approx(logs[at].topk(2).values.tolist(), abs=1e-4)


def test_prompts_of_several_requests_are_echoed_beside_others(server):  # noqa: F811
    got = server.complete(["abc", "defg"], max_tokens=1, echo=True, logprobs=1, n=2)
    assert [choice.text[:3] for choice in got.choices] == ["abc", "abc", "def", "def"]
    assert [len(choice.logprobs.tokens) for choice in got.choices] == [
        4,
        4,
        5,
        5,
    ]  # one behind each, as lm-eval counts on
    assert got.usage.prompt_tokens == 7
    read = ask(server, {**TEXT, "prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1})[1]["choices"][0]
    assert (read["text"], read["finish_reason"], len(read["logprobs"]["tokens"])) == ("abc", "length", 3)
    plain = ask(server, {**TEXT, "prompt": "abc", "echo": True, "return_token_ids": True})[1]["choices"][0]
    assert plain["text"].startswith("abc") and plain["logprobs"] is None and len(plain["prompt_token_ids"]) == 3
    noted = ask(server, {**TEXT, "prompt": "abc", "echo": True, "logprobs": 0, "return_token_ids": True})[1]["choices"][
        0
    ]
    assert (
        noted["token_ids"]
        == ask(server, {**TEXT, "prompt": "abc", "return_token_ids": True})[1]["choices"][0]["token_ids"]
    )
    chunks = list(server.complete("abc", max_tokens=4, echo=True, logprobs=1, stream=True))
    assert chunks[0].choices[0].text == "abc" and len(chunks[0].choices[0].logprobs.tokens) == 3
    assert "".join(c.choices[0].text for c in chunks) == server.complete("abc", max_tokens=4, echo=True).choices[0].text


def test_a_stop_string_in_the_prompt_ends_nothing(server):  # noqa: F811
    whole = server.complete("abc", max_tokens=6).choices[0].text
    assert server.complete("abc", max_tokens=6, stop="b", echo=True).choices[0].text == "abc" + whole.split("b")[0]


def test_an_echo_shows_special_tokens_but_those_of_the_tokenizer_itself():
    tokenizer = tiny_tokenizer()
    ids = [1, *tokenizer.encode("aé"), 1, *tokenizer.encode("b")]
    assert prompt_text(ids, tokenizer) == ("</s>aé</s>b", [0, 4, 5, 5, 6, 10])
    encode = tokenizer.encode
    tokenizer.encode = lambda text, **more: [1, *encode(text, **more)]  # as one that begins every text by itself
    assert prompt_text(ids, tokenizer) == ("aé</s>b", [0, 0, 1, 1, 2, 6])


def test_a_written_prompt_comes_back_as_it_was_written():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "is": 1, "it": 2}, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert prompt_text([1, 2], tokenizer, "IS  it") == ("IS  it", [0, 4])
    assert prompt_text([1, 2, 1], tokenizer, "is") == ("is", [0, 2, 2])  # other tokens than those of the text alone
    assert prompt_text([1, 2], tokenizer)[0] == "is it"


BODY = json.dumps({**TEXT, "prompt": PROMPT})
JSON = {"content-type": "application/json"}


def post(running, headers, content=BODY):
    response = httpx.post(running.url + "/v1/completions", content=content, headers=headers, timeout=HANG)
    return response.status_code, (response.json().get("error") or {}).get("code")


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (JSON, (200, None)),
        ({"content-type": "application/json; charset=utf-8"}, (200, None)),
        ({"content-type": "application/vnd.api+json"}, (200, None)),
        ({**JSON, "authorization": "Bearer sk-none"}, (200, None)),
        ({**JSON, "host": "localhost:9000", "origin": "http://localhost:9000"}, (200, None)),  # through a tunnel
        ({**JSON, "origin": "http://other.example"}, (403, "origin_not_allowed")),
        ({**JSON, "origin": "null"}, (403, "origin_not_allowed")),
        ({**JSON, "origin": "http://127.0.0.1:1"}, (403, "origin_not_allowed")),
        ({**JSON, "origin": "http://other.example", "host": "other.example"}, (403, "host_not_allowed")),
        ({**JSON, "host": "localhost.other.example"}, (403, "host_not_allowed")),
        ({**JSON, "host": "10.0.0.5"}, (403, "host_not_allowed")),
        ({"content-type": "text/plain"}, (415, "unsupported_media_type")),
        ({"content-type": "application/x-www-form-urlencoded"}, (415, "unsupported_media_type")),
        ({"content-type": "text/plain;application/json"}, (415, "unsupported_media_type")),
        ({}, (415, "unsupported_media_type")),
    ],
    ids=lambda part: ",".join(part.values()) if isinstance(part, dict) else "",
)
def test_without_a_key_only_what_no_foreign_page_sends_is_answered(closed_server, headers, found):
    assert post(closed_server, headers) == found


def test_with_a_key_the_key_decides(server):  # noqa: F811
    headers = {"host": "proxy.example", "origin": "http://other.example", "content-type": "text/plain"}
    assert server.raw({**TEXT, "prompt": PROMPT}, headers=headers).status_code == 200
    assert post(server, JSON)[0] == 401


def test_origins_and_hosts_that_were_named_are_let_in(open_server, closed_server):
    page = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    wanted = {"access-control-request-headers": "content-type,x-stainless-lang"}
    first = httpx.options(open_server.url + "/v1/chat/completions", headers={**page, **wanted})
    assert first.status_code == 200 and first.headers["access-control-allow-origin"] == page["origin"]
    assert "x-stainless-lang" in first.headers["access-control-allow-headers"]
    answer = httpx.post(open_server.url + "/v1/completions", content=BODY, headers={**JSON, **page}, timeout=HANG)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == page["origin"]
    assert post(open_server, {**JSON, "origin": "http://other.example"}) == (403, "origin_not_allowed")
    assert post(open_server, {**JSON, "host": "api.example.org:80"}) == (200, None)
    assert post(open_server, {**JSON, "host": "example.com"}) == (403, "host_not_allowed")
    assert httpx.options(closed_server.url + "/v1/completions", headers=page).status_code == 403


def test_a_browser_asks_before_it_sends_the_key(bundles):  # noqa: F811
    running = Running({"first": bundles["first"]}, api_key="k", allow_origin=("*",))
    asks = {"origin": "http://any.example", "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "authorization"
    try:
        answer = httpx.options(running.url + "/v1/completions", headers=asks)
        refused = httpx.post(running.url + "/v1/completions", headers={"origin": "http://any.example"}, json={})
    finally:
        running.stop()
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "*"


def test_which_hosts_are_listened_on():
    def answered(host, *names):
        guard = Guard(Limits(), host)
        scopes = [{"path": "/", "method": "GET", "headers": [(b"host", name.encode())]} for name in names]
        return [guard.refusal(scope) is None for scope in scopes]

    assert answered("127.0.0.1", "127.0.0.1:80", "localhost", "LOCALHOST:1", "[::1]:80", "a.b") == [True] * 4 + [False]
    assert answered("10.0.0.5", "10.0.0.5", "localhost", "10.0.0.6") == [True, False, False]
    assert answered("0.0.0.0", "10.0.0.6:80", "[fe80::1]:80", "localhost", "evil.example") == [True] * 3 + [False]
    assert Guard(Limits(), "127.0.0.1").refusal({"path": "/", "method": "GET", "headers": []}) is None


def test_an_origin_that_is_none_and_a_packed_body_are_one_line(capsys, server):  # noqa: F811
    for wrong in ("localhost:3000", "http://a/b", "http://"):
        with pytest.raises(OptionError, match="allow_origin"):
            Limits(allow_origin=(wrong,))
    assert main(["serve", "nowhere", "--allow-origin", "here"]) == 1
    assert "--allow-origin here: expected a scheme" in capsys.readouterr().err
    answer = server.raw(gzip.compress(BODY.encode()), headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415 and "encoding 'gzip'" in answer.json()["error"]["message"]


def test_the_openai_client_needs_nothing_new(closed_server):
    client = openai.OpenAI(base_url=closed_server.url + "/v1", api_key="none", max_retries=0, timeout=HANG)
    assert client.completions.create(**TEXT, prompt=PROMPT).choices[0].finish_reason
    client.close()
