"""The server as clients see it: over a real socket, with the official client."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

import radargate
from conftest import HANG, tiny_tokenizer
from radargate.base_models.loading import load_tokenizer
from radargate.cli import main
from radargate.composition.composing import radar_config, radar_layers
from radargate.errors import BundleError, RadarGateError
from radargate.evaluation.scoring import generate
from radargate.server.limits import Limits
from radargate.server.loaded import LoadedBundles
from radargate.server.run import make_server
from radargate.server.text import Writer

KEY = "sesame"


def save_bundle(zoo, folder, family="llama", gate="radar", seed=3):
    model = radargate.compose(str(zoo[family]["base"]), zoo[family]["adapters"], gate=gate, top_k=2, seed=seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in radar_layers(model):
            for parameter in layer.radar_gate.parameters():
                parameter += torch.randn(parameter.shape, generator=g) * 0.3
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundles(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    return {
        "first": str(save_bundle(zoo, root / "first")),
        "second": str(save_bundle(zoo, root / "second", gate="stretch", seed=8)),
    }


class Running:
    """A server in a thread."""

    def __init__(self, bundles, **limits):
        self.server = make_server(LoadedBundles(bundles), Limits(**limits), "127.0.0.1", 0)
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.server.run, args=([self.sock],))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.sock.getsockname()[1]}"
        self.engine = self.server.config.app.state.engine
        assert wait_until(lambda: self.server.started)
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key=KEY, max_retries=0, timeout=HANG)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.client.close()
        self.sock.close()

    def raw(self, fields, path="/v1/completions", **more):
        content = fields if isinstance(fields, (str, bytes)) else json.dumps(fields)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **more.pop("headers", {})}
        return httpx.post(self.url + path, content=content, headers=headers, timeout=HANG, **more)

    def complete(self, prompt="1+1=", model="first", max_tokens=12, temperature=0, experts=None, **more):
        body = {"experts": experts} if experts else {}
        return self.client.completions.create(
            model=model, prompt=prompt, max_tokens=max_tokens, temperature=temperature, extra_body=body, **more
        )

    def metrics(self):
        text = httpx.get(self.url + "/metrics").text
        return {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(text) for s in f.samples}


def wait_until(condition, seconds=HANG):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(scope="module")
def server(bundles):
    running = Running(bundles, api_key=KEY, max_tokens=450, slots=8)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def expected(bundles):
    """What `radargate generate` answers: (bundle, prompt, experts, tokens) → text."""
    loaded = {name: radargate.load(None, path) for name, path in bundles.items()}

    def answer(prompt, model="first", experts=None, tokens=12):
        composed = loaded[model]
        tokenizer = load_tokenizer(composed.get_base_model())
        with radargate.using(composed, experts or {}):
            return generate(composed, tokenizer, [prompt], max_new_tokens=tokens)[0]

    return answer


def test_models_are_listed(server):
    listed = server.client.models.list().data
    assert [m.id for m in listed] == ["first", "second"]
    assert listed[0].experts == ["math", "law", "code"]
    assert server.client.models.retrieve("second").id == "second"
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}


def test_greedy_answers_are_those_of_generate(server, expected):
    for model in ("first", "second"):
        for prompt in ("1+1=", "is a whale a fish?"):
            for experts in (None, {"law": 0.0}, {"math": 0.0, "code": 0.5}):
                got = server.complete(prompt, model, experts=experts)
                assert got.choices[0].text.strip() == expected(prompt, model, experts)
                chat = server.client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": prompt}],
                    max_completion_tokens=12,
                    temperature=0,
                    extra_body={"experts": experts} if experts else None,
                )
                assert chat.choices[0].message.content.strip() == expected(prompt, model, experts)
    assert got.usage.prompt_tokens == len("is a whale a fish?") and got.usage.completion_tokens <= 12
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert len({expected("1+1=", m, e) for m in ("first", "second") for e in (None, {"law": 0.0})}) > 1


def test_a_stream_is_the_answer_in_pieces(server):
    whole = server.complete("tell me", max_tokens=40).choices[0]
    for chat in (False, True):
        options = {
            "model": "first",
            "max_tokens": 40,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if chat:
            chunks = list(
                server.client.chat.completions.create(messages=[{"role": "user", "content": "tell me"}], **options)
            )
            assert chunks[0].choices[0].delta.role == "assistant"
            text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
        else:
            chunks = list(server.client.completions.create(prompt="tell me", **options))
            text = "".join(c.choices[0].text for c in chunks[:-1])
        assert text == whole.text and len(chunks) > 5
        assert chunks[-2].choices[0].finish_reason == whole.finish_reason
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 40


def test_prompts_are_texts_ids_or_lists_of_them(server):
    ids = tiny_tokenizer().encode("abc")
    texts = [c.text for c in server.complete(["abc", "longer than that"]).choices]
    assert texts == [server.complete(p).choices[0].text for p in ("abc", "longer than that")]
    assert server.complete(ids).choices[0].text == server.complete([ids]).choices[0].text == texts[0]


def test_stop_strings_end_an_answer_also_between_tokens(server):
    whole = server.complete("hello", max_tokens=60).choices[0].text
    stop = next(whole[i : i + 3] for i in range(4, len(whole) - 3) if whole[i : i + 3].isprintable())
    for stream in (False, True):
        got = server.complete("hello", max_tokens=60, stop=["never there", stop], stream=stream)
        chunks = list(got) if stream else [got]
        assert "".join(c.choices[0].text for c in chunks) == whole[: whole.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_several_answers_and_seeds(server):
    def sampled(**more):
        return [c.text for c in server.complete("x", temperature=1.3, top_p=0.95, n=2, max_tokens=20, **more).choices]

    alone = sampled(seed=5)
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(6) as pool:  # in other company
        together = list(pool.map(lambda i: sampled(seed=5 if i % 2 else i), range(6)))
    assert together[1] == together[3] == together[5] == alone and together[0] != alone
    assert sampled() != sampled()


def test_logprobs_are_the_models(server, bundles):
    got = server.complete("ab", logprobs=3, max_tokens=6).choices[0]
    model = radargate.load(None, bundles["first"])
    ids, fresh = tiny_tokenizer().encode("ab"), []
    with torch.no_grad():
        for _ in range(len(got.logprobs.tokens)):
            logs = model(input_ids=torch.tensor([ids + fresh])).logits[0, -1].log_softmax(-1)
            fresh.append(int(logs.argmax()))
            at = len(fresh) - 1
            assert got.logprobs.token_logprobs[at] == pytest.approx(float(logs.max()), abs=1e-4)
            assert sorted(got.logprobs.top_logprobs[at].values(), reverse=True) == pytest.approx(
                logs.topk(3).values.tolist(), abs=1e-4
            )
    chat = server.client.chat.completions.create(
        model="first",
        messages=[{"role": "user", "content": "ab"}],
        max_tokens=6,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    content = chat.choices[0].logprobs.content
    assert [c.logprob for c in content] == pytest.approx(got.logprobs.token_logprobs, abs=1e-4)
    assert all(len(c.top_logprobs) == 2 for c in content)


def test_masks_do_not_reach_other_requests(server, expected):
    masks = ({"law": 0.0}, {"math": 0.0}, None, {"law": 0.0, "code": 0.0})
    asked = [(f"question {i}", ("first", "second")[i // 4 % 2], masks[i % 4]) for i in range(32)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda a: server.complete(a[0], a[1], experts=a[2], max_tokens=16).choices[0].text, asked))
    assert [text.strip() for text in got] == [expected(*a, tokens=16) for a in asked]


def test_a_client_that_leaves_frees_its_slot(server):
    before = server.metrics()[("radargate_cancelled_total",)]
    stream = server.complete("long", max_tokens=450, stream=True, experts={"law": 0.5})
    next(iter(stream))
    assert server.engine.running == 1
    stream.close()
    assert wait_until(lambda: server.engine.running == 0)
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            server.url + "/v1/completions",
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=0.15,
            json={"model": "first", "prompt": "y", "max_tokens": 450, "n": 8},
        )
    assert wait_until(lambda: server.engine.running == 0 and server.engine.waiting == 0)
    assert server.metrics()[("radargate_cancelled_total",)] >= before + 2


def test_a_full_queue_and_a_shutdown(bundles):
    running = Running({"only": bundles["first"]}, slots=1, queue=2, max_tokens=450)
    begun = threading.Event()

    def long():
        stream = running.complete("q", "only", max_tokens=450, stream=True)
        texts = []
        for chunk in stream:
            begun.set()
            texts.append(chunk)
        return texts

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(long)
        assert begun.wait(HANG)
        with pytest.raises(openai.RateLimitError, match="the queue is full"):
            running.complete("q", "only", n=3)
        waiting = pool.submit(lambda: running.complete("q", "only", max_tokens=3))
        wait_until(lambda: running.engine.waiting == 1 or waiting.done())
        running.stop()  # both are finished first
        assert first.result()[-1].choices[0].finish_reason == "length"
        assert waiting.result().choices[0].finish_reason == "length"
    with pytest.raises(httpx.ConnectError):
        httpx.get(running.url + "/health")


MESSAGES = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("fields", "path", "status", "param", "message"),
    [
        ("{not json", "completions", 400, None, "not JSON"),
        ("[1]", "completions", 400, None, "expected an object"),
        ({"model": "frist"}, "completions", 404, "model", "Did you mean 'first'"),
        ({"prompt": "x"}, "completions", 400, "model", "expected one of"),
        ({"model": "first"}, "completions", 400, "prompt", "prompt is missing"),
        ({"model": "first", "prompt": ""}, "completions", 400, "prompt", "no tokens"),
        ({"model": "first", "prompt": [9999]}, "completions", 400, "prompt", "outside of 0 to 257"),
        ({"model": "first", "prompt": "x", "temperature": -1}, "completions", 400, "temperature", "from 0 to 2"),
        ({"model": "first", "prompt": "x", "temperature": "hot"}, "completions", 400, "temperature", "'hot'"),
        ({"model": "first", "prompt": "x", "top_p": 0}, "completions", 400, "top_p", "above 0"),
        ({"model": "first", "prompt": "x", "n": 0}, "completions", 400, "n", "whole number"),
        ({"model": "first", "prompt": "x", "max_tokens": 0}, "completions", 400, "max_tokens", "from 1 to 450"),
        ({"model": "first", "prompt": "x", "max_tokens": 451}, "completions", 400, "max_tokens", "from 1 to 450"),
        ({"model": "first", "prompt": "x" * 500, "max_tokens": 13}, "completions", 400, "max_tokens", "context 512"),
        ({"model": "first", "prompt": "x", "stop": [""]}, "completions", 400, "stop", "none empty"),
        ({"model": "first", "prompt": "x", "experts": {"lwa": 0}}, "completions", 400, "experts", "Did you mean 'law'"),
        ({"model": "first", "prompt": "x", "experts": {"law": -1}}, "completions", 400, "experts", "finite number"),
        (
            {"model": "first", "prompt": "x", "experts": {"law": 1e39}},
            "completions",
            400,
            "experts",
            "at most 1,000,000",
        ),
        (
            {"model": "first", "prompt": "x", "experts": {"law": 10**400}},
            "completions",
            400,
            "experts",
            "at most 1,000,000",
        ),
        ({"model": "first", "prompt": "x", "temperature": 10**400}, "completions", 400, "temperature", "from 0 to 2"),
        ({"model": "first", "prompt": "\ud83d"}, "completions", 400, None, "not JSON"),
        ({"\ud800": 1}, "completions", 400, None, "not JSON"),
        ({"model": "first", "prompt": "x", "experts": ["law"]}, "completions", 400, "experts", "expected an object"),
        (
            {"model": "first", "prompt": "x", "temprature": 1},
            "completions",
            400,
            "temprature",
            "Did you mean 'temperature'",
        ),
        (
            {"model": "first", "prompt": "x", "frequency_penalty": 1},
            "completions",
            400,
            "frequency_penalty",
            "not supported",
        ),
        (
            {"model": "first", "prompt": "x", "stream_options": {"include_usage": True}},
            "completions",
            400,
            "stream_options",
            "only for",
        ),
        ({"model": "first", "messages": []}, "chat/completions", 400, "messages", "missing or empty"),
        (
            {"model": "first", "messages": [{"role": "tool", "content": "x"}]},
            "chat/completions",
            400,
            "messages",
            "'tool'",
        ),
        (
            {"model": "first", "messages": [{"role": "user", "content": 3}]},
            "chat/completions",
            400,
            "messages",
            "expected text",
        ),
        (
            {"model": "first", "messages": [{**MESSAGES[0], "nmae": "Ada"}]},
            "chat/completions",
            400,
            "messages[0]",
            "'nmae'",
        ),
        (
            {"model": "first", "messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            "chat/completions",
            400,
            "messages",
            "type is 'image_url', expected 'text'",
        ),
        (
            {"model": "first", "messages": MESSAGES, "stream": True, "stream_options": {"usage": True}},
            "chat/completions",
            400,
            "stream_options",
            "'include_usage'",
        ),
        (
            {"model": "first", "messages": MESSAGES, "top_logprobs": 2},
            "chat/completions",
            400,
            "top_logprobs",
            "needs logprobs",
        ),
        ({"model": "first", "messages": MESSAGES, "tools": [{}]}, "chat/completions", 400, "tools", "not supported"),
        ({"model": "first", "prompt": ["x", []]}, "completions", 400, "prompt", "expected text, token ids, or a list"),
        (
            {"model": "first", "messages": [{"role": "user"}]},
            "chat/completions",
            400,
            "messages",
            "messages[0].content is missing",
        ),
        (
            {"model": "first", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": 1}},
            "chat/completions",
            400,
            "stream_options",
            "stream_options.include_usage is 1, expected true or false",
        ),
        ({}, "embeddings", 404, None, "There are /v1/models"),
    ],
)
def test_wrong_requests_get_openais_error(server, fields, path, status, param, message):
    response = server.raw(fields, f"/v1/{path}")
    error = response.json()["error"]
    assert response.status_code == status and error["param"] == param and message in error["message"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_the_clients_errors_keys_and_large_bodies(server):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError, match="Did you mean 'first'"):
        server.complete(model="firts")
    with pytest.raises(openai.BadRequestError, match="Did you mean 'law'"):
        server.complete(experts={"lawn": 0})
    assert server.raw(b"x" * 4_100_000).status_code == 413


def test_metrics_can_be_parsed_and_count(server):
    before = server.metrics()
    server.complete("abc", max_tokens=5)
    after = server.metrics()

    def rise(*key):
        return after[key] - before.get(key, 0)

    assert rise("radargate_requests_total", "/v1/completions", "200") == 1
    assert rise("radargate_prompt_tokens_total") == 3 and 1 <= rise("radargate_generated_tokens_total") <= 5
    assert rise("radargate_request_seconds_count", "/v1/completions") == 1
    assert after[("radargate_queue_length",)] == after[("radargate_running",)] == 0


def test_gpt2_has_its_own_positions_and_is_served(zoo, tmp_path):
    bundle = str(save_bundle(zoo, tmp_path / "gpt2", "gpt2"))
    model = radargate.load(None, bundle)
    prompts = ["a", "a longer prompt", "x y"]
    want = [generate(model, load_tokenizer(model.get_base_model()), [p], max_new_tokens=10)[0] for p in prompts]
    running = Running({"gpt2": bundle})
    got = [c.text.strip() for c in running.complete(prompts, "gpt2", max_tokens=10).choices]
    running.stop()
    assert got == want


def test_a_bundle_with_gates_only_joins_another(zoo, tmp_path):
    adapters, made = zoo["llama"]["adapters"], {}
    for name, experts in (("own", ("math", "code")), ("gates", ("law", "code"))):
        model = radargate.compose(str(zoo["llama"]["base"]), {e: adapters[e] for e in experts}, top_k=1).eval()
        radar_config(model).gate_only = name == "gates"
        model.save_pretrained(tmp_path / name)
        made[name] = model
    loaded, ids = LoadedBundles({name: str(tmp_path / name) for name in made}), torch.arange(5, 25)[None]
    for name in ("own", "gates", "own"):
        with torch.no_grad():
            got, want = (m(input_ids=ids).logits for m in (loaded.activate(name), made[name]))
        torch.testing.assert_close(got, want)
    with pytest.raises(RadarGateError, match="Unknown expert 'math'"):
        loaded.mask("gates", {"math": 0})


def test_what_cannot_be_served_is_refused_at_the_start(zoo, tmp_path, bundles, capsys):
    with pytest.raises(RadarGateError, match="causal model"):
        LoadedBundles({"t5": str(save_bundle(zoo, tmp_path / "t5", "t5"))})
    with pytest.raises(RadarGateError, match=r"TutelGate at .* depend on the other tokens"):
        radargate.compose(
            str(zoo["llama"]["base"]), zoo["llama"]["adapters"], gate="tutel", top_k=2, capacity=1.0
        ).save_pretrained(tmp_path / "tutel")
        LoadedBundles({"first": bundles["first"], "tutel": str(tmp_path / "tutel")})
    with pytest.raises(BundleError, match="One server holds one base"):
        LoadedBundles({"first": bundles["first"], "gpt2": str(save_bundle(zoo, tmp_path / "gpt2", "gpt2"))})
    assert main(["serve", bundles["first"], bundles["first"]]) == 1
    assert "two bundles are called 'first'" in capsys.readouterr().err


def test_a_missing_extra_is_one_line(bundles, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert main(["serve", bundles["first"]]) == 1
    assert "radargate serve needs uvicorn" in (said := capsys.readouterr().err) and "radargate[serve]" in said


def test_text_is_certain_before_it_is_told():
    tokenizer = tiny_tokenizer()

    def told(text, stops=()):
        writer, pieces = Writer(tokenizer, stops), []
        for token in tokenizer.encode(text):
            pieces.append(writer.add(token))
            if writer.stopped:
                break
        return [*pieces, writer.finish()]

    assert told("aé😀b") == ["a", "", "é", "", "", "", "😀", "b", ""]
    assert told("abcabd", ("abd",)) == ["", "", "abc", "", "", "", ""]
    assert told("xaab", ("aac", "ab")) == ["x", "", "", "a", ""]
    assert "".join(told("ends with ab", ("abc",))) == "ends with ab"
    assert "".join(told("né", ("é",))) == "n"
