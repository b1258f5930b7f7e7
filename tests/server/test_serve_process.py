"""The server as a process of its own: signals, clients that leave, a hundred at once, and the load benchmark."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

import fresh
import radargate
from conftest import HANG
from radargate.base_models.loading import load_tokenizer
from radargate.evaluation.scoring import generate
from radargate.io.records import read_records
from speed import serve_load
from test_serve import save_bundle, wait_until

MASKS = ({}, {"law": 0.0})


@pytest.fixture(scope="module")
def bundle(zoo, tmp_path_factory):
    return str(save_bundle(zoo, tmp_path_factory.mktemp("process") / "first"))


class Process:
    """``radargate serve`` as it is started in a shell."""

    def __init__(self, bundle, *flags):
        words = ["-m", "radargate.cli", "serve", bundle, "--port", "0", *flags]
        self.process = fresh.Process(*words, stderr=fresh.PIPE)
        said = []  # libraries may have something to say first
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r" at (http://\S+)/v1", line):
                break
        else:
            raise AssertionError("".join(said))
        self.url = found[1]

    def ask(self, prompt="1+1=", timeout=HANG, **more):
        fields = {"model": "first", "prompt": prompt, "max_tokens": 12, "temperature": 0, **more}
        return httpx.post(f"{self.url}/v1/completions", json=fields, timeout=timeout)

    def stream(self, **more):
        """A request that is being answered: the open response, whose lines can be read on."""
        fields = {"model": "first", "prompt": "tell me", "temperature": 0, "stream": True, **more}
        http = httpx.Client(timeout=HANG)
        response = http.send(http.build_request("POST", f"{self.url}/v1/completions", json=fields), stream=True)
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        return http, lines

    def metric(self, name):
        text = httpx.get(f"{self.url}/metrics").text
        return next(s.value for f in text_string_to_metric_families(text) for s in f.samples if s.name == name)

    def end(self):
        """Stop it and give back exit code and what it said."""
        if self.process.poll() is None:
            self.process.terminate()
        said = self.process.communicate(timeout=HANG)[1]
        return self.process.returncode, said


@pytest.fixture(scope="module")
def process(bundle):
    made = Process(bundle, "--queue", "100")
    yield made
    assert made.end()[0] == 0


@pytest.fixture(scope="module")
def expected(bundle):
    """prompt and mask → what `radargate generate` answers."""
    model = radargate.load(None, bundle)
    tokenizer = load_tokenizer(model.get_base_model())

    def answer(prompt, mask):
        with radargate.using(model, mask):
            return generate(model, tokenizer, [prompt], max_new_tokens=12)[0]

    return answer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_running_answer_end_and_takes_no_new_one(bundle, number):
    server = Process(bundle, "--shutdown-seconds", str(HANG))
    http, lines = server.stream(max_tokens=400)
    server.process.send_signal(number)

    def refused():
        try:
            return server.ask(timeout=5).status_code == 503
        except httpx.HTTPError:
            return True

    assert wait_until(refused)
    rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    http.close()
    assert rest[-1]["choices"][0]["finish_reason"] == "length", "the answer was cut off"
    server.process.wait(60)  # one signal is enough
    code, said = server.end()
    assert code == 0 and said.rstrip().endswith("stopped.") and "Traceback" not in said


def test_an_answer_that_outlasts_the_grace_is_cut_off_and_the_process_ends(bundle):
    server = Process(bundle, "--shutdown-seconds", "1", "--max-tokens-limit", "480")
    clients = [server.stream(max_tokens=480, prompt=f"{i} tell", n=4) for i in range(4)]
    code, said = server.end()
    assert code == 0 and "stopped." in said
    for http, _ in clients:
        http.close()


def test_a_client_that_leaves_in_the_middle_frees_its_slot(process):
    cancelled = process.metric("radargate_cancelled_total")
    http, _ = process.stream(max_tokens=480)
    assert process.metric("radargate_running") == 1
    http.close()
    assert wait_until(lambda: process.metric("radargate_running") == 0)
    assert process.metric("radargate_cancelled_total") == cancelled + 1 and process.ask().status_code == 200


def test_a_hundred_clients_at_once_get_their_own_answers(process, expected):
    asked = [(f"question {i % 10}", MASKS[i // 10 % 2]) for i in range(100)]
    want = {(prompt, bool(mask)): expected(prompt, mask) for prompt, mask in asked}
    assert len(set(want.values())) > 10, "prompts and masks must show in the answers"
    at_once = threading.Barrier(100)

    def ask(one):
        at_once.wait(HANG)
        return process.ask(one[0], experts=one[1])

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(ask, asked))
    assert [a.status_code for a in answers] == [200] * 100
    got = [a.json()["choices"][0]["text"].strip() for a in answers]
    assert got == [want[prompt, bool(mask)] for prompt, mask in asked]


def test_more_than_the_queue_holds_are_refused_and_the_others_answered(bundle, expected):
    server = Process(bundle, "--queue", "4", "--batch-size", "2")
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda i: server.ask("question 1", max_tokens=12), range(40)))
    assert {a.status_code for a in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["text"].strip() == expected("question 1", {})
        else:
            assert answer.json()["error"]["code"] == "queue_full"
    assert server.ask().status_code == 200
    server.end()


def test_two_clients_with_other_experts_never_see_each_others_answers_and_memory_stays(process, expected):
    def talk(mask):
        return [process.ask(f"question {i % 5}", experts=mask).json()["choices"][0]["text"].strip() for i in range(30)]

    memory = []
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(talk, MASKS)
        assert first == [expected(f"question {i % 5}", MASKS[0]) for i in range(30)]
        assert second == [expected(f"question {i % 5}", MASKS[1]) for i in range(30)]
        memory.append(psutil.Process(process.process.pid).memory_info().rss)
    assert memory[-1] - memory[0] < 30e6, "MB kept by 120 answers"


def test_the_load_benchmark_counts_a_failed_stream_once():
    stream = 'data: {"choices": [{"text": "a"}]}\n\ndata: {"error": {"message": "no room"}}\n\n'

    async def load(answer):
        seen = serve_load.Seen()
        async with httpx.AsyncClient(
            transport=httpx.MockTransport(lambda request: httpx.Response(200, text=answer)), base_url="http://here"
        ) as http:
            await serve_load.client(http, 0, time.monotonic() + 0.02, "law", 8, seen)
        return seen

    for answer, kind in ((stream, "error in the stream"), (stream.split("\n\n")[0], "cut off")):
        seen = asyncio.run(load(answer))
        assert set(seen.errors) == {kind} and not seen.whole


@pytest.mark.whole
def test_the_load_benchmark_records_one_client_and_many(bundle, tmp_path, capsys):
    words = [bundle, "--clients", "6", "--seconds", "2", "--max-tokens", "8", "--out", str(tmp_path / "records.jsonl")]
    assert serve_load.main(words) == 0
    one, many = read_records(tmp_path / "records.jsonl")
    assert (
        (one["clients"], many["clients"]) == (1, 6)
        and one["suite"] == "serve_load"
        and one["experts"] == ["math", "law", "code"]
    )
    for record in (one, many):
        metrics = record["metrics"]
        assert metrics["requests"] >= record["clients"] and not metrics["errors"] and metrics["seconds"] >= 2
        assert (
            0
            < metrics["first_token_s"]["p50"]
            <= metrics["whole_answer_s"]["p99"]
            <= metrics["whole_answer_s"]["highest"]
        )
        assert metrics["tokens"] >= metrics["requests"] and metrics["memory_mb"]["highest"] > 50
        assert len(metrics["memory_mb"]["over_time"]) >= 2
    assert [json.loads(line)["clients"] for line in capsys.readouterr().out.splitlines()] == [1, 6]
