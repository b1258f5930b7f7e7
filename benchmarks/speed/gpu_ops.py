"""How fast the Triton kernels are beside the reference implementation, one plain LoRA and a copy of the base's output, on a GPU.

    python benchmarks/speed/gpu_ops.py [--out records.jsonl] [--tokens 8192 1] [--experts 8] [--blocks tokens=32 precision=ieee]

Every case first has to agree with float64 by the rule of the tests; then all forms are timed by turns with the device's
own clock, and medians compared. Decode steps (few tokens) are timed as replays of a captured graph. ``--check`` stops
before any timing.

Forms: ``triton`` and ``codes`` are rotation codes and mix onto y, from codes h; ``mix`` the second step alone; ``literal`` and
``lora`` start at x; ``copy`` reads and writes y once.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radargate import ops
from radargate.io.records import append_records, make_record
from radargate.ops import reference as literal
from radargate.ops import triton as gpu

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tolerance import assert_close

RANK, CODE_RANK, CHECKED_TOKENS, FEW = 8, 8, 64, 16
FORMS = ("triton", "mix", "codes", "literal", "lora", "copy")


class Case:
    """One size: inputs of the size real adapters give, y and x in half precision as a base model has them."""

    def __init__(self, n: int, d: int, tokens: int, top_k: int | None, dtype: torch.dtype, device: str) -> None:
        g = torch.Generator().manual_seed(0)

        def new(*size: int, scale: float, learns: bool = False) -> Tensor:
            made = (torch.randn(*size, generator=g) * scale).bfloat16()  # the same numbers whatever the dtype
            return made.to(device, dtype).requires_grad_(learns)

        half = torch.bfloat16 if dtype == torch.float32 else dtype
        self.ranks = (RANK,) * n
        self.A, self.B = [new(RANK, d, scale=d**-0.5) for _ in self.ranks], new(n * RANK, d, scale=0.1)
        self.down, self.up = (
            new(d, CODE_RANK, scale=d**-0.5, learns=True),
            new(CODE_RANK, d // 2, scale=0.1, learns=True),
        )
        scores = torch.rand(tokens, n, generator=g).to(device)
        self.indices = None if top_k is None else scores.argsort(-1)[:, :top_k].contiguous()
        weights = scores if top_k is None else scores[:, :top_k]
        self.weights = weights.softmax(-1).to(dtype).requires_grad_()
        self.x, self.y, self.grad = (new(tokens, d, scale=1.0).to(half) for _ in range(3))
        self.h = (self.x.to(dtype) @ torch.cat(self.A).T).detach().requires_grad_()
        self.parts = [b.T for b in self.B.split(RANK)]
        self.one_A, self.one_B = (t.detach().to(half).requires_grad_() for t in (self.A[0], self.B[:RANK]))
        self.target, self.learning = torch.empty_like(self.y), [self.h, self.weights, self.down, self.up]
        with torch.no_grad():
            self.code = self.rotation("codes")

    def rotation(self, backend: str) -> Tensor:
        """Rotation codes under unit scaling, as gates have it."""
        return ops.rotation_codes(
            self.h, self.B, self.ranks, self.down, indices=self.indices, angle_norm="unit", backend=backend
        )

    def update(self, code: Tensor, backend: str) -> Tensor:
        """y plus the update."""
        return ops.mix(
            self.h, self.B, self.ranks, self.weights, self.indices, code, self.up, onto=self.y, backend=backend
        )

    def run(self, form: str, backward: bool) -> list[Tensor]:
        """y plus the update, and gradients."""
        with torch.set_grad_enabled(backward):
            inputs = self.learning
            if form == "copy":
                return [self.target.copy_(self.y)]
            if form == "lora":
                out, inputs = self.y + (self.x @ self.one_A.T) @ self.one_B, [self.one_A, self.one_B]
            elif form == "literal":
                update = literal.radar(
                    self.x.to(self.B.dtype),
                    self.A,
                    self.parts,
                    None,
                    self.down,
                    self.up,
                    weights=self.weights,
                    indices=self.indices,
                    angle_norm="unit",
                )
                out, inputs = self.y + update.to(self.y.dtype), inputs[1:]
            else:
                backend = "codes" if form == "codes" else "triton"
                out = self.update(self.code if form == "mix" else self.rotation(backend), backend)
            if form == "mix":
                inputs = [self.h, self.weights, self.up]
            return [out.detach(), *(torch.autograd.grad(out, inputs, self.grad) if backward else ())]


def check(n: int, d: int, tokens: int, top_k: int | None, device: str) -> None:
    """The kernels against float64, by the rule of the tests; the update alone, as y's rounding would hide it."""
    for count in sorted({min(tokens, FEW - 1), min(tokens, CHECKED_TOKENS)}):
        found = {}
        for name, backend, dtype in (
            ("exact", "codes", torch.float64),
            ("plain", "codes", torch.float32),
            ("kernels", "triton", torch.float32),
        ):
            case = Case(n, d, count, top_k, dtype, device)
            case.y = torch.zeros_like(case.y, dtype=dtype)
            out = case.update(case.rotation(backend), backend)
            found[name] = [out.detach(), *torch.autograd.grad(out, case.learning, case.grad.to(dtype))]
        for i, (a, b, c) in enumerate(zip(found["kernels"], found["plain"], found["exact"], strict=True)):
            what = f"n={n} d={d} T={count}: {'gradient' if i else 'update'} {i}"
            assert_close(a, b, c, gradient=i > 0, what=what)


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """A graph of the call, as a server that decodes replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def medians(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median and quartile distance of each in seconds on the device, taken by turns."""
    for run in runs.values():
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    times = {name: [start.elapsed_time(end) / 1e3 for start, end in pairs] for name, pairs in events.items()}
    spread = {name: statistics.quantiles(ts, n=4) for name, ts in times.items()}
    return {name: (statistics.median(ts), spread[name][2] - spread[name][0]) for name, ts in times.items()}


def memory(run: Callable[[], Any]) -> int | None:
    """Bytes that a call needs at its peak beyond what was there; None where the GPU has not that many."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        run()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def set_blocks(settings: Sequence[str]) -> dict[str, Any]:
    """Change block sizes from ``name=value``; returns all of them."""
    from radargate.ops.triton import launch

    known = {field.name: field.type for field in dataclasses.fields(launch.Blocks)}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise SystemExit(f"--blocks {name}: expected one of {', '.join(known)}.")
        setattr(launch.BLOCKS, name, value if name == "precision" else int(value))
    return dataclasses.asdict(launch.BLOCKS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line a case and form; with ``--out`` also append records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 40])
    parser.add_argument("--widths", type=int, nargs="+", default=[4096])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 512, 8, 1])
    parser.add_argument("--top-k", type=int, default=2, help="0 weighs all experts")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--blocks", nargs="+", default=[], metavar="NAME=VALUE", help="block sizes to try")
    parser.add_argument("--check", action="store_true", help="only check that values and gradients are right")
    parser.add_argument("--out", help="append records here")
    options = parser.parse_args(arguments)
    works, reason = gpu.available("cuda")
    if not torch.cuda.is_available() or not works:
        reason = reason if torch.cuda.is_available() else "there is no CUDA device"
        raise SystemExit(f"This benchmark needs a GPU and Triton: {reason}.")
    blocks, top_k = set_blocks(options.blocks), options.top_k or None
    for n, d, tokens in itertools.product(options.experts, options.widths, options.tokens):
        check(n, d, tokens, top_k, "cuda")
        print(f"n={n} d={d} T={tokens} {f'top-{top_k}' if top_k else 'dense'}: right", flush=True)
        if options.check:
            continue
        case = Case(n, d, tokens, top_k, torch.float32, "cuda")
        for backward in (False,) if tokens < FEW else (False, True):
            forms = [form for form in options.forms if not (backward and form == "copy")]
            runs: dict[str, Callable[[], Any]] = {form: lambda form=form: case.run(form, backward) for form in forms}  # type: ignore[misc]  # noqa: B023
            peaks = {form: memory(run) for form, run in runs.items()}
            runs = {form: run for form, run in runs.items() if peaks[form] is not None}
            # PyTorch's own form may wait for the device, which no graph can hold
            graphed = tokens < FEW
            runs = {
                form: captured(run) if graphed and form in ("triton", "mix", "lora", "copy") else run
                for form, run in runs.items()
            }
            found = medians(runs, options.rounds)
            what = "step" if backward else "graph" if graphed else "forward"
            name = f"n={n} d={d} T={tokens} {f'top-{top_k}' if top_k else 'dense'} {what}"
            for form, (median, spread) in found.items():
                ratios = " ".join(f"{other}/{form}={found[other][0] / median:.2f}" for other in found if other != form)
                print(
                    f"{name:32}{form:8}{median * 1e6:>10.1f} ±{spread * 1e6:.1f} us {(peaks[form] or 0) / 2**20:>8.1f} MiB  {ratios}"
                )
            if options.out:
                seconds = {form: {"median": m, "quartiles": q} for form, (m, q) in found.items()}
                facts = {
                    "experts": n,
                    "width": d,
                    "tokens": tokens,
                    "top_k": top_k,
                    "blocks": blocks,
                    "gpu": torch.cuda.get_device_name(),
                }
                append_records(
                    options.out, [make_record("gpu-ops", name, {"seconds": seconds, "peak_bytes": peaks}, **facts)]
                )


if __name__ == "__main__":
    main()
