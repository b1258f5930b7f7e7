"""A trace on disk: one file of tensors a site, written as soon as the site has run, and one of facts."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from radargate.errors import RadarGateError
from radargate.io.disk import writing
from radargate.io.records import write_atomic
from radargate.ops.selection import dense_weights

FACTS, SCHEMA = "trace.json", 1
NEEDED = ("schema", "tokens", "prompt_length", "experts", "sites", "nll", "without")


@dataclass(frozen=True)
class SiteTrace:
    """What happened at one site; T tokens, n experts there, k of them chosen.

    Attributes:
        site: its name.
        experts: names of the experts there, in order.
        indices: [T, k] chosen experts.
        weights: [T, k] their weights.
        angles: [T, k] mean size of their rotation angles, in radians; zeros where nothing rotates.
        code_norms: [T, k] length of their rotation codes; zeros where nothing rotates.
        expert_norms: [T, n] ‖v_i‖ of every expert's output.
        contributions: [T, k] ‖g_i ṽ_i‖ of what each chosen expert adds.
        update: [T] length of the whole update.
        base: [T] length of the base layer's own output.
        cosine_before: [n, n] mean over tokens of cos(v_i, v_j); empty where pairs were not asked for.
        cosine_after: [n, n] the same of the rotated outputs.
        map_before: [n, 2] mean output of every expert on the plane that holds most of all means, before and after.
        map_after: [n, 2] the same, rotated.
    """

    site: str
    experts: tuple[str, ...]
    indices: Tensor
    weights: Tensor
    angles: Tensor
    code_norms: Tensor
    expert_norms: Tensor
    contributions: Tensor
    update: Tensor
    base: Tensor
    cosine_before: Tensor
    cosine_after: Tensor
    map_before: Tensor
    map_after: Tensor

    def dense_weights(self) -> Tensor:
        """Weights of all experts, zero where not chosen: [T, n]."""
        return dense_weights(self.weights, self.indices.long(), len(self.experts))

    def entropy(self) -> Tensor:
        """Entropy of each token's weights, in nats: [T]."""
        share = self.weights.abs() / self.weights.abs().sum(-1, keepdim=True).clamp(min=1e-12)
        return -torch.xlogy(share, share).sum(-1)


class Trace:
    """A trace in a folder; sites are read when they are asked for.

    Attributes:
        folder: where it lies.
        tokens: the text of every token; put together they are the text.
        ids: the token ids; empty in a trace of an earlier version.
        prompt_length: how many of them are the prompt; the rest is the answer.
        experts: names of all experts of the composition.
        nll: [T - 1] −log p of every token after the first; empty where nothing predicts them.
        without: expert → [T - 1] the same with that expert switched off; empty where that was not asked for.
        facts: everything else that is known, such as gate and base.
    """

    def __init__(self, folder: str | Path, keep: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.folder, self._keep = Path(folder), keep
        try:
            self.facts: dict[str, Any] = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            for name in NEEDED:
                if name not in self.facts:
                    raise ValueError(f"{FACTS} has no {name}")
            if self.facts["schema"] != SCHEMA:
                raise ValueError(f"schema {self.facts['schema']}, not {SCHEMA}")
        except (OSError, ValueError, TypeError) as error:
            raise RadarGateError(
                f"{self.folder} holds no whole trace ({error}). Make one with radargate.trace(model, text, out=...)."
            ) from error
        self.tokens: list[str] = self.facts["tokens"]
        self.ids: list[int] = self.facts.get("ids", [])
        self.prompt_length: int = self.facts["prompt_length"]
        self.experts: list[str] = self.facts["experts"]
        self.nll: list[float] = self.facts["nll"]
        self.without: dict[str, list[float]] = self.facts["without"]

    @property
    def site_names(self) -> list[str]:
        """Every site, in the base model's order."""
        return list(self.facts["sites"])

    def site(self, name: str) -> SiteTrace:
        """Read one site.

        Raises:
            RadarGateError: there is no such site.
        """
        if name not in self.facts["sites"]:
            raise RadarGateError(f"the trace has no site {name!r}; its first is {self.site_names[0]}.")
        tensors = load_file(self.folder / file_name(name))
        return SiteTrace(name, tuple(self.facts["sites"][name]), **tensors)

    def sites(self) -> Iterator[SiteTrace]:
        """Every site, one after the other."""
        return (self.site(name) for name in self.site_names)

    def effect(self) -> dict[str, float]:
        """How much the mean NLL of the answer (of the text, where there is no answer) rises without each expert."""
        start = max(self.prompt_length - 1, 0) if self.prompt_length < len(self.tokens) else 0
        with_all = _mean(self.nll[start:])
        return {name: _mean(values[start:]) - with_all for name, values in self.without.items()}


def write_site(folder: Path, trace: SiteTrace) -> None:
    """Write one site's tensors."""
    found = {name: t.detach().cpu().contiguous() for name, t in vars(trace).items() if isinstance(t, Tensor)}
    tensors = {name: t.float() if t.is_floating_point() else t.to(torch.int16) for name, t in found.items()}
    with writing("the trace", folder):
        save_file(tensors, folder / file_name(trace.site))


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write what makes the trace whole, last."""
    with writing("the trace", folder):
        write_atomic(folder / FACTS, json.dumps({"schema": SCHEMA, **facts}))


def file_name(site: str) -> str:
    """The file of a site."""
    return re.sub(r"[^\w.-]", "_", site) + ".safetensors"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
