"""What rule ``spectr`` with ``calibration="rows"`` must know: how long each expert's outputs are on its own rows."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from radargate.base_models.offload import device_of
from radargate.composition.composing import radar_layers
from radargate.composition.layer import using
from radargate.data.batches import EncodedRows
from radargate.errors import OptionError
from radargate.gates.base import Call
from radargate.gates.rules.spectr import SpectrRule

logger = logging.getLogger(__name__)

MOST_ROWS = 200  # of each expert's task; a mean and a spread over their tokens need no more

Inputs = Mapping[str, Any]


def rules_without_norms(model: PeftModel) -> list[SpectrRule]:
    """The gates of the compositions at work that read rows before they can weigh."""
    gates = [
        layer.gate(name) for layer in radar_layers(model) for name in layer.active_adapters if name in layer.entries
    ]
    return [gate for gate in gates if isinstance(gate, SpectrRule) and gate.options.calibration == "rows"]


@torch.no_grad()
def describe_norms(model: PeftModel, inputs: Mapping[str, Iterable[Inputs]]) -> None:
    """Tell rule ``spectr`` (``calibration="rows"``) mean and spread of each expert's output norms, at each site.

    Args:
        model: a composed model.
        inputs: expert → batches of the model's inputs by name, from rows of the expert's own domain; padding is left out
            where they bring an ``attention_mask``.

    Raises:
        OptionError: the model has no such rule, or an expert no inputs.
    """
    rules = rules_without_norms(model)
    names = [*dict.fromkeys(name for rule in rules for name in rule.site.composition)]
    batches = {name: list(inputs.get(name, ())) for name in names}
    missing = [name for name, own in batches.items() if not own]
    if not rules or missing:
        raise OptionError(
            "describe_norms needs a model composed with gate='spectr' and calibration='rows', and inputs for each expert; "
            + (f"found none for {missing[0]!r}." if missing else "found no site with such a rule.")
        )
    sums = {rule: torch.zeros(3, rule.site.n, dtype=torch.float64) for rule in rules}

    def look(rule: Any, args: tuple[Any, ...]) -> None:
        call: Call = args[0]
        norms = rule.norms(call)[..., rule.site.experts.index(expert)]
        norms = (norms if call.real is None else norms[call.real]).double().flatten()
        found = torch.stack([torch.ones_like(norms), norms, norms.square()]).sum(-1)
        sums[rule][:, rule.site.experts.index(expert)] += found.cpu()

    was_training, device = model.training, device_of(model)
    model.eval()
    hooks = [rule.register_forward_pre_hook(look) for rule in rules]
    try:
        for rule in rules:
            rule.calibrate(torch.zeros(rule.site.n), torch.ones(rule.site.n))  # it may weigh the one that acts
        for expert in names:
            with using(model, {name: 0.0 for name in names if name != expert}):
                for batch in batches[expert]:
                    model(**{key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.items()})
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    for rule, (count, total, squares) in sums.items():
        mean = total / count.clamp(min=1)
        rule.calibrate(mean, (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt())


def norm_batches(model: PeftModel, encoded: EncodedRows, batch_size: int) -> dict[str, list[Inputs]]:
    """Expert → batches of the first rows of the task of its name."""
    accepted = set(inspect.signature(model.get_base_model().forward).parameters)
    if not encoded.collator.encoder_decoder:
        accepted -= {"labels"}  # nobody asks for a loss, nor for the logits behind it
    few: Inputs = {} if encoded.collator.encoder_decoder else {"logits_to_keep": 1}
    experts = dict.fromkeys(name for rule in rules_without_norms(model) for name in rule.site.composition)
    found: dict[str, list[Inputs]] = {}
    for expert in experts:
        own = encoded.of_task(expert)[:MOST_ROWS]
        rows = [encoded.rows[i] for i in own]
        batches = [encoded.collator(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
        found[expert] = [{key: v for key, v in {**batch, **few}.items() if key in accepted} for batch in batches]
        logger.info(f"norms of {expert}: {len(rows)} rows")
    return found
