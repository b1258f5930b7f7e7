"""Whole models: a training step and token-by-token answers, beside one LoRA and other people's routers."""

from __future__ import annotations

import functools
import gc
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from radargate.bench import measure, peers
from radargate.bench.models import Bases, write_adapters

OURS = ("radar", "stretch")
EAGER = "radar, PyTorch alone"
STEP_PEERS = ("base", "lora", "xlora", "arrow", "loramoe")
DECODE_PEERS = ("base", "lora", "xlora", "arrow")
ANSWERED = 16  # tokens an answer is timed over


@dataclass(frozen=True)
class Setting:
    """What the systems run on.

    Attributes:
        shape: of the base model (`radargate.bench.models.SHAPES`).
        layers: of the base, None for all it has.
        device: where.
        dtype: of base and adapters.
        rounds: times that every system is taken.
        systems: only these; None for all.
        prompts: rows a training step, or answers at once.
        length: tokens a row.
    """

    shape: str
    layers: int | None
    device: str
    dtype: torch.dtype
    rounds: int
    systems: Sequence[str] | None = None
    prompts: int = 4
    length: int = 128


def step(setting: Setting, experts: Sequence[int], say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A training step (forward, backward, gradients dropped) of each system; Arrow trains nothing and only goes forward.

    Yields, for every number of experts, seconds, ratios to one LoRA, peak memory and trained parameters by system.
    """
    for n, bases, adapters in _cases(setting, experts):
        ids = _tokens(setting)
        labels = ids.masked_fill(torch.arange(setting.length, device=ids.device) < setting.length - 16, -100)
        systems = _systems(setting, (*STEP_PEERS, *(("literal",) if n <= 8 else ())), n, bases, adapters, say)
        forms = {}
        for name, model in systems.items():
            forwards = torch.no_grad() if name in ("base", "arrow") else torch.enable_grad()
            forms[name] = functools.partial(_train, model, ids, labels, name == EAGER, forwards)
        times = measure.by_turns(forms, setting.rounds)
        memory = {name: measure.peak_bytes(run) for name, run in forms.items()}
        trained = {name: sum(p.numel() for p in m.parameters() if p.requires_grad) for name, m in systems.items()}
        yield {"experts": n, **_metrics(times), "peak_bytes": memory, "trained": trained,
               "forward_only": [name for name in forms if name in ("base", "arrow")]}  # fmt: skip
        del systems, forms
        gc.collect()


def decode(setting: Setting, experts: Sequence[int], say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Time a token of greedy answers by ``generate``, as a user calls it: an answer of 17 tokens less one of 1, by 16.

    Yields, for every number of experts, seconds a token, ratios to one LoRA, and launches a token by system.
    """
    for n, bases, adapters in _cases(setting, experts):
        ids = _tokens(setting)
        systems = _systems(setting, DECODE_PEERS, n, bases, adapters, say)
        runs = {
            f"{name}|{count}": functools.partial(_answer, model, ids, count, name == EAGER)
            for name, model in systems.items() for count in (1, 1 + ANSWERED)
        }  # fmt: skip
        found = measure.by_turns(runs, setting.rounds)

        def a_token(values: dict[str, Any], name: str) -> Any:
            return (values[f"{name}|{1 + ANSWERED}"] - values[f"{name}|1"]) / ANSWERED

        rounds = [{run: ts[i] for run, ts in found.items()} for i in range(setting.rounds)]
        times = {name: [a_token(one, name) for one in rounds] for name in systems}
        counts = {run: measure.launches(call) for run, call in runs.items()}
        launches = {name: a_token(counts, name) for name in systems}
        yield {"experts": n, **_metrics(times), "launches": launches}
        del systems, runs
        gc.collect()


def _cases(setting: Setting, experts: Sequence[int]) -> Iterator[tuple[int, Bases, dict[str, str]]]:
    bases = Bases(setting.shape, layers=setting.layers, dtype=setting.dtype, device=setting.device)
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(bases, max(experts), Path(folder))
        for n in experts:
            yield n, bases, dict(itertools.islice(adapters.items(), n))


def _systems(setting: Setting, others: Sequence[str], n: int, bases: Bases, adapters: dict[str, str],
             say: Callable[[str], None]) -> dict[str, nn.Module]:  # fmt: skip
    wanted = [name for name in (*others, *OURS, EAGER) if setting.systems is None or name in (*setting.systems, "lora")]
    if setting.device != "cpu":
        wanted = [name for name in wanted if name != EAGER]
    say(f"{n} experts: {', '.join(wanted)}")
    return {name: peers.build("radar" if name == EAGER else name, bases, adapters) for name in wanted}


def _tokens(setting: Setting) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, 40_000, (setting.prompts, setting.length), generator=generator).to(setting.device)


def _train(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor, eager: bool, grads: Any) -> None:
    with peers.compiled(not eager), grads:
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        if loss.requires_grad:
            loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


def _answer(model: Any, ids: torch.Tensor, count: int, eager: bool) -> None:
    with peers.compiled(not eager), torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
            do_sample=False, use_cache=True, pad_token_id=0,
        )  # fmt: skip
    assert out.shape[1] == ids.shape[1] + count


def _metrics(times: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "seconds": {name: measure.median(found) for name, found in times.items()},
        "times_lora": {name: measure.ratio(times, name, "lora") for name in times},
        "over_radar": {name: measure.ratio(times, name, "radar") for name in times} if "radar" in times else {},
        "rounds": len(next(iter(times.values()))),
    }
