"""Fit one ordinary LoRA to what a composition adds, save it for PEFT, and keep a record of what it loses."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from radargate.base_models.loading import base_name, load_tokenizer
from radargate.composition.composing import expert_bank, radar_config, radar_layers
from radargate.composition.layer import RadarLayer
from radargate.data.rows import Row, rows_hash
from radargate.errors import AdapterError, OptionError
from radargate.experts.bank import write_expert
from radargate.experts.plain import plain_bank
from radargate.exporting.options import Fitting
from radargate.exporting.quality import Factors, measure
from radargate.exporting.reading import Batches, ByTask, make_batches, read, rows_that_fit, watching
from radargate.exporting.reduced_rank import LowRank, Moments, reduced_rank
from radargate.io.disk import writing
from radargate.io.records import make_record, write_atomic

logger = logging.getLogger(__name__)

MOMENT_NUMBERS = 1 << 28  # in memory at a time (2 GB); more sites than that take another pass over the rows
RECORD = "record.json"


def fit_lora(
    model: Any,
    folder: str | Path,
    fit: ByTask,
    held_out: ByTask,
    fitting: Fitting,
    *,
    tokenizer: Any = None,
    adapter_name: str = "default",
    **facts: Any,
) -> dict[str, Any]:
    """Save the LoRA of one rank that comes closest to a composition's updates, and measure what it loses.

    In closed form, site by site: inputs and updates are those of the composition on the rows of ``fit``, and only their second
    moments are kept (`radargate.exporting.reduced_rank`). The model is left as it was.

    Args:
        model: a composed model.
        folder: where the adapter goes, with ``record.json`` beside it.
        fit: task → rows to fit to.
        held_out: task → other rows, to measure on.
        fitting: rank and batches.
        tokenizer: the base's own; found by the base's name where it is not given.
        adapter_name: the composition's name inside the model.
        **facts: more facts for the record.

    Returns:
        The record: gold-answer NLL of the composition, the LoRA and the base on the held-out rows, with intervals, and each site's
        relative residual there.

    Raises:
        OptionError: a rank that no site can have, or a composition that is not active.
        DataError: every row to fit to, or to measure on, is too long.
        AdapterError: the folder already holds an adapter, or the composition adds nothing.
        RadarGateError: the composition cannot be scored token by token.
    """
    model.base_model.check_active(adapter_name)
    folder, config = Path(folder), radar_config(model, adapter_name)
    layers = [layer for layer in radar_layers(model) if adapter_name in layer.radar_gate]
    check_rank(layers, adapter_name, fitting.rank)
    if (folder / "adapter_config.json").exists():
        raise AdapterError(f"{folder} already holds an adapter; choose another folder.")
    model.base_model.check_decodes()  # or it could not be scored
    tokenizer = tokenizer or load_tokenizer(base_name(model.get_base_model()))
    was_training = model.training
    model.eval()
    try:
        batches, encoded = make_batches(model, tokenizer, _flat(fit), fitting)
        others_batches, others_encoded = make_batches(model, tokenizer, _flat(held_out), fitting)
        fit, held_out = rows_that_fit(fit, encoded), rows_that_fit(held_out, others_encoded)
        logger.info(f"fitting rank {fitting.rank} at {len(layers)} sites; {encoded.report()}")
        fits = fit_sites(model, layers, batches, fitting.rank, adapter_name)
        made = f"rank {fitting.rank} fitted to {config.gate} of {', '.join(config.experts)}"
        factors = {site: (found.A, found.B) for site, found in fits.items()}
        bank = plain_bank("lora", factors, expert_bank(model, adapter_name), made)
        stored: Factors = {site: (here.A, here.B) for site, here in bank.sites.items()}
        logger.info(f"measuring on {len(others_encoded.rows)} held-out rows")
        metrics = measure(model, tokenizer, stored, held_out, others_batches, adapter_name, fitting)
    finally:
        model.train(was_training)
    for site, found in fits.items():
        metrics["residual"]["sites"].setdefault(site, {}).update(
            fit=found.residual, fit_any_rank=found.residual_any_rank, rank=len(found.A), ridge=found.ridge
        )
    record = make_record(
        "export",
        f"rank-{fitting.rank}",
        metrics,
        **facts,
        **asdict(fitting),
        gate=config.gate,
        architecture=config.architecture,
        top_k=config.top_k,
        base=config.base_model_name_or_path,
        experts={name: known["sha256"] for name, known in config.expert_facts.items()},
        tokens=sum(len(row.input_ids) for row in encoded.rows),
        dropped=encoded.dropped,
        dropped_held_out=others_encoded.dropped,
        data_hash={"fit": rows_hash(_flat(fit)), "held_out": rows_hash(_flat(held_out))},
        rows={"fit": len(encoded.rows), "held_out": len(others_encoded.rows)},
    )
    with writing("the adapter", folder):
        write_expert(bank, "lora", folder)
        write_atomic(folder / RECORD, json.dumps(record, indent=2))
    return record


def check_rank(layers: Sequence[RadarLayer], adapter_name: str, rank: int) -> None:
    """Raise `OptionError` for a rank below 1, or above what the widest site can have."""
    widest = max(min(layer.entries[adapter_name][1]["shape"]) for layer in layers)
    if not 1 <= rank <= widest:
        raise OptionError(
            f"rank is {rank}, expected 1 to {widest}, the width of the widest site. Choose a smaller one."
        )


@torch.no_grad()
def fit_sites(
    model: Any, layers: Sequence[RadarLayer], batches: Batches, rank: int, adapter_name: str = "default"
) -> dict[str, LowRank]:
    """Site → the map of this rank closest to its updates on the batches; in several passes where moments would fill memory."""
    found: dict[str, LowRank] = {}
    groups = list(_groups(layers, adapter_name))
    for number, group in enumerate(groups, 1):
        moments = {}
        for layer in group:
            d_in, d_out = layer.entries[adapter_name][1]["shape"]
            moments[layer.site] = Moments(d_in, d_out, layer.bank(adapter_name).A.device)

        def see(layer: RadarLayer, x: Tensor, u: Tensor, moments: dict[str, Moments] = moments) -> None:
            if layer.site in moments:
                moments[layer.site].add(x, u)

        with watching(model, adapter_name, see):
            for count in read(model, batches):
                if count % max(len(batches) // 4, 1) == 0:
                    logger.info(f"pass {number} of {len(groups)}: {count} of {len(batches)} batches read")
        while moments:  # each is dropped once it is used
            site = next(iter(moments))
            found[site] = reduced_rank(moments.pop(site), rank)
    return {layer.site: found[layer.site] for layer in layers}


def _groups(layers: Iterable[RadarLayer], adapter_name: str) -> Iterator[list[RadarLayer]]:
    """Sites whose moments fit into memory together."""
    group: list[RadarLayer] = []
    numbers = 0
    for layer in layers:
        d_in, d_out = layer.entries[adapter_name][1]["shape"]
        own = d_in * (d_in + d_out)
        if group and numbers + own > MOMENT_NUMBERS:
            yield group
            group, numbers = [], 0
        group.append(layer)
        numbers += own
    if group:
        yield group


def _flat(by_task: ByTask) -> list[Row]:
    return [row for rows in by_task.values() for row in cast(Sequence[Row], rows)]
