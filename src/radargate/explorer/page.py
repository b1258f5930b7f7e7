"""A trace as one page to look around in: every token's weights, angles and norms, drawn by the browser, offline."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radargate.errors import OptionError
from radargate.explorer.files import SiteTrace, Trace
from radargate.ops.selection import dense_weights
from radargate.report.charts import COLOURS

MANY = 4_000_000  # weights above which one byte has to do for each
PARTS = ("explorer_data.js", "explorer_charts.js", "explorer.js")
LIVE_PARTS = ("live.js",)
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def explorer(traces: Sequence[Trace], names: Sequence[str] = (), title: str = "What the gates do") -> str:
    """One self-contained HTML file: it opens from disk, and its content policy lets it load nothing.

    Args:
        traces: one trace, or two of the same text to lie side by side.
        names: what to call them; their gates where not given.
        title: of the page.

    Raises:
        OptionError: no trace, or more than two; or plotly is not installed.
    """
    if not 1 <= len(traces) <= 2:
        raise OptionError(f"found {len(traces)} traces, expected one, or two to compare.")
    named = list(names) or [str(trace.facts.get("gate", "trace")) for trace in traces]
    data = {
        "title": title,
        "colours": COLOURS,
        "traces": [{"name": name, **payload(trace)} for name, trace in zip(named, traces, strict=True)],
    }
    return _page(data)


def live_page(title: str = "Ask, and see what the gates do") -> str:
    """The same page without a trace and with a form, which asks the server it comes from and shows the answer's trace.

    Raises:
        OptionError: plotly is not installed.
    """
    return _page({"title": title, "colours": COLOURS, "traces": []}, live=True)


def _page(data: dict[str, Any], live: bool = False) -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise OptionError('the page needs plotly: pip install "radargate[report]".') from error

    def text(name: str) -> str:
        return (Path(__file__).parent / name).read_text(encoding="utf-8")

    filled = {
        "TITLE": html.escape(data["title"]),
        "POLICY": f"{POLICY}; connect-src 'self'" if live else POLICY,
        "STYLE": text("explorer.css"),
        "LIVE": text("live.html") if live else "",
        "DATA": script_safe(data),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": "\n".join(map(text, (*PARTS, *(LIVE_PARTS if live else ())))),
    }
    return re.sub(r"%%([A-Z]+)%%", lambda found: filled[found[1]], text("explorer.html"))


def script_safe(data: Any) -> str:
    """JSON that can stand inside a script element: ASCII, and nothing in it ends the element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def payload(trace: Trace) -> dict[str, Any]:
    """A trace's numbers, small: tokens' weights and angles as whole numbers of 2 bytes (1 where there are very many)."""
    slots = sum(site.weights.numel() for site in trace.sites())
    reads = set(trace.facts.get("on_encoder", ()))
    bits = 8 if slots > MANY else 16
    return {
        "tokens": trace.tokens,
        "prompt": trace.prompt_length,
        "encoder": trace.facts.get("encoder_tokens", []),
        "experts": trace.experts,
        "effect": trace.effect(),
        "nll": [round(value, 4) for value in trace.nll],
        "facts": {key: trace.facts.get(key) for key in ("base", "gate", "architecture", "top_k")},
        "sites": [_site(site, trace, bits, site.site in reads) for site in trace.sites()],
    }


def layer_of(site: str) -> str:
    """The layer a site lies in, with its stack where the name says one: ``encoder 3``, ``12``, or ``other``."""
    parts = site.split(".")
    number = next((part for part in parts if part.isdigit()), None)
    if number is None:
        return "other"
    stack = next((part for part in parts if part in ("encoder", "decoder")), None)
    return f"{stack} {number}" if stack else number


def packed(values: Tensor, bits: int = 16) -> dict[str, Any]:
    """Numbers as base64 of whole numbers and the step between them; the page decodes it with ``numbers``."""
    values = torch.nan_to_num(values.detach().double())
    top = (1 << (bits - 1)) - 1
    largest = float(values.abs().max()) if values.numel() else 0.0
    step = largest / top or 1.0
    whole = (values / step).round().to(torch.int16 if bits == 16 else torch.int8)
    return {"step": step, "bits": bits, "data": _base64(whole)}


def pair_angles(cosines: Tensor) -> Tensor:
    """Angles in degrees between experts' outputs, arccos of their mean cosines; −1 where an output is always zero."""
    alive = cosines.diagonal() > 0.5
    degrees = torch.rad2deg(cosines.double().clamp(-1, 1).arccos())
    degrees.fill_diagonal_(0.0)
    return torch.where(alive[:, None] & alive[None, :], degrees, -1.0)


def _site(site: SiteTrace, trace: Trace, bits: int, on_encoder: bool) -> dict[str, Any]:
    tokens, n = site.expert_norms.shape
    cut = tokens if on_encoder else min(trace.prompt_length, tokens)
    added = dense_weights(site.contributions, site.indices.long(), n)
    every = site.indices.shape[1] == n and bool((site.indices == torch.arange(n)).all())
    small = torch.uint8 if n <= 256 else torch.int16
    found: dict[str, Any] = {
        "name": site.site,
        "layer": layer_of(site.site),
        "kind": site.site.split(".")[-1],
        "encoder": on_encoder,
        "experts": [trace.experts.index(name) for name in site.experts],
        "k": site.indices.shape[1],
        "wide": n > 256,
        "indices": "" if every else _base64(site.indices.to(small)),
        "weights": packed(site.weights, bits),
        "angles": packed(site.angles.mean(-1)) if bool(site.angles.any()) else None,
        "norms": [_means(added, cut), _means(site.base[:, None], cut), _means(site.update[:, None], cut)],
    }
    if site.cosine_before.numel() and n > 1:
        found["pairs"] = [packed(pair_angles(site.cosine_before)), packed(pair_angles(site.cosine_after))]
        found["maps"] = [_digits(site.map_before), _digits(site.map_after)]
    return found


def _means(values: Tensor, cut: int) -> list[list[float] | None]:
    """Means over the prompt and over the answer, [n] each; None where there is no answer."""
    parts = (values[:cut], values[cut:])
    return [_digits(part.mean(0)) if part.shape[0] else None for part in parts]


def _digits(values: Tensor) -> Any:
    def short(value: Any) -> Any:
        return [short(one) for one in value] if isinstance(value, list) else float(f"{value:.5g}")

    return short(torch.nan_to_num(values.double()).tolist())


def _base64(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()
