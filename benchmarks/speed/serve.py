"""A whole server under many requests at once: what a bundle leaves of the base's own throughput, over HTTP on loopback."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import logging
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from radargate.errors import RadarGateError
from radargate.server.limits import Limits
from radargate.server.loaded import LoadedBundles
from radargate.server.run import make_server
from speed import measure, peers
from speed.models import Bases, write_adapters

logger = logging.getLogger("radargate.bench")  # so that the command line shows it

NAME = "bundle"
SECONDS = 600.0  # that an answer may take


@dataclass(frozen=True)
class Load:
    """What the server runs on and what is asked of it.

    Attributes:
        shape: of the base model (`speed.models.SHAPES`).
        layers: of the base, None for all it has.
        device: where.
        dtype: of base and adapters.
        rounds: times that bundle and base are taken.
        clients: requests at once.
        length: tokens of each prompt.
        answered: tokens of each answer, greedy; none ends early.
    """

    shape: str
    layers: int | None
    device: str
    dtype: torch.dtype
    rounds: int
    clients: int = 16
    length: int = 32
    answered: int = 32


def throughput(load: Load, experts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Tokens a second of a radar bundle and of its base, in turns on one server, for every number of experts.

    The base is the same bundle with every expert switched off by the request, which leaves the base's own layers.
    """
    bases = Bases(load.shape, layers=load.layers, dtype=load.dtype, device=load.device)
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(bases, max(experts), Path(folder))
        for n in experts:
            logger.info(f"{n} experts: a radar bundle and its base, {load.clients} requests at once")
            chosen = dict(itertools.islice(adapters.items(), n))
            peers.build("radar", bases, chosen).save_pretrained(f"{folder}/{NAME}{n}")  # type: ignore[operator]
            bundles = LoadedBundles({NAME: f"{folder}/{NAME}{n}"}, base=bases.new(), tokenizer=stand_in(bases))
            with serving(bundles, load) as port:
                off = dict.fromkeys(chosen, 0.0)
                runs = {
                    "bundle": functools.partial(ask_all, port, load, {}),
                    "base": functools.partial(ask_all, port, load, off),
                }
                check_differ(port, load, off)
                times = measure.by_turns(runs, load.rounds)
            tokens = load.clients * load.answered
            yield {"experts": n, "metrics": {
                "tokens_per_second": {name: tokens / measure.median(found) for name, found in times.items()},
                "seconds": {name: measure.median(found) for name, found in times.items()},
                "bundle_over_base": measure.ratio(times, "base", "bundle"), "rounds": load.rounds,
            }}  # fmt: skip


@contextlib.contextmanager
def serving(bundles: LoadedBundles, load: Load) -> Iterator[int]:
    """The real server in a thread, with a slot for every request; its port."""
    limits = Limits(max_tokens=load.answered, slots=load.clients, queue=load.clients, shutdown_seconds=5)
    server = make_server(bundles, limits, "127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RadarGateError("the server did not start.")
                time.sleep(0.01)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def ask_all(port: int, load: Load, factors: dict[str, float]) -> list[list[int]]:
    """Send all requests at once and wait for the last answer; the token ids of each."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, 40_000, (load.clients, load.length), generator=generator).tolist()
    with ThreadPoolExecutor(load.clients) as clients:
        return list(clients.map(lambda prompt: ask(port, prompt, load.answered, factors), prompts))


def ask(port: int, prompt: list[int], count: int, factors: dict[str, float]) -> list[int]:
    """One greedy answer of so many tokens.

    Raises:
        RadarGateError: the server answers otherwise, so there is no time to report.
    """
    fields = {"model": NAME, "prompt": prompt, "max_tokens": count, "temperature": 0, "experts": factors,
              "return_token_ids": True}  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read().decode()
    finally:
        connection.close()
    ids: list[int] = json.loads(body)["choices"][0]["token_ids"] if response.status == 200 else []
    if len(ids) != count:
        raise RadarGateError(f"the server answered {response.status} and {len(ids)} of {count} tokens: {body[:200]}")
    return ids


def check_differ(port: int, load: Load, off: dict[str, float]) -> None:
    """Raise `RadarGateError` where the bundle answers as its base does, so it would be measured doing nothing."""
    if ask_all(port, load, {}) == ask_all(port, load, off):
        raise RadarGateError("the bundle answers as its base does, so there is nothing to measure.")


def stand_in(bases: Bases) -> PreTrainedTokenizerFast:
    """A tokenizer as large as the model's vocabulary, of bytes and made-up words, without an end token."""
    names = ["<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"Ġw{i}" for i in range(len(names), bases.config.vocab_size)]
    backend = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
