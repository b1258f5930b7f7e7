"""How a real server bears many clients: one client, then many at a time, on loopback, and a record of each.

    python benchmarks/speed/serve_load.py BUNDLE --clients 32 --seconds 60

Each client asks again as soon as it is answered, every other request with the first expert switched off, and reads the stream. A record holds
requests, errors, tokens a second, seconds to the first token and to the end, and the server's memory over time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import httpx
import psutil

from radargate.io.records import append_records, make_record

# taken as they are, not as questions: trained experts would answer those in a word, and the load be reading alone
PROMPTS = (
    "Once upon a time there was",
    "The history of the city begins",
    "To bake bread, first",
    "The river flows from",
)
RESULTS = Path(__file__).parents[1] / "results" / "serve_load" / "records.jsonl"


@dataclass
class Seen:
    """What the clients of one run saw.

    Attributes:
        first: seconds until the first piece of each answer.
        whole: seconds until its end.
        tokens: written in all.
        errors: kind → how many.
        memory: (seconds since the start, bytes) of the server's resident memory.
    """

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)


@contextlib.contextmanager
def serving(bundle: str, *flags: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server process for the block: its address, and the process."""
    words = [sys.executable, "-m", "radargate.cli", "serve", f"bundle={bundle}", "--port", "0", *flags]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r" at (http://\S+)/v1", line):
                # whatever else it says is thrown away: a full pipe would hold it up
                threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
                yield found[1], psutil.Process(process.pid)
                return
        raise SystemExit(f"the server did not start:\n{''.join(said)}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


async def client(http: httpx.AsyncClient, number: int, until: float, expert: str, max_tokens: int, seen: Seen) -> None:
    """Ask until the time is up."""
    count = number
    while time.monotonic() < until:
        fields = {
            "model": "bundle",
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "prompt": PROMPTS[count % len(PROMPTS)],
            "experts": {expert: 0.0} if count % 2 else {},
        }
        count += 1
        begun, first, tokens, ended, failed = time.monotonic(), None, 0, False, False
        try:
            async with http.stream("POST", "/v1/completions", json=fields) as response:
                if response.status_code != 200:
                    seen.errors[f"status {response.status_code}"] += 1
                    continue
                async for line in response.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    ended = line == "data: [DONE]"
                    event = {} if ended else json.loads(line.removeprefix("data: "))
                    failed = failed or "error" in event
                    if first is None and any(one.get("text") for one in event.get("choices", [])):
                        first = time.monotonic() - begun
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        except httpx.HTTPError as error:
            seen.errors[type(error).__name__] += 1
            continue
        if failed or not ended:
            seen.errors["error in the stream" if failed else "cut off"] += 1
            continue
        seen.whole.append(time.monotonic() - begun)
        seen.first.append(seen.whole[-1] if first is None else first)
        seen.tokens += tokens


async def watch(process: psutil.Process, begun: float, seen: Seen) -> None:
    """Note the server's memory every second."""
    while True:
        seen.memory.append((round(time.monotonic() - begun, 1), process.memory_info().rss))
        await asyncio.sleep(1)


async def load(url: str, process: psutil.Process, clients: int, seconds: float, max_tokens: int) -> tuple[Seen, float]:
    """So many clients for so long; what they saw, and how many seconds it took until the last was answered."""
    seen, limits = Seen(), httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        expert = (await http.get("/v1/models")).json()["data"][0]["experts"][0]
        await client(
            http, 0, time.monotonic() + 1e-3, expert, max_tokens, Seen()
        )  # the first answer builds what is kept
        begun = time.monotonic()
        watching = asyncio.create_task(watch(process, begun, seen))
        await asyncio.gather(*(client(http, i, begun + seconds, expert, max_tokens, seen) for i in range(clients)))
        watching.cancel()
        return seen, time.monotonic() - begun


def metrics_of(seen: Seen, seconds: float) -> dict[str, object]:
    """The numbers of a record; memory in MB, its rise from the first third's highest to the last third's highest."""
    memory = [size / 1e6 for _, size in seen.memory]
    third = max(len(memory) // 3, 1)
    return {
        "requests": len(seen.whole),
        "errors": dict(seen.errors),
        "seconds": round(seconds, 2),
        "tokens": seen.tokens,
        "tokens_per_second": round(seen.tokens / seconds, 2),
        "requests_per_second": round(len(seen.whole) / seconds, 3),
        "first_token_s": spread(seen.first),
        "whole_answer_s": spread(seen.whole),
        "memory_mb": {
            "highest": round(max(memory), 1),
            "rise": round(max(memory[-third:]) - max(memory[:third]), 1),
            "over_time": [[at, round(size / 1e6, 1)] for at, size in seen.memory],
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile and the highest; empty for no values."""
    if not values:
        return {}
    cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {
        "p50": round(cuts[49], 4),
        "p90": round(cuts[89], 4),
        "p99": round(cuts[98], 4),
        "highest": round(max(values), 4),
    }


def main(argv: list[str] | None = None) -> int:
    """Run one client, then many, and append a record of each; exit code 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a bundle's folder")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the two runs (default 60)")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16, help="of the server (default 16)")
    parser.add_argument(
        "--out", default=str(RESULTS), help="JSON-lines file that records are appended to (default %(default)s)"
    )
    args = parser.parse_args(argv)
    config = json.loads((Path(args.bundle) / "adapter_config.json").read_text())
    records = []
    with serving(args.bundle, "--batch-size", str(args.batch_size), "--queue", str(max(args.clients, 1))) as (
        url,
        process,
    ):
        for clients in dict.fromkeys((1, args.clients)):
            seen, seconds = asyncio.run(load(url, process, clients, args.seconds, args.max_tokens))
            record = make_record(
                "serve_load",
                f"{clients}-clients",
                metrics_of(seen, seconds),
                clients=clients,
                asked_seconds=args.seconds,
                max_tokens=args.max_tokens,
                batch_size=args.batch_size,
                bundle=Path(args.bundle).resolve().name,
                gate=config["gate"],
                experts=config["experts"],
                base=config["base_model_name_or_path"],
            )
            records.append(record)
            shown = {key: value for key, value in record["metrics"].items() if key != "memory_mb"}
            print(json.dumps({"clients": clients, **shown, "memory_rise_mb": record["metrics"]["memory_mb"]["rise"]}))
    append_records(args.out, records)
    return int(any(record["metrics"]["errors"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
