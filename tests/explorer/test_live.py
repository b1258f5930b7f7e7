"""The live page and its traces: over a real socket, and drawn by a real browser."""

from __future__ import annotations

import contextlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

import radargate
from conftest import HANG, tiny_tokenizer
from radargate.explorer.page import payload
from radargate.server.engine import MAX_TASKS, QueueFull
from test_explorer import CHARTS, unpacked
from test_serve import KEY, Running, save_bundle, wait_until

pytest.importorskip("plotly")
PROMPT = "is a whale a fish? né"


@pytest.fixture(scope="module")
def bundle(zoo, tmp_path_factory):
    return str(save_bundle(zoo, tmp_path_factory.mktemp("live") / "first"))


@pytest.fixture(scope="module")
def open_server(bundle):
    """A server that asks for no key."""
    running = Running({"first": bundle}, slots=8)
    yield running
    running.stop()


def ask(server, **more):
    fields = {"model": "first", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12, "temperature": 0}
    return server.raw({**fields, "return_token_ids": True, **more}, "/v1/chat/completions")


def complete(server, prompt, **more):
    return server.client.completions.create(
        model="first", prompt=prompt, max_tokens=12, temperature=0, extra_body={"return_token_ids": True}, **more
    )


def traced(server, prompt, answer, **more):
    fields = {"model": "first", "prompt_token_ids": prompt, "token_ids": answer, **more}
    return server.raw(fields, "/v1/traces")


def test_token_ids_come_where_they_are_asked_for(open_server):
    tokenizer, answer = tiny_tokenizer(), ask(open_server).json()
    prompt, choice = answer["prompt_token_ids"], answer["choices"][0]
    assert tokenizer.decode(prompt) == PROMPT and "prompt_token_ids" not in choice
    assert tokenizer.decode(choice["token_ids"], skip_special_tokens=True) == choice["message"]["content"]
    assert "token_ids" not in ask(open_server, return_token_ids=False).json()["choices"][0]
    made = complete(open_server, ["abc", "x"]).model_dump()["choices"]
    assert [one["prompt_token_ids"] for one in made] == [tokenizer.encode("abc"), tokenizer.encode("x")]
    chunks = complete(open_server, "abc", stream=True)
    ids = [chunk.model_dump()["choices"][0] for chunk in chunks]
    assert ids[0]["prompt_token_ids"] == tokenizer.encode("abc")
    assert [i for one in ids for i in one["token_ids"]] == made[0]["token_ids"]


@pytest.mark.parametrize("experts", [{}, {"law": 0.0}, {"math": 0.5, "code": 0.0}])
def test_a_trace_is_that_of_python(open_server, bundle, experts):
    answer = ask(open_server, experts=experts).json()
    prompt, ids = answer["prompt_token_ids"], answer["choices"][0]["token_ids"]
    found = traced(open_server, prompt, ids, experts=experts).json()
    model = radargate.load(None, bundle)
    with radargate.using(model, experts):
        want = payload(radargate.trace(model, prompt, answer=ids, tokenizer=tiny_tokenizer()))
    assert found["name"] == "first" and found["tokens"] == want["tokens"] and found["prompt"] == len(prompt)
    assert "é" in found["tokens"] and len(found["tokens"]) == len(prompt) + len(ids)
    assert found["nll"] == pytest.approx(want["nll"], abs=1e-3)
    assert found["effect"] == pytest.approx(want["effect"], abs=1e-3)
    for one, other in zip(found["sites"], want["sites"], strict=True):
        assert one["name"] == other["name"] and one["indices"] == other["indices"]
        torch.testing.assert_close(unpacked(one["weights"]), unpacked(other["weights"]), rtol=0, atol=1e-4)
    short = traced(open_server, prompt, ids, experts=experts, effect=False).json()
    assert short["effect"] == {} and short["nll"] == found["nll"]


def test_traces_between_the_steps_of_others_disturb_nobody(open_server):
    masks = [{}, {"law": 0.0}, {"math": 0.0}]
    alone = [ask(open_server, experts=mask, max_tokens=40).json()["choices"][0]["token_ids"] for mask in masks]
    prompt = tiny_tokenizer().encode(PROMPT)
    want = [traced(open_server, prompt, ids, experts=mask).json() for mask, ids in zip(masks, alone, strict=True)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            answers = [pool.submit(ask, open_server, experts=mask, max_tokens=40) for mask in masks]
            traces = [
                pool.submit(traced, open_server, prompt, ids, experts=m) for m, ids in zip(masks, alone, strict=True)
            ]
            assert [a.result().json()["choices"][0]["token_ids"] for a in answers] == alone
            for got, one in zip([t.result().json() for t in traces], want, strict=True):
                assert got["nll"] == pytest.approx(one["nll"], abs=1e-3) and got["effect"] == pytest.approx(
                    one["effect"], abs=1e-3
                )


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ("{no", 400, None, "not JSON"),
        ({}, 400, "model", "expected one of: first"),
        ({"model": "frist"}, 404, "model", "Did you mean 'first'"),
        ({"model": "first"}, 400, "prompt_token_ids", "missing or empty"),
        ({"model": "first", "prompt_token_ids": "abc"}, 400, "prompt_token_ids", "expected token ids"),
        ({"model": "first", "prompt_token_ids": [999]}, 400, "prompt_token_ids", "outside of 0 to 257"),
        ({"model": "first", "prompt_token_ids": [5], "token_ids": [True]}, 400, "token_ids", "expected token ids"),
        ({"model": "first", "prompt_token_ids": [5] * 513}, 400, "token_ids", "has 513 tokens, a trace at most 512"),
        ({"model": "first", "prompt_token_ids": [5], "experts": {"lwa": 0}}, 400, "experts", "Did you mean 'law'"),
        ({"model": "first", "prompt_token_ids": [5], "effect": 1}, 400, "effect", "expected true or false"),
        ({"model": "first", "prompt_token_ids": [5], "effects": True}, 400, "effects", "Did you mean 'effect'"),
    ],
)
def test_wrong_requests_for_a_trace_get_openais_error(open_server, fields, status, param, message):
    response = open_server.raw(fields, "/v1/traces")
    error = response.json()["error"]
    assert response.status_code == status and error["param"] == param and message in error["message"]


@contextlib.contextmanager
def busy(engine):
    """A task that holds the engine until the block ends; gives what it promised."""
    hold, begun = threading.Event(), threading.Event()

    def held():
        begun.set()
        return hold.wait(HANG)

    promised = engine.between(held)
    assert begun.wait(HANG)
    try:
        yield promised
    finally:
        hold.set()
    assert promised.result(30) is True


def test_tasks_wait_their_turn_have_a_limit_and_keep_their_errors(bundle):
    running = Running({"first": bundle})
    with busy(running.engine):
        waiting = [running.engine.between(lambda i=i: 1 // i) for i in range(MAX_TASKS)]
        with pytest.raises(QueueFull, match="requests of this kind wait"):
            running.engine.between(int)
        refused = traced(running, [5, 6], [])
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        waiting[2].cancel()
    assert waiting[1].result(30) == 1
    assert isinstance(waiting[0].exception(30), ZeroDivisionError)
    running.stop()  # what waits is done first
    assert waiting[-1].result(30) == 0 and waiting[2].cancelled()
    with pytest.raises(QueueFull, match="shutting down"):
        running.engine.between(int)


def test_a_trace_is_taken_back_when_its_client_leaves(open_server):
    with busy(open_server.engine):
        with pytest.raises(httpx.TimeoutException):
            httpx.post(open_server.url + "/v1/traces", json={"model": "first", "prompt_token_ids": [5, 6]}, timeout=0.5)
        waiting = [promised for promised, _ in open_server.engine._tasks]
        assert len(waiting) == 1 and wait_until(waiting[0].cancelled)


def test_the_page_needs_no_key_loads_nothing_and_its_requests_do(bundle):
    running = Running({"first": bundle}, api_key=KEY)
    page = httpx.get(running.url + "/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.text and "connect-src 'self'" in page.text and bundle not in page.text
    assert httpx.post(running.url + "/v1/traces", json={}).status_code == 401
    assert running.metrics()[("radargate_requests_total", "/", "200")] == 1
    running.stop()


def test_without_plotly_the_page_says_what_to_install(bundle, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    running = Running({"first": bundle})
    answer = httpx.get(running.url + "/")
    assert answer.status_code == 501 and "radargate[report]" in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "server_error"
    running.stop()


@pytest.fixture(scope="module")
def browser():
    if not shutil.which("chromium"):
        pytest.skip("no chromium here")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser):
    """Opens a page; gives it with the errors and addresses it met."""
    pages = []

    def go(url, **options):
        page = browser.new_page(**options)
        pages.append(page)
        page.set_default_timeout(HANG * 1000)
        errors, addresses = [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(url)
        return page, errors, addresses

    yield go
    for page in pages:
        page.close()


def state(page, word):
    page.locator(f"body[data-state={word}]").wait_for()


def shown_numbers(page):
    """The numbers of the chosen token as the page shows them: fact → value, expert → weight."""
    facts = dict(
        zip(page.locator(".panel dt").all_inner_texts(), page.locator(".panel dd").all_inner_texts(), strict=True)
    )
    cells = page.locator(".panel .bars > span").all_inner_texts()
    return facts, {cells[i]: float(cells[i + 2]) for i in range(0, len(cells), 3)}


def test_a_question_is_answered_and_its_routing_drawn(open_server, visit, bundle):
    page, errors, addresses = visit(open_server.url + "/")
    state(page, "ready")
    assert page.locator("#model option").all_inner_texts() == ["first"] and not page.locator("main").is_visible()
    page.fill("#most", "12")
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Control+Enter")
    state(page, "done")
    answer = ask(open_server).json()
    prompt, ids = answer["prompt_token_ids"], answer["choices"][0]["token_ids"]
    assert page.locator("#answer").text_content() == answer["choices"][0]["message"]["content"]
    assert f"{len(ids)} tokens, the first after" in page.locator("#progress").inner_text()
    for section, names in CHARTS.items():
        for name in names:
            assert page.locator(f"#{section}-0-{name} .main-svg").count(), name
    assert page.locator(".tok").count() == len(prompt) + len(ids)

    model = radargate.load(None, bundle)
    trace = radargate.trace(model, prompt, answer=ids, tokenizer=tiny_tokenizer())
    for token in (0, len(prompt) - 1, len(prompt) + len(ids) - 1):
        page.locator(f"#token-{token}").focus()
        facts, weights = shown_numbers(page)
        many = [site for site in trace.sites() if len(site.experts) > 1]
        want = dict.fromkeys(trace.experts, 0.0)
        for site in many:
            for name, weight in zip(site.experts, site.dense_weights()[token].tolist(), strict=True):
                want[name] += weight / len(many)
        assert weights == pytest.approx(want, abs=2e-3)
        entropy = sum(float(site.entropy()[token]) for site in many) / len(many)
        assert float(facts["entropy"].split()[0]) == pytest.approx(entropy, abs=2e-3)
        if token:
            assert float(facts["−log p"]) == pytest.approx(trace.nll[token - 1], abs=2e-3)
    effect = page.locator("#effect-0-effect .bartext").all_text_contents()
    assert [float(text.replace("−", "-")) for text in effect] == pytest.approx(list(trace.effect().values()), abs=2e-3)

    page.locator("#token-0").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("[aria-selected=true]").get_attribute("id") == "token-1"
    page.keyboard.press("End")
    assert page.locator("[aria-selected=true]").get_attribute("id") == f"token-{len(prompt) + len(ids) - 1}"
    page.select_option("#layer", "1")
    assert page.locator("#chosen").inner_text().startswith(f"{sum('.1.' in s for s in trace.site_names)} of ")

    page.fill("[data-expert=law]", "0")  # a second question takes the first one's place
    page.locator("#prompt").focus()
    page.keyboard.press("Control+Enter")
    state(page, "done")
    assert (
        page.locator("#answer").text_content()
        == ask(open_server, experts={"law": 0}).json()["choices"][0]["message"]["content"]
    )
    page.locator("#token-3").focus()
    assert shown_numbers(page)[1]["law"] == 0
    assert page.locator("#weights-prompt, #layers-0-weights-prompt").count() == 1
    assert not errors and all(address.startswith((open_server.url, "data:", "blob:")) for address in addresses)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_screen(open_server, visit, width):
    page, errors, _ = visit(open_server.url + "/", viewport={"width": width, "height": 844})
    state(page, "ready")
    page.fill("#most", "3")
    page.fill("#prompt", "hello " * 20)
    page.click("#send")
    state(page, "done")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth") and not errors


def test_a_key_is_asked_for_and_refusals_are_told(bundle, visit):
    running = Running({"first": bundle}, api_key=KEY, max_tokens=450)
    page, errors, _ = visit(running.url + "/")
    state(page, "failed")
    assert "the API key is missing or wrong" in page.locator("#trouble").inner_text()
    page.fill("#key", KEY)
    page.locator("#key").blur()
    state(page, "ready")
    assert not page.locator("#trouble").is_visible()
    page.fill("#prompt", "x" * 600)
    page.click("#send")
    state(page, "failed")
    assert (
        "context 512" in page.locator("#trouble").inner_text()
        and page.locator("#trouble").get_attribute("role") == "alert"
    )
    page.fill("#prompt", "go on")
    page.fill("#most", "450")
    page.click("#send")
    assert wait_until(lambda: len(page.locator("#answer").text_content()) > 3)
    page.click("#halt")
    state(page, "ready")
    assert page.locator("#progress").inner_text() == "stopped"
    assert wait_until(lambda: running.engine.running == 0)
    assert all("status of 4" in error for error in errors), "the browser notes the refusals, and nothing else"
    page.close()
    running.stop()
