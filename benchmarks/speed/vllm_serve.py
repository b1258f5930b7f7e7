"""A bundle behind ``radargate vllm`` and behind ``radargate serve``, side by side over HTTP; and many clients of the first, each answer checked.

    python benchmarks/speed/vllm_serve.py --out FILE

Runs in an environment with vLLM (make test-vllm makes one, to which this adds pip install 'radargate[serve]'). SmolLM2-135M in float32, the
shipped experts under a router of texts whose gates are drawn at random. Exit code 1 where an answer failed or was another than alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import httpx
import psutil

from radargate.experts.shipped import BASE, shipped_experts
from radargate.io.records import append_records, make_record
from speed.vllm_bundles import TEXTS, save_bundle

RESULTS = Path(__file__).parents[1] / "results" / "vllm" / "serve.jsonl"
KIND = "radar with router"
PORT = 18433
COMMANDS = {
    "radargate serve": ["serve", "bundle=BUNDLE", "--port", f"{PORT}", "--dtype", "float32", "--batch-size", "16"],
    "radargate vllm": [
        *("vllm", "BUNDLE", "--port", f"{PORT + 1}", "--host", "127.0.0.1", "--served-model-name", "bundle"),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32"),
    ],
}


@contextlib.contextmanager
def serving(name: str, bundle: Path) -> Iterator[str]:
    """The address of one server while the block runs."""
    words = [str(bundle) if w == "BUNDLE" else w.replace("BUNDLE", str(bundle)) for w in COMMANDS[name]]
    process = subprocess.Popen(
        [sys.executable, "-m", "radargate.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said: deque[str] = deque(maxlen=30)
    try:
        for line in process.stdout:
            said.append(line)
            if re.search(r"Application startup complete| at http://\S+/v1", line):
                break
        else:
            raise SystemExit(f"{name} did not start:\n{''.join(said)}")
        threading.Thread(target=deque, args=(process.stdout, 0), daemon=True).start()
        yield f"http://127.0.0.1:{PORT + list(COMMANDS).index(name)}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def body(number: int, sampled: bool, tokens: int) -> dict[str, Any]:
    """Request of that number: a prompt of its own, greedy, or sampled with a seed."""
    how = {"temperature": 0.8, "seed": number} if sampled else {"temperature": 0}
    return {"model": "bundle", "prompt": f"{number}. {TEXTS[number % len(TEXTS)]}", "max_tokens": tokens, **how}


async def ask(http: httpx.AsyncClient, asked: dict[str, Any]) -> tuple[str, int]:
    """The answer's text and number of tokens."""
    answer = (await http.post("/v1/completions", json=asked)).raise_for_status().json()
    return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]


async def rate(url: str, clients: int, seconds: float) -> float:
    """Tokens a second of so many clients, each of which asks again as soon as it is answered."""
    tokens, begun = 0, time.monotonic()

    async def client(number: int) -> None:
        nonlocal tokens
        while time.monotonic() < begun + seconds:
            answered = await ask(http, body(number, False, 48))
            tokens += answered[1]

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients)) as http:
        await ask(http, body(0, False, 4))
        begun = time.monotonic()
        await asyncio.gather(*map(client, range(clients)))
        return tokens / (time.monotonic() - begun)


async def checked(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Many clients, half of them greedy and half sampled with seeds: answers beside those that each request got alone."""
    found: dict[str, Any] = {"requests": 0, "errors": 0, "other_than_alone": 0}
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients)) as http:
        alone = [await ask(http, body(i, bool(i % 2), 32)) for i in range(clients)]
        begun = time.monotonic()

        async def client(number: int) -> None:
            while time.monotonic() < begun + seconds:
                found["requests"] += 1
                try:
                    answered = await ask(http, body(number, bool(number % 2), 32))
                    found["other_than_alone"] += answered != alone[number]
                except httpx.HTTPError:
                    found["errors"] += 1

        await asyncio.gather(*map(client, range(clients)))
        return {**found, "seconds": round(time.monotonic() - begun, 1)}


def main() -> int:
    """Measure, print and append records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each turn side by side")
    parser.add_argument("--out", default=str(RESULTS))
    args = parser.parse_args()
    rates: dict[str, dict[int, list[float]]] = {name: {1: [], 16: []} for name in COMMANDS}
    busy = []
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as both:
        bundle = save_bundle(KIND, Path(work) / "bundle")
        urls = {name: both.enter_context(serving(name, bundle)) for name in COMMANDS}
        for turn in range(args.rounds):
            for name in list(COMMANDS)[:: 1 if turn % 2 else -1]:
                for clients, found in rates[name].items():
                    found.append(round(asyncio.run(rate(urls[name], clients, args.seconds)), 2))
                    busy.append(psutil.getloadavg()[0])
        many = asyncio.run(checked(urls["radargate vllm"], 32, 60))
    facts = {"base": BASE, "experts": list(shipped_experts()), "gate": KIND, "mode": "eager, float32"}
    metrics = {
        "tokens_per_second": {
            name: {f"{clients} clients": found for clients, found in of.items()} for name, of in rates.items()
        },
        "load_average": [round(min(busy), 2), round(max(busy), 2)],
    }
    records = [
        make_record("vllm", "radargate vllm beside radargate serve", metrics, **facts),
        make_record("vllm", "32 clients for a minute, greedy and sampled with seeds", many, **facts),
    ]
    for record in records:
        record["versions"]["vllm"] = __import__("importlib.metadata").metadata.version("vllm")
        print(record["case"], record["metrics"])
    append_records(args.out, records)
    return int(bool(many["errors"] or many["other_than_alone"]))


if __name__ == "__main__":
    sys.exit(main())
