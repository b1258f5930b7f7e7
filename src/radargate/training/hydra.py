"""Experts for HydraLoRA: one A shared by all, a head B_i for each task."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from radargate.base_models.kinds import task_type
from radargate.base_models.loading import base_name, load_base, load_tokenizer
from radargate.composition.composing import compose, expert_bank, radar_layers
from radargate.data.batches import encode_rows
from radargate.data.rows import Row
from radargate.data.sources import load_rows
from radargate.errors import RadarGateError
from radargate.experts.bank import write_expert
from radargate.io.progress import duration
from radargate.io.records import append_records, make_record
from radargate.training.experts import begun_dtype, check_options, lora_config, train_experts
from radargate.training.loop import AnswerTrainer, record_facts, training_arguments, training_run
from radargate.training.options import ExpertOptions

logger = logging.getLogger(__name__)

JOINT_BUNDLE = "joint"


def train_hydra_experts(
    base: str | PreTrainedModel,
    data: str | Mapping[str, list[Row]],
    out: str | Path,
    options: ExpertOptions,
    *,
    tasks: list[str] | None = None,
    resume: bool = False,
    dtype: str | None = None,
    device: str | None = None,
) -> dict[str, Path]:
    """Train adapters that share A: A from one LoRA on all tasks, then frozen, and a head B_i on each task.

    Arguments and errors as for `radargate.training.experts.train_experts`. The joint LoRA stays in ``out/.shared``.

    Source: HydraLoRA (NeurIPS 2024), in the recipe of docs/concepts/architectures.md for experts that are trained one by one.
    """
    out = Path(out)
    model = load_base(base, dtype=dtype or begun_dtype(out / ".shared"), device=device)
    shared = out / ".shared" / "union"
    logger.info("First one LoRA on all tasks together: its A will be shared, and frozen.")
    if (shared / "adapter_config.json").exists():
        check_options(shared, options)
    else:
        train_experts(model, data, out / ".shared", options, tasks=tasks, union="union", device=device)
    return train_experts(model, data, out, options, tasks=tasks, resume=resume, device=device, frozen_A=shared)


def train_hydra_jointly(
    base: str | PreTrainedModel,
    data: str,
    out: str | Path,
    options: ExpertOptions,
    *,
    heads: int = 4,
    tasks: list[str] | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> dict[str, Path]:
    """HydraLoRA's own training: A, all heads and the router together on the mixed data.

    Args:
        base: base model, or its name.
        data: where the rows are (split ``train``).
        out: folder: one adapter a head (``head1`` …) and the whole as a bundle, ``joint``.
        options: rank, targets, steps and so on.
        heads: number of heads, whatever the number of tasks.
        tasks: train on these only.
        dtype: of the base.
        device: where to train.

    Returns:
        head → folder of its adapter.

    Raises:
        RadarGateError: ``out`` already holds a bundle.

    Source: HydraLoRA (NeurIPS 2024): A Kaiming-uniform, B_i zero, a router without bias, dense softmax, no auxiliary loss.
    """
    out = Path(out)
    if (out / JOINT_BUNDLE).exists():
        raise RadarGateError(f"{out / JOINT_BUNDLE} already holds a bundle; choose another `out`.")
    with training_run(out, options):
        model = load_base(base, dtype=dtype, device=device)
        tokenizer, seq2seq = load_tokenizer(base), bool(model.config.is_encoder_decoder)
        rows = [row for task_rows in load_rows(data, "train", tasks).values() for row in task_rows]
        encoded = encode_rows(rows, tokenizer, options, encoder_decoder=seq2seq)
        logger.info(f"{heads} heads; {encoded.report()}")
        work = out / f".{JOINT_BUNDLE}.tmp"
        shutil.rmtree(work, ignore_errors=True)
        composed = _untrained(model, work / "heads", heads, options)
        for parameter in _banks(composed):
            parameter.requires_grad_(True)
        arguments = training_arguments(work / "run", options, device=device)
        trainer = AnswerTrainer(composed, encoded.rows, arguments, encoded.collator)
        result = trainer.train()
        for parameter in _banks(composed):
            parameter.requires_grad_(False)
        bank, folders = expert_bank(composed), {}
        for name in bank.names:
            folders[name] = out / name
            write_expert(bank, name, folders[name])
        composed.save_pretrained(str(work / "bundle"), save_embedding_layers=False)
        (work / "bundle").rename(out / JOINT_BUNDLE)
        composed.unload()
        shutil.rmtree(work, ignore_errors=True)
        seconds = result.metrics["train_runtime"]
        facts = record_facts(model, data, rows, encoded, options)
        metrics = {"final_loss": trainer.losses[-1][1], "seconds": seconds}
        record = make_record("experts", JOINT_BUNDLE, metrics, **facts, heads=heads, architecture="hydra")
        append_records(out / "records.jsonl", [record])
        logger.info(f"A, {heads} heads and router: saved to {out} after {duration(seconds)}.")
        return folders


def _untrained(model: PreTrainedModel, folder: Path, heads: int, options: ExpertOptions) -> PeftModel:
    """A composition of heads that share a random A and are zero, with HydraLoRA's dense router."""
    torch.manual_seed(options.seed)
    first = get_peft_model(model, lora_config(options, task_type(model)))
    first.peft_config["default"].base_model_name_or_path = base_name(model)
    names = [f"head{i + 1}" for i in range(heads)]
    first.save_pretrained(str(folder / names[0]), save_embedding_layers=False)
    model = cast(PreTrainedModel, first.unload())
    for name in names[1:]:
        shutil.copytree(folder / names[0], folder / name)
    composed = compose(
        model,
        {name: folder / name for name in names},
        architecture="hydra",
        gate="stretch",
        top_k=None,
        seed=options.seed,
        allow_inactive=True,
        init_std=0.02,
    )
    with torch.no_grad():  # the router starts as nn.Linear does, evenly within ±1/√d_in
        for layer in radar_layers(composed):
            gate: Any = layer.gate("default")
            gate.softmax_theta.uniform_(-(gate.site.d_in**-0.5), gate.site.d_in**-0.5)
    return composed


def _banks(model: PeftModel) -> list[torch.nn.Parameter]:
    return [p for layer in radar_layers(model) for p in layer.bank("default").parameters()]
