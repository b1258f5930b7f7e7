"""How much faster the compiled operations are than the same in PyTorch, and what they cost beside one plain LoRA.

    python benchmarks/speed/ops_fused.py [--out records.jsonl] [--experts 2 9] [--widths 576] [--tokens 1 640]

Every case first has to agree with float64 by the rule of the tests; then the three are timed by turns, and medians compared.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radargate import ops
from radargate.io.records import append_records, make_record
from radargate.ops import cpp as fused

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tolerance import assert_close

RANK, CODE_RANK, CHECKED_TOKENS = 8, 8, 32


class Case:
    """One size: inputs of the size real adapters give, and the two operations of a radar gate on them."""

    def __init__(self, n: int, d: int, tokens: int, top_k: int | None, dtype: torch.dtype = torch.float32) -> None:
        g = torch.Generator().manual_seed(0)

        def new(*size: int, scale: float, learns: bool = True) -> Tensor:
            return (torch.randn(*size, generator=g, dtype=torch.float64) * scale).to(dtype).requires_grad_(learns)

        self.ranks = (RANK,) * n
        self.h, self.B = new(tokens, n * RANK, scale=0.3), new(n * RANK, d, scale=0.1, learns=False)
        self.down, self.up = new(d, CODE_RANK, scale=d**-0.5), new(CODE_RANK, d // 2, scale=0.1)
        scores = torch.rand(tokens, n, generator=g)
        self.indices = None if top_k is None else scores.argsort(-1)[:, :top_k].contiguous()
        weights = scores if top_k is None else scores[:, :top_k]
        self.weights = weights.softmax(-1).to(dtype).requires_grad_()
        self.x, self.A = new(tokens, d, scale=1.0), new(RANK, d, scale=d**-0.5)
        self.one_B = new(RANK, d, scale=0.1)
        self.grad = new(tokens, d, scale=1.0, learns=False)

    def radar(self) -> tuple[Tensor, list[Tensor]]:
        """The update, and what it is differentiated by."""
        code = ops.rotation_codes(self.h, self.B, self.ranks, self.down, indices=self.indices, angle_norm="unit")
        update = ops.mix(self.h, self.B, self.ranks, self.weights, self.indices, code, self.up, angle_norm="unit")
        return update, [self.h, self.weights, self.down, self.up]

    def lora(self) -> tuple[Tensor, list[Tensor]]:
        """x A B of one adapter that learns."""
        return (self.x @ self.A.T) @ self.one_B, [self.x, self.A, self.one_B]

    def run(self, form: str, backward: bool) -> list[Tensor]:
        """Update and gradients by ``"compiled"``, ``"pytorch"`` or ``"lora"``."""
        os.environ["RADARGATE_FUSED"] = "0" if form == "pytorch" else "1"
        with torch.set_grad_enabled(backward):
            update, inputs = self.lora() if form == "lora" else self.radar()
        return [update, *(torch.autograd.grad(update, inputs, self.grad) if backward else ())]


def check(n: int, d: int, tokens: int, top_k: int | None) -> None:
    """The compiled float32 form against float64, by the rule of the tests."""
    tokens = min(tokens, CHECKED_TOKENS)
    case = Case(n, d, tokens, top_k)
    exact = Case(n, d, tokens, top_k, torch.float64).run("pytorch", True)
    found, plain = case.run("compiled", True), case.run("pytorch", True)
    for i, (a, b, c) in enumerate(zip(found, plain, exact, strict=True)):
        assert_close(a, b, c, gradient=i > 0, what=f"{'gradient' if i else 'update'} {i}")


def medians(runs: dict[str, Callable[[], Any]], seconds: float, most: int = 200) -> dict[str, tuple[float, float]]:
    """Median and quartile distance of each, taken by turns for about ``seconds`` in all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    while len(times[next(iter(times))]) < 5 or (time.perf_counter() < end and len(times[next(iter(times))]) < most):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    spread = {name: statistics.quantiles(ts, n=4) for name, ts in times.items()}
    return {name: (statistics.median(ts), spread[name][2] - spread[name][0]) for name, ts in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line a case; with ``--out`` also append records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 9, 12, 40])
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 576, 2048])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 640])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="spent on each case")
    parser.add_argument("--out", help="append records here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    built, reason = fused.available()
    if not built:
        raise SystemExit(f"There are no compiled operations here: {reason}.")
    print(f"{'':42}{'compiled':>10}{'pytorch/compiled':>18}{'compiled/lora':>15}")
    for n, d, tokens, top_k in itertools.product(options.experts, options.widths, options.tokens, (None, 2)):
        check(n, d, tokens, top_k)
        case = Case(n, d, tokens, top_k)
        for backward in (False, True):
            forms = ("pytorch", "compiled", "lora")
            found = medians({form: lambda form=form: case.run(form, backward) for form in forms}, options.seconds)  # type: ignore[misc]  # noqa: B023
            eager, ours, lora = (found[form][0] for form in forms)
            name = f"n={n} d={d} T={tokens} {'dense' if top_k is None else 'top-2'} {'step' if backward else 'forward'}"
            print(f"{name:42}{ours * 1e3:>8.3f}ms{eager / ours:>18.2f}{ours / lora:>15.2f}", flush=True)
            if options.out:
                seconds = {form: {"median": m, "quartiles": q} for form, (m, q) in found.items()}
                metrics = {"seconds": seconds, "speedup": eager / ours, "times_lora": ours / lora}
                facts = {"experts": n, "width": d, "tokens": tokens, "top_k": top_k, "threads": options.threads}
                append_records(options.out, [make_record("ops-fused", name, metrics, **facts)])


if __name__ == "__main__":
    main()
