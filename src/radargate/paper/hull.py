"""Where the update a task needs lies, seen from the experts of other tasks: in their hull, in their span, or outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from radargate.comparison.cells import Cell
from radargate.comparison.grid import Grid
from radargate.composition.composing import radar_layers
from radargate.errors import OptionError
from radargate.evaluation.usage import read_rows
from radargate.experts.adapters import read_adapter
from radargate.paper.simplex import simplex_weights
from radargate.paper.site_outputs import outputs, some_tokens

ROWS = 4
LEFT_OUT = "left out"  # key of the grid's adapters for the expert that is wanted
INSIDE = 1e-3  # a wanted update is inside where this share of its length or less is not reached


@torch.no_grad()
def measure_hull(model: Any, cell: Cell, grid: Grid) -> dict[str, Any]:
    """How much of the left-out expert's update the others can make, on held-out tokens of its task.

    Inputs are those of the base with the left-out expert, which is what composing should come to. Everything is a residual: the
    length of what is missing over the length of what is wanted, over all tokens of a site.

    Returns:
        ``sites``: for each site ``one`` (its nearest expert), ``hull`` (best weights ≥ 0 that sum to 1, token by token),
        ``turned_hull`` (the same over outputs as the gate turns them), ``span`` (best free weights), ``gate`` (what the trained
        gate adds), ``inside`` (share of tokens inside the hull), ``angle``; and their means over sites, and ``gap`` (how far
        ``hull`` can be from the best at most).
    """
    (wanted,) = (read_adapter(name, folder) for name, folder in grid.adapters[LEFT_OUT].items())
    factors = {site: tuple(part.float() for part in wanted.read(site)) for site in wanted.sites}
    found: dict[str, list[dict[str, Tensor]]] = {}

    def look(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if layer.site not in factors:
            return output
        x = args[0]
        A, B = (part.to(x.device) for part in factors[layer.site])
        full = x.float() @ A.T @ B.T * wanted.sites[layer.site].scale
        tokens, target = some_tokens(x), some_tokens(full).double().cpu()
        experts = outputs(layer, tokens)
        made = layer.update(tokens, "default").double().cpu()
        entry = _products(experts.plain.double().cpu(), target) | _products(
            experts.turned.double().cpu(), target, "turned_"
        )
        entry |= {
            "gate": (target - made).square().sum(-1),
            "angle": torch.full((len(tokens),), experts.angle or 0.0).double(),
        }
        found.setdefault(layer.site, []).append(entry)
        return output + full.to(output.dtype)

    hooks = [layer.register_forward_hook(look) for layer in radar_layers(model)]
    try:
        with model.disable_adapter():
            read_rows(model, grid.tokenizer, [row for rows in grid.test.values() for row in rows[:ROWS]])
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise OptionError(
            f"the expert of {', '.join(grid.test)} acts at no site where the others act, so there is no hull to measure "
            "from. Use experts with the same target modules."
        )
    sites: list[dict[str, Any]] = []
    gap = 0.0
    for site, entries in found.items():
        joined = {key: torch.cat([entry[key] for entry in entries]) for key in entries[0]}
        numbers, worst = _residuals(joined)
        gap = max(gap, worst)
        sites.append({"site": site, **numbers})
    means = {key: sum(s[key] for s in sites) / len(sites) for key in sites[0] if key != "site"}
    return {"sites": sites, "means": means, "gap": gap, "wanted": next(iter(grid.test))}


def _products(v: Tensor, target: Tensor, prefix: str = "") -> dict[str, Tensor]:
    """Inner products of outputs v [tokens, n, d] with each other and with the target, and what their span leaves."""
    basis = torch.linalg.svd(v, full_matrices=False)
    floor = 1e-9 * basis.S[:, :1].clamp(min=1e-30)
    keep = floor < basis.S
    inside = torch.einsum("tnd,td->tn", basis.Vh, target) * keep
    return {
        f"{prefix}gram": v @ v.transpose(-1, -2),
        f"{prefix}inner": torch.einsum("tnd,td->tn", v, target),
        f"{prefix}span": (target.square().sum(-1) - inside.square().sum(-1)).clamp(min=0),
        "size": target.square().sum(-1),
    }


def _residuals(at: dict[str, Tensor]) -> tuple[dict[str, float], float]:
    size = at["size"]
    total = float(size.sum().clamp(min=1e-30))
    left, gap = {}, 0.0
    for prefix, name in (("", "hull"), ("turned_", "turned_hull")):
        gram, inner = at[f"{prefix}gram"], at[f"{prefix}inner"]
        w, gaps = simplex_weights(gram, inner)
        left[name] = (size - 2 * (w * inner).sum(-1) + ((gram @ w[..., None])[..., 0] * w).sum(-1)).clamp(min=0)
        gap = max(gap, float((2 * gaps).sum()) / total)
    one = (size[:, None] - 2 * at["inner"] + at["gram"].diagonal(dim1=-2, dim2=-1)).amin(-1).clamp(min=0)
    left |= {"one": one, "span": at["span"], "gate": at["gate"]}
    numbers = {name: float(square.sum() / total) ** 0.5 for name, square in left.items()}
    inside = float((left["hull"] <= INSIDE**2 * size).double().mean())
    return {**numbers, "inside": inside, "angle": float(at["angle"].mean())}, gap
