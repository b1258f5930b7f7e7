"""Whole models: a training step and token-by-token answers, beside one LoRA and other people's routers."""

from __future__ import annotations

import functools
import gc
import itertools
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speed import measure, peers
from speed.models import Bases, write_adapters

logger = logging.getLogger("radargate.bench")  # so that the command line shows it

OURS = ("radar", "stretch")
EAGER = "radar, PyTorch alone"
STEP_PEERS = ("base", "lora", "xlora", "arrow", "loramoe", "literal")
FORWARD_ONLY = ("base", "arrow")  # train nothing
DECODE_PEERS = ("base", "lora", "xlora", "arrow")
ANSWERED, SLOW_ANSWERED = 16, 2  # tokens an answer is timed over; X-LoRA keeps no cache and takes seconds a token
MOST_SLOW = 40  # prompts times experts, beyond which X-LoRA takes minutes a token on a CPU and is left out
# tensors of tokens × experts × width that a system keeps for its backward pass (measured)
KEPT = {"literal": 9.0, "loramoe": 1.2}


@dataclass(frozen=True)
class Setting:
    """What the systems run on.

    Attributes:
        shape: of the base model (`speed.models.SHAPES`).
        layers: of the base, None for all it has.
        device: where.
        dtype: of base and adapters.
        rounds: times that every system is taken.
        systems: only these; None for all.
        prompts: rows a training step, or answers at once, each number of them a case.
        length: tokens a row.
    """

    shape: str
    layers: int | None
    device: str
    dtype: torch.dtype
    rounds: int
    systems: Sequence[str] | None = None
    prompts: Sequence[int] = (4,)
    length: int = 128


def step(setting: Setting, experts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A training step (forward, backward, gradients dropped) of each system; Arrow trains nothing and only goes forward.

    A system whose tensors do not fit half of the free memory takes fewer rows, scaled up and marked; where none fits,
    it is left out. Yields, for every number of experts, seconds, ratios to one LoRA, peak memory and trained parameters by
    system.
    """
    for n, bases, adapters in _cases(setting, experts):
        fit = {name: _rows_that_fit(name, setting, n, bases) for name in STEP_PEERS}
        systems = _systems(setting, [name for name in STEP_PEERS if fit[name]], n, bases, adapters)
        trained = {name: sum(p.numel() for p in m.parameters() if p.requires_grad) for name, m in systems.items()}
        for prompts in setting.prompts:
            ids = _tokens(setting, prompts)
            labels = ids.masked_fill(torch.arange(setting.length, device=ids.device) < setting.length - 16, -100)
            few = {name: count for name, count in fit.items() if name in systems and count < prompts}
            forms = {}
            for name, model in systems.items():
                forwards = torch.no_grad() if name in FORWARD_ONLY else torch.enable_grad()
                some = slice(few.get(name))
                forms[name] = functools.partial(_train, model, ids[some], labels[some], name == EAGER, forwards)
            memory = {name: measure.peak_bytes(run) for name, run in forms.items()}  # warms up on the way
            times = measure.by_turns(forms, setting.rounds, warmup=0)
            for name, count in few.items():
                times[name] = [t * prompts / count for t in times[name]]
                memory[name] = memory[name] * prompts // count
            yield {
                "experts": n,
                "prompts": prompts,
                **_metrics(times),
                "peak_bytes": memory,
                "trained": trained,
                "scaled_from_rows": few,
                "forward_only": [name for name in forms if name in FORWARD_ONLY],
            }
        del systems, forms, model
        gc.collect()


def decode(setting: Setting, experts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Time a token of greedy answers by ``generate``, as a user calls it: an answer of 17 tokens less one of 1, by 16.

    X-LoRA answers 3 tokens, less one of 1, by 2, and is left out, by name, where prompts times experts are many. Yields, for
    every number of experts, seconds a token, ratios to one LoRA, and launches a token by system.
    """
    for n, bases, adapters in _cases(setting, experts):
        systems = _systems(setting, DECODE_PEERS, n, bases, adapters)
        for prompts in setting.prompts:
            ids = _tokens(setting, prompts)
            left_out = ["xlora"] if "xlora" in systems and prompts * n > MOST_SLOW and setting.device == "cpu" else []
            taken = {name: model for name, model in systems.items() if name not in left_out}
            runs = {
                f"{name}|{count}": functools.partial(_answer, model, ids, count, name == EAGER)
                for name, model in taken.items()
                for count in (1, 1 + _answered(name))
            }
            counts = {run: measure.launches(call) for run, call in runs.items()}  # warms up on the way
            found = measure.by_turns(runs, setting.rounds, warmup=0)
            rounds = [{run: ts[i] for run, ts in found.items()} for i in range(setting.rounds)]
            times = {name: [_a_token(one, name) for one in rounds] for name in taken}
            launches = {name: _a_token(counts, name) for name in taken}
            yield {"experts": n, "prompts": prompts, **_metrics(times), "launches": launches, "left_out": left_out}
        del systems, taken, runs
        gc.collect()


def _a_token(values: Mapping[str, float], name: str) -> float:
    return (values[f"{name}|{1 + _answered(name)}"] - values[f"{name}|1"]) / _answered(name)


def _answered(name: str) -> int:
    return SLOW_ANSWERED if name == "xlora" else ANSWERED


def _cases(setting: Setting, experts: Sequence[int]) -> Iterator[tuple[int, Bases, dict[str, str]]]:
    bases = Bases(setting.shape, layers=setting.layers, dtype=setting.dtype, device=setting.device)
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(bases, max(experts), Path(folder))
        for n in experts:
            yield n, bases, dict(itertools.islice(adapters.items(), n))


def _systems(
    setting: Setting,
    others: Sequence[str],
    n: int,
    bases: Bases,
    adapters: dict[str, str],
) -> dict[str, nn.Module]:
    wanted = [name for name in (*others, *OURS, EAGER) if setting.systems is None or name in (*setting.systems, "lora")]
    if setting.device != "cpu":
        wanted = [name for name in wanted if name != EAGER]
    logger.info(f"{n} experts: {', '.join(wanted)}")
    return {name: peers.build("radar" if name == EAGER else name, bases, adapters) for name in wanted}


def _rows_that_fit(name: str, setting: Setting, n: int, bases: Bases) -> int:
    """How many rows of a batch a system trains on; the reference implementation takes one, as it needs the time of many."""
    if name not in KEPT:
        return max(setting.prompts)
    layers = bases.first.model.layers
    width = sum(m.out_features for m in layers.modules() if isinstance(m, nn.Linear))
    fit = measure.half_of_free(setting.device) // int(KEPT[name] * n * 4 * width * setting.length)
    return min(1 if name == "literal" else max(setting.prompts), fit)


def _tokens(setting: Setting, prompts: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, 40_000, (prompts, setting.length), generator=generator).to(setting.device)


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
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
    assert out.shape[1] == ids.shape[1] + count


def _metrics(times: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "seconds": {name: measure.median(found) for name, found in times.items()},
        "times_lora": {name: measure.ratio(times, name, "lora") for name in times},
        "over_radar": {name: measure.ratio(times, name, "radar") for name in times} if "radar" in times else {},
        "rounds": len(next(iter(times.values()))),
    }
