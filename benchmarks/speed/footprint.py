"""What a composition weighs: parameters and arithmetic beside the paper's formulas, time and memory to load it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import radargate
from radargate.composition.composing import radar_layers
from speed import measure, peers
from speed.models import RANK, Bases, write_adapters
from speed.site import CODE_RANK, Site


def complexity(experts: Sequence[int], width: int, tokens: int, top_k: int) -> Iterator[dict[str, Any]]:
    """Trainable parameters, flop a token and peak memory of one site, counted, beside the formulas of Eq. 40-42.

    The formulas: stretch n·d parameters, radar n·d + r_a·d + r_a·d/2; the gates' products take twice as many flop a
    token, the chosen experts 4·k·r·d. What the formulas leave out, every expert's share in the reference, shows in the count.
    """
    for n in experts:
        for gate in ("stretch", "radar"):
            site = Site(n, width, tokens, min(top_k, n), gate=gate)
            parameters = n * width + (CODE_RANK * (width + width // 2) if gate == "radar" else 0)
            counted, memory = {}, {}
            for form in ("ours", "literal"):
                with peers.compiled(False), FlopCounterMode(display=False) as counter:
                    site.forward(form)
                counted[form] = counter.get_total_flops() / tokens
                memory[form] = measure.peak_bytes(lambda site=site, form=form: site.forward(form))  # type: ignore[misc]
            yield {
                "experts": n,
                "gate": gate,
                "width": width,
                "tokens": tokens,
                "top_k": min(top_k, n),
                "metrics": {
                    "parameters": sum(p.numel() for p in site.gate.parameters()),
                    "parameters_formula": parameters,
                    "flop_per_token": counted,
                    "flop_per_token_formula": 2 * parameters + 4 * min(top_k, n) * RANK * width,
                    "peak_bytes": memory,
                },
            }


def loading(experts: Sequence[int], shape: str, layers: int | None) -> Iterator[dict[str, Any]]:
    """Seconds to compose and to load a bundle, and the bytes of its experts, as their number grows."""
    bases = Bases(shape, layers=layers, dtype=torch.float32, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(bases, max(experts), Path(folder))
        for n in experts:
            begun = time.perf_counter()
            model = radargate.compose(bases.new(), dict(list(adapters.items())[:n]), top_k=min(2, n))
            composed = time.perf_counter() - begun
            model.save_pretrained(f"{folder}/bundle{n}")
            held = sum(layer.bank("default").A.nbytes + layer.bank("default").B.nbytes for layer in radar_layers(model))
            begun = time.perf_counter()
            radargate.load(bases.new(), f"{folder}/bundle{n}")
            yield {
                "experts": n,
                "metrics": {
                    "compose_seconds": composed,
                    "load_seconds": time.perf_counter() - begun,
                    "expert_bytes": held,
                },
            }


def importing(rounds: int = 5) -> dict[str, float]:
    """Seconds of ``import radargate`` in a fresh process, less what Python itself takes."""

    def run(code: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begun

    times: dict[str, list[float]] = {"bare": [], "import": []}
    for _ in range(rounds):
        times["bare"].append(run("pass"))
        times["import"].append(run("import radargate"))
    return {"import_seconds": measure.median(times["import"]) - measure.median(times["bare"])}
