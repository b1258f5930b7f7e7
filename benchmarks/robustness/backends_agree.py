"""The same scores through every backend: python benchmarks/robustness/backends_agree.py BUNDLE --data DIR [--limit 5] [--out FILE].

Scores a bundle with the compiled operations, with PyTorch alone and with the paper's equations in output space, and counts
rows on which they decide alike.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from radargate.base_models.loading import load_tokenizer
from radargate.composition.composing import load, radar_config, radar_layers
from radargate.data.sources import load_rows
from radargate.evaluation.scoring import Scorer
from radargate.io.records import append_records, make_record
from speed import peers

sys.path.insert(0, str(Path(__file__).parents[1]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and store how often backends agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=5, help="rows of each task")
    parser.add_argument("--dtype", default="float32", help="of the base (default %(default)s)")
    parser.add_argument("--out", help="append the record here")
    options = parser.parse_args(arguments)
    rows = [row for task in load_rows(options.data, "test", limit=options.limit).values() for row in task]
    model: Any = load(None, options.bundle, dtype=getattr(torch, options.dtype))
    config = radar_config(model)
    scorer = Scorer(model, load_tokenizer(config.base_model_name_or_path or ""), max_new_tokens=16)
    found = {}
    for form in ("compiled", "PyTorch alone", "literal"):
        if form == "literal":
            for layer in radar_layers(model):
                layer.update = types.MethodType(peers.literal_update, layer)  # type: ignore[method-assign]
        with peers.compiled(form == "compiled"), torch.no_grad():
            found[form] = scorer.score(rows)
    first = found["compiled"]
    metrics: dict[str, Any] = {"n": len(rows)}
    for form, scores in found.items():
        metrics[form] = {
            "accuracy": sum(s.correct for s in scores) / len(scores),
            "nll": sum(s.nll_sum / max(s.tokens, 1) for s in scores) / len(scores),
            "same_decision": sum(a.prediction == b.prediction for a, b in zip(scores, first, strict=True)),
            "largest_nll_difference": max(
                abs(a.nll_sum - b.nll_sum) / max(a.tokens, 1) for a, b in zip(scores, first, strict=True)
            ),
        }
        print(form, metrics[form])
    if options.out:
        facts = {
            "dtype": options.dtype,
            "gate": config.gate,
            "top_k": config.top_k,
            "experts": config.experts,
            "data": options.data.split("/")[-1],
        }
        append_records(options.out, [make_record("backends", options.bundle.split("/")[-1], metrics, **facts)])


if __name__ == "__main__":
    main()
