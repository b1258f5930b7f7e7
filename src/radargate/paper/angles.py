"""How a trained gate changes the angles between experts' outputs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F

from radargate.comparison.cells import Cell
from radargate.comparison.grid import Grid
from radargate.composition.composing import radar_config, radar_layers
from radargate.evaluation.usage import read_rows
from radargate.paper.site_outputs import outputs, some_tokens

ROWS = 4  # of each task
# groups of the FLAN chain-of-thought tasks; a task that is not here is a group of its own
GROUPS = {
    "aqua": "mathematics",
    "gsm8k": "mathematics",
    "creak": "reasoning",
    "ecqa": "reasoning",
    "sensemaking": "reasoning",
    "strategyqa": "reasoning",
    "esnli": "language",
    "qed": "language",
    "qasc": "science",
}


@torch.no_grad()
def measure_angles(model: Any, cell: Cell, grid: Grid) -> dict[str, Any]:
    """Cosines between experts' outputs on held-out tokens, before and after the trained rotation.

    Before training nothing is rotated (Q = 0), so the plain outputs are also those of step 0.

    Returns:
        ``pairs`` (two experts, whether they are related, mean cosine before and after, over tokens and sites), ``sites`` (mean
        cosine before and after over all pairs, and mean angle, site by site) and ``points`` (each expert's mean output before
        and after at the middle site, on the first two principal axes of them all).
    """
    names = radar_config(model).experts
    n = len(names)
    sums, counts = torch.zeros(2, n, n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    sites: dict[str, list[list[float]]] = {}
    means: dict[str, list[torch.Tensor]] = {}
    layers = [layer for layer in radar_layers(model) if len(layer.entries["default"][1]["experts"]) > 1]
    middle = next((la for la in layers[len(layers) // 2 :] if len(la.entries["default"][1]["experts"]) == n), layers[0])

    def look(layer: Any, args: tuple[Any, ...]) -> None:
        here = layer.entries["default"][1]["experts"]
        found = outputs(layer, some_tokens(args[0]))
        index = torch.tensor(here)
        both = []
        for place, v in enumerate((found.plain, found.turned)):
            unit = F.normalize(v.double().cpu(), dim=-1)
            cosines = unit @ unit.transpose(-1, -2)
            sums[place][index[:, None], index] += cosines.sum(0)
            first, second = torch.triu_indices(len(here), len(here), 1)
            upper = cosines[:, first, second]
            both.append(float(upper.mean()))
        counts[index[:, None], index] += len(found.plain)
        sites.setdefault(layer.site, []).append([*both, found.angle or 0.0])
        if layer is middle:
            pair = torch.stack([found.plain.double().mean(0), found.turned.double().mean(0)]).cpu()
            means.setdefault("points", []).append(pair)

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        read_rows(model, grid.tokenizer, [row for rows in grid.test.values() for row in rows[:ROWS]])
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [
        {
            "first": names[i],
            "second": names[j],
            "related": _related(names[i], names[j]),
            "before": float(sums[0, i, j] / counts[i, j]),
            "after": float(sums[1, i, j] / counts[i, j]),
        }
        for i, j in combinations(range(n), 2)
        if counts[i, j] > 0
    ]
    here = [names[i] for i in middle.entries["default"][1]["experts"]]
    by_site = [[site, *torch.tensor(values).mean(0).tolist()] for site, values in sites.items()]
    return {
        "pairs": pairs,
        "sites": by_site,
        "points": _plane(torch.stack(means["points"]).mean(0), here),
        "site": middle.site,
    }


def _related(first: str, second: str) -> bool:
    return GROUPS.get(first, first) == GROUPS.get(second, second)


def _plane(outputs: torch.Tensor, names: list[str]) -> list[dict[str, Any]]:
    """Mean outputs [2, n, d] on the first two principal axes of all of them."""
    flat = outputs.flatten(0, 1)
    centred = flat - flat.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    before, after = (centred @ axes.T).view(2, len(names), -1).tolist()
    return [{"expert": name, "before": b, "after": a} for name, b, a in zip(names, before, after, strict=True)]
