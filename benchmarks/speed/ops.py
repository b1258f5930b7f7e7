"""One site: our form against the literal one and one plain LoRA, over numbers of experts, tokens, widths and top-k."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from radargate.errors import RadarGateError
from speed import measure, peers
from speed.site import CODE_RANK, RANK, Site

logger = logging.getLogger("radargate.bench")  # so that the command line shows it

CHECKED_TOKENS = 32
LITERAL_TENSORS = 14  # of tokens × experts × width, that the reference implementation holds at its peak (measured)
FORMS = ("ours", "eager", "literal", "lora")
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 3e-2}


def cases(
    experts: Sequence[int], widths: Sequence[int], tokens: Sequence[int], top_k: Sequence[int]
) -> list[dict[str, int]]:
    """Every size once; a top-k of 0 keeps all, and none keeps more than there are."""
    found = {}
    for n, d, count, k in itertools.product(experts, widths, tokens, top_k):
        case = {"experts": n, "width": d, "tokens": count, "top_k": min(k or n, n)}
        found[tuple(case.values())] = case
    return list(found.values())


def bench(
    grid: Sequence[dict[str, int]],
    *,
    device: str,
    dtype: torch.dtype,
    rounds: int,
    most_gigaflops: float,
    passes: Sequence[str] = ("forward", "step"),
    literal_bytes: int | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Metrics of each case, forward alone and with backward, checked against float64 before they are timed.

    Sizes whose arithmetic alone passes ``most_gigaflops`` are left out, and named. The reference implementation is timed where its
    tensors fit half of the free memory (or ``literal_bytes``), else on as many tokens as do, scaled up by tokens and
    marked; its memory is measured on `CHECKED_TOKENS` and scaled up.
    """
    for case in grid:
        n, d, tokens, k = case.values()
        if work(n, d, tokens, k) > most_gigaflops:
            logger.info(
                f"left out: {label(case)} takes {work(n, d, tokens, k):.0f} Gflop a step, more than {most_gigaflops:.0f}"
            )
            continue
        check(n, d, min(tokens, CHECKED_TOKENS), k, device, dtype, **options)
        site = Site(n, d, tokens, k, dtype=dtype, device=device, **options)
        few = literal_tokens(n, d, tokens, literal_bytes or measure.half_of_free(device))
        small = site if few == tokens else Site(n, d, few, k, dtype=dtype, device=device, **options)
        sample = Site(n, d, min(few, CHECKED_TOKENS), k, dtype=dtype, device=device, **options)
        for which in passes:
            runs: dict[str, Callable[[], Any]] = {}
            for form in FORMS:
                if form == "eager" and device != "cpu":
                    continue
                here = small if form == "literal" else site
                runs[form] = functools.partial(_run, here, form, which == "step")
            times = measure.by_turns(runs, rounds)
            times["literal"] = [t * tokens / few for t in times["literal"]]
            runs["literal"] = functools.partial(_run, sample, "literal", which == "step")
            memory = {form: measure.peak_bytes(run) for form, run in runs.items()}
            memory["literal"] = memory["literal"] * tokens // len(sample.x)
            metrics = {
                "seconds": {form: measure.median(found) for form, found in times.items()},
                "literal_over_ours": measure.ratio(times, "literal", "ours"),
                "ours_over_lora": measure.ratio(times, "ours", "lora"),
                "peak_bytes": memory,
                "rounds": rounds,
            }
            if "eager" in times:
                metrics["literal_over_eager"] = measure.ratio(times, "literal", "eager")
                metrics["eager_over_lora"] = measure.ratio(times, "eager", "lora")
            if which == "step":
                metrics["saved_bytes"] = _saved(site, sample, tokens / len(sample.x))
            yield {**case, "pass": which, "literal_on_tokens": few, "metrics": metrics}


def whole_site(
    experts: Sequence[int], *, width: int, tokens: int, device: str, dtype: torch.dtype, rounds: int, route: str
) -> dict[str, Any]:
    """One site with its base product, forward and backward, as the number of experts grows: seconds by number.

    All numbers of experts are taken by turns in one run; ``route`` is the architecture's.
    """
    sites = {str(n): Site(n, width, tokens, min(2, n), dtype=dtype, device=device, route=route) for n in experts}
    runs = {n: functools.partial(site.step, "ours", True) for n, site in sites.items()}
    runs["base"] = functools.partial(sites[str(experts[0])].step, "base", True)
    times = measure.by_turns(runs, rounds)
    first = str(experts[0])
    return {
        "seconds": {n: measure.median(found) for n, found in times.items()},
        f"over_{first}": {n: measure.ratio(times, n, first) for n in times},
        "rounds": rounds,
    }


def check(n: int, d: int, tokens: int, top_k: int, device: str, dtype: torch.dtype, **options: Any) -> None:
    """Update and gradients of our form against the reference implementation in float64.

    Raises:
        RadarGateError: they differ by more than the dtype explains, so no time of theirs would mean anything.
    """
    site = Site(n, d, tokens, top_k, dtype=dtype, device=device, **options)
    found, exact = site.step("ours"), Site.step(site.double(), "literal")
    for name, a, b in zip(
        ("update", "gradient to x", *(n for n, _ in site.gate.named_parameters())), found, exact, strict=True
    ):
        error = ((a.double() - b).norm() / b.norm().clamp(min=1e-12)).item()
        if not error < TOLERANCE[dtype]:
            raise RadarGateError(
                f"{label({'experts': n, 'width': d, 'tokens': tokens, 'top_k': top_k})}: the {name} is off by {error:.1e}, "
                f"more than {TOLERANCE[dtype]:.0e}; nothing is timed before that is mended."
            )


def work(n: int, d: int, tokens: int, k: int) -> float:
    """Gflop of one forward and backward pass over our form: what decides which sizes are practical."""
    per_token = n * RANK * d * 2 + k * (RANK * d + CODE_RANK * d * 1.5 + 6 * d)
    return 3 * 2 * tokens * per_token / 1e9


def literal_tokens(n: int, d: int, tokens: int, most: int) -> int:
    """On how many tokens the reference implementation needs no more than ``most`` bytes."""
    return max(1, min(tokens, most // (LITERAL_TENSORS * n * d * 4)))


def label(case: dict[str, Any]) -> str:
    """A case in a few words."""
    k = case["top_k"]
    return f"n={case['experts']} d={case['width']} T={case['tokens']} k={k}"


def _run(site: Site, form: str, backward: bool) -> None:
    with peers.compiled(form != "eager"):
        name = "ours" if form == "eager" else form
        if backward:
            site.step(name)
        else:
            site.forward(name)


def _saved(site: Site, sample: Site, factor: float) -> dict[str, int]:
    """Bytes a forward pass keeps for its backward pass; the reference implementation's from a few tokens, as it grows with them."""
    known = measure.storages(site.x, *site.layer.parameters(), site.one_A, site.one_B)
    kept = {form: measure.saved_bytes(functools.partial(site.update, form), known) for form in ("ours", "lora")}
    known = measure.storages(sample.x, *sample.layer.parameters())
    kept["literal"] = int(factor * measure.saved_bytes(functools.partial(sample.update, "literal"), known))
    return kept
