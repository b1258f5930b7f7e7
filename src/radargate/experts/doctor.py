"""``radargate doctor``: every adapter checked against a base before anything is paid for, then proven to act."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from radargate.base_models.kinds import can_generate, other_inputs
from radargate.base_models.limits import Limits
from radargate.base_models.loading import base_dtype, load_base, load_tokenizer, meta_base
from radargate.errors import RadarGateError
from radargate.experts.adapters import Adapter, base_sites, read_adapter
from radargate.experts.fit import fit

logger = logging.getLogger(__name__)

PROBE_TOKENS = 16


@dataclass
class Diagnosis:
    """What the doctor found about one adapter.

    Attributes:
        name: the adapter's name.
        source: its folder or Hub id.
        ok: whether it can be used.
        problem: what is wrong and what to do, empty if ok.
        sites: how many linear layers it adapts.
        ranks: its ranks, ascending.
        scales: its LoRA scales, ascending.
        dtypes: its tensors' dtypes.
        modules: last parts of the names of the layers it adapts.
        update_norm: mean over sites of ‖B A‖ in Frobenius norm, scale included.
        effect: largest change of any logit of the base on a fixed probe.
        notes: what was read otherwise than it stands in the files.
    """

    name: str
    source: str
    ok: bool = False
    problem: str = ""
    sites: int = 0
    ranks: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    update_norm: float | None = None
    effect: float | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def examine(
    base: str,
    adapters: Mapping[str, str | Path],
    *,
    dtype: str | None = None,
    device: str | None = None,
    probe: bool = True,
) -> list[Diagnosis]:
    """Check adapters in order of cost: config, header, shapes, values, then their effect on the real base.

    Args:
        base: base model name; its shapes are read from its config before any weight.
        adapters: name → folder or Hub id.
        dtype: of the base, for the probe.
        device: where to run the probe.
        probe: False stops after the values, without loading the base's weights.

    Raises:
        BaseModelError: the base cannot be found.
    """
    choice = base_dtype(base, dtype, device)
    whole = meta_base(base)
    shapes = base_sites(whole)
    if probe and other_inputs(whole) and not can_generate(whole):
        logger.info(
            f"{type(whole).__name__} reads {', '.join(other_inputs(whole))}: adapters are not tried out on a probe."
        )
        probe = False
    logger.info(f"{base}: {len(shapes)} linear layers.")
    _check_tokenizer(base, whole)
    results, good = [], []
    for name, source in adapters.items():
        result = Diagnosis(name, str(source))
        results.append(result)
        try:
            adapter = read_adapter(name, source)
            result.notes = list(adapter.notes)
            _describe(result, fit(adapter, whole, shapes))
            good.append((result, adapter))
        except RadarGateError as error:
            result.problem = _without_name(str(error), name)
    if good and probe:
        logger.info(f"probing {len(good)} adapters on the base …")
        model = load_base(base, dtype=choice.name, device=device)
        for result, adapter in good:
            try:
                adapter = fit(adapter, model, shapes)
            except RadarGateError as error:
                result.problem = _without_name(str(error), result.name)
                continue
            result.notes = list(adapter.notes)
            result.effect = effect(model, adapter)
            result.ok = 0 < result.effect < math.inf
            if not math.isfinite(result.effect):
                result.problem = (
                    "turns the base's output into NaN or infinity on the probe; train it again, or leave it out."
                )
            elif not result.ok:
                result.problem = "leaves the base's output unchanged on the probe; leave it out, or train it again."
    elif not probe:
        for result, _ in good:
            result.ok = True
    return results


def _check_tokenizer(base: str, empty: nn.Module) -> None:
    """Say where the base's tokenizer has tokens that its embeddings do not have; a base without one is fine here."""
    with contextlib.suppress(RadarGateError):
        tokenizer, limits = load_tokenizer(base), Limits.of(empty)
        if limits.lacks(tokenizer):
            logger.warning(
                f"{base}: its tokenizer has {len(tokenizer)} tokens, its embeddings {limits.tokens}. Rows and prompts with a token that "
                "is not there are refused; resize the embeddings, or use the base's own tokenizer."
            )


@torch.no_grad()
def effect(model: PreTrainedModel, adapter: Adapter) -> float:
    """Largest change of any output of the base when one adapter is added, on fixed token ids (no tokenizer)."""
    size = int(cast(Any, model.get_input_embeddings()).weight.shape[0])
    ids = (torch.arange(PROBE_TOKENS, device=model.device) * 7919 + 11) % size
    inputs = {"input_ids": ids[None]}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[None, :4]
    before = model(**inputs)[0].float()
    hooks = []
    modules = dict(model.named_modules())
    for site, tensors in adapter.sites.items():
        A, B = (t.to(model.device, torch.float32) for t in adapter.read(site))

        def add(
            _: nn.Module, args: tuple[Any, ...], y: torch.Tensor, A: Any = A, B: Any = B, s: float = tensors.scale
        ) -> Any:
            return y + ((args[0].float() @ A.T) @ B.T * s).to(y.dtype)

        hooks.append(modules[site].register_forward_hook(add))
    try:
        after = model(**inputs)[0].float()
    finally:
        for hook in hooks:
            hook.remove()
    return float((after - before).abs().max())


def table(results: list[Diagnosis]) -> str:
    """The results for people: one line an adapter, the reason on its own line."""
    lines = []
    width = max([len(r.name) for r in results] + [7])
    lines.append(
        f"{'adapter':<{width}}  {'':4}  {'sites':>5}  {'ranks':<9}  {'scale':<9}  {'dtype':<5}  {'effect':>8}  modules"
    )
    for r in results:
        if r.ok:
            lines.append(
                f"{r.name:<{width}}  ok    {r.sites:>5}  {_span(r.ranks):<9}  {_span(r.scales):<9}  "
                f"{'/'.join(r.dtypes):<5}  {'' if r.effect is None else format(r.effect, '.3g'):>8}  {', '.join(r.modules)}"
            )
        else:
            lines.append(f"{r.name:<{width}}  BAD   {r.problem}")
        lines += [f"{'':<{width}}        {note}" for note in r.notes]
    bad = sum(not r.ok for r in results)
    lines.append(f"{len(results) - bad} of {len(results)} adapters can be used.")
    return "\n".join(lines)


def _describe(result: Diagnosis, adapter: Adapter) -> None:
    """Fill in shapes, and read every value once: finite, and not all zero."""
    result.sites = len(adapter.sites)
    result.ranks = sorted({s.rank for s in adapter.sites.values()})
    result.scales = sorted({round(s.scale, 6) for s in adapter.sites.values()})
    result.dtypes = sorted({info.dtype for s in adapter.sites.values() for info in (s.A, s.B)})
    result.modules = sorted({site.rsplit(".", 1)[-1] for site in adapter.sites})
    norms = []
    for site, tensors in adapter.sites.items():
        A, B = (t.float() for t in adapter.read(site))
        norms.append(tensors.scale * float(((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt()))
    result.update_norm = sum(norms) / len(norms)
    if not any(norms):
        raise RadarGateError(
            "changes nothing: A or B is zero at every site. It was never trained; leave it out, or train it."
        )


def _span(values: list[Any]) -> str:
    shown = [f"{v:g}" for v in values]
    return shown[0] if len(shown) == 1 else f"{shown[0]}-{shown[-1]}"


def _without_name(message: str, name: str) -> str:
    return message.removeprefix(f"adapter {name!r}").lstrip(": ")
