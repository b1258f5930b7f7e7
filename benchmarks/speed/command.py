"""``radargate bench``: speed and memory on this machine, beside one LoRA and other people's routers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from typing import Any

from radargate.cli import flags

HELP = "measure speed and memory here, peers beside us"
EXAMPLE = "radargate bench ops --quick --json"
WHAT = ("ops", "step", "decode", "serve", "footprint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "what",
        choices=WHAT,
        help="ops: one site against the reference implementation and one LoRA; step: a training step of a whole model; "
        "decode: answers token by token; serve: a server under many requests at once, bundle against base; "
        "footprint: parameters, loading, import",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the few sizes that the goals name, under a minute for ops"
    )
    parser.add_argument("--experts", type=flags.positive_int, nargs="+", metavar="N", help="numbers of experts")
    parser.add_argument("--widths", type=flags.positive_int, nargs="+", metavar="D", help="ops: widths of the site")
    parser.add_argument("--tokens", type=flags.positive_int, nargs="+", metavar="T", help="ops: tokens of the input")
    parser.add_argument("--top-k", type=int, nargs="+", metavar="K", help="ops: experts kept a token, 0 for all")
    parser.add_argument(
        "--rounds", type=flags.positive_int, default=5, help="times each is taken (default %(default)s)"
    )
    parser.add_argument(
        "--most-gigaflops",
        type=flags.positive_float,
        default=400.0,
        help="ops: leave larger sizes out, by name (default %(default)s)",
    )
    parser.add_argument(
        "--literal-megabytes",
        type=flags.positive_float,
        metavar="MB",
        help="ops: time the reference implementation on as many tokens as fit this, and scale up (default half of the free memory)",
    )
    parser.add_argument(
        "--shape", help="step, decode, serve: shape of the base (default smollm2-135m; llama-3.2-1b on a GPU)"
    )
    parser.add_argument(
        "--layers", type=flags.positive_int, help="step, decode, serve: layers of the base (default all)"
    )
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="step, decode: only these beside one LoRA")
    parser.add_argument(
        "--batch", type=flags.positive_int, nargs="+", help="decode, serve: answers at once (default 1 16; serve 16)"
    )
    parser.add_argument("--threads", type=flags.positive_int, help="CPU threads (default: PyTorch's own)")
    parser.add_argument("--out", metavar="FILE.jsonl", help="append records here")
    parser.add_argument("--json", action="store_true", help="print records as JSON lines, then the goals")
    flags.machine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print, store."""
    import torch

    from radargate.base_models.loading import plain_dtype
    from radargate.io.records import append_records, make_record
    from speed.measure import threads
    from speed.targets import figures, table

    device = flags.pick_device(args.device)
    dtype = plain_dtype(
        args.dtype or ("float32" if device == "cpu" else "bfloat16"), "benchmarks compare plain weights"
    )
    records = []
    with threads(args.threads):
        facts = {"device": device, "dtype": str(dtype).replace("torch.", ""), "threads": torch.get_num_threads()}
        if device != "cpu":
            facts["gpu"] = torch.cuda.get_device_name()
        for suite, case, result in _results(args, device, dtype):
            metrics = result.pop("metrics")
            records.append(make_record(suite, case, metrics, **result, **facts))
            print(json.dumps(records[-1]) if args.json else f"{case}: {_short(metrics)}", flush=True)
            if args.out:
                append_records(args.out, records[-1:])
    found = figures(records)
    if args.json:
        print(
            json.dumps(
                {
                    "goals": [
                        {"text": f.text, "goal": f.bound, "found": f.found, "reached": f.met}
                        for f in found
                        if f.found is not None
                    ]
                }
            )
        )
    elif device == "cpu":
        print(table(found))
    return 0


def _results(args: argparse.Namespace, device: str, dtype: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(suite, case, result) of everything asked for."""
    if args.what == "ops":
        yield from _ops(args, device, dtype)
    elif args.what == "serve":
        yield from _serve(args, device, dtype)
    elif args.what == "footprint":
        yield from _footprint(args)
    else:
        yield from _whole(args, device, dtype)


def _ops(args: argparse.Namespace, device: str, dtype: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    from speed import ops

    quick = args.quick
    grid = ops.cases(
        args.experts or ([8, 40] if quick else [2, 5, 8, 20, 40, 80, 320]),
        args.widths or ([2048] if quick else [576, 2048, 4096]),
        args.tokens or ([1024] if quick else [1, 16, 512, 4096, 16384]),
        args.top_k or ([2] if quick else [1, 2, 0]),
    )
    rounds, passes = (min(args.rounds, 2), ["step"]) if quick else (args.rounds, ["forward", "step"])
    most = int(args.literal_megabytes * 1e6) if args.literal_megabytes else None
    for result in ops.bench(
        grid,
        device=device,
        dtype=dtype,
        rounds=rounds,
        most_gigaflops=args.most_gigaflops,
        passes=passes,
        literal_bytes=most,
    ):
        yield "bench-ops", f"{ops.label(result)} {result['pass']}", result
    if args.experts is None and args.tokens is None:
        for route in ("merged",) if quick else ("merged", "direct"):
            experts, size = (5, 40, 320), {"width": 2048, "tokens": 1024}
            metrics = ops.whole_site(experts, **size, device=device, dtype=dtype, rounds=rounds, route=route)
            yield (
                "bench-growth",
                f"one site with its base product, {route}",
                {**size, "route": route, "metrics": metrics},
            )


def _whole(args: argparse.Namespace, device: str, dtype: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    from speed import whole

    shape, layers = _base(args, device)
    length = 128 if args.what == "step" else 32
    prompts = [4] if args.what == "step" else args.batch or ([1] if args.quick else [1, 16])
    setting = whole.Setting(shape, layers, device, dtype, args.rounds, args.systems, prompts, length)
    for metrics in getattr(whole, args.what)(setting, args.experts or [8, 40]):
        facts = {name: metrics.pop(name) for name in ("experts", "prompts")}
        case = f"{args.what} {shape} n={facts['experts']} batch={facts['prompts']}"
        yield (
            f"bench-{args.what}",
            case,
            {**facts, "shape": shape, "layers": layers, "length": length, "metrics": metrics},
        )


def _serve(args: argparse.Namespace, device: str, dtype: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    flags.check_serve_extra("bench serve")
    from speed import serve

    shape, layers = _base(args, device)
    for clients in args.batch or [16]:
        load = serve.Load(shape, layers, device, dtype, args.rounds, clients, answered=8 if args.quick else 32)
        sizes = {"clients": clients, "shape": shape, "layers": layers, "length": load.length, "answered": load.answered}
        for result in serve.throughput(load, args.experts or [8]):
            yield "bench-serve", f"serve {shape} n={result['experts']} clients={clients}", {**sizes, **result}


def _base(args: argparse.Namespace, device: str) -> tuple[str, int | None]:
    """Shape and layers of the base."""
    shape = args.shape or ("smollm2-135m" if device == "cpu" else "llama-3.2-1b")
    return shape, args.layers or (4 if args.quick else None)


def _footprint(args: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    from speed import footprint

    yield "bench-import", "import radargate", {"metrics": footprint.importing()}
    for result in footprint.complexity(args.experts or [2, 8, 40, 80], 2048, 64, 2):
        yield "bench-complexity", f"{result['gate']} n={result['experts']}", result
    for result in footprint.loading(args.experts or [2, 8, 40], args.shape or "smollm2-135m", args.layers):
        yield "bench-load", f"load n={result['experts']}", result


def _short(metrics: dict[str, Any]) -> str:
    """The numbers that a reader compares."""
    words: list[str] = []

    def add(items: Iterable[tuple[str, Any]], prefix: str = "") -> None:
        for name, value in items:
            if isinstance(value, dict) and "value" in value:
                words.append(f"{prefix}{name} {value['value']:.2f}")
            elif isinstance(value, dict) and name in (
                "times_lora",
                "over_5",
                "launches",
                "flop_per_token",
                "tokens_per_second",
            ):
                add(value.items(), f"{name} ")
            elif isinstance(value, (int, float)):
                words.append(f"{prefix}{name} {value:.4g}")

    add(metrics.items())
    return ", ".join(words)
