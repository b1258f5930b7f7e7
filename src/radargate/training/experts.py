"""Training of new experts: one plain LoRA adapter for each task, through PEFT."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from radargate.base_models.kinds import task_type
from radargate.base_models.loading import base_name, load_base, load_tokenizer
from radargate.data.batches import EncodedRows
from radargate.data.rows import Row
from radargate.data.sources import load_rows
from radargate.errors import DataError, RadarGateError, shown
from radargate.experts.files import read_json
from radargate.io.disk import AGAIN, check_writable, flush, writing
from radargate.io.progress import Progress, duration
from radargate.io.records import append_records, make_record, read_records
from radargate.training.encoding import encode_for
from radargate.training.loop import AnswerTrainer, record_facts, training_arguments, training_run
from radargate.training.options import ExpertOptions

logger = logging.getLogger(__name__)

_FOLDER_NAME = re.compile(r"(?!\.)[\w .,+()&@=~-]{1,100}")


def train_experts(
    base: str | PreTrainedModel,
    data: str | Mapping[str, list[Row]],
    out: str | Path,
    options: ExpertOptions,
    *,
    tasks: list[str] | None = None,
    union: str | None = None,
    frozen_A: Path | None = None,
    resume: bool = False,
    dtype: str | None = None,
    device: str | None = None,
) -> dict[str, Path]:
    """Train one LoRA adapter for each task of ``data`` and save each as a PEFT folder ``out/TASK``.

    Args:
        base: base model, or its name.
        data: where the rows are (split ``train``), or task → rows.
        out: folder for the adapters, and ``records.jsonl``.
        options: rank, targets, steps and so on.
        tasks: train only these.
        union: train one adapter of this name on all tasks together, instead of one for each.
        frozen_A: an adapter folder whose A every expert takes over and keeps.
        resume: skip tasks whose adapter is already there, instead of refusing.
        dtype: of the base model; None goes on with what the folder's run began with, or follows the rule of `load_base`.
        device: where to train.

    Returns:
        task → folder of its adapter.

    Raises:
        RadarGateError: an adapter folder exists and ``resume`` is off; or the data do not fit.
        DataError: a task's name cannot be the name of a folder, or all its rows are too long; before any is trained.
        StorageError: ``out`` cannot be written, or another run writes there now.
        OutOfMemoryError: it needs more memory than there is.
    """
    out = Path(out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(training_run(out, options))
        by_task = dict(data) if isinstance(data, Mapping) else load_rows(data, "train", tasks)
        if union:
            by_task = {union: [row for rows in by_task.values() for row in rows]}
        for task in by_task:
            _check_folder_name(task)
        existing = [task for task in by_task if (out / task / "adapter_config.json").exists()]
        if existing and not resume:
            raise RadarGateError(
                f"{out / existing[0]} already holds an adapter. Use `resume` to keep finished experts and train the "
                "rest, or choose another `out`."
            )
        for task in existing:
            check_options(out / task, options)
        check_writable(out / "records.jsonl", "the adapters")
        model = load_base(base, dtype=dtype or begun_dtype(out), device=device)
        tokenizer = load_tokenizer(base)
        ready = {  # all of them first: a task that cannot be trained is said before hours went into others
            task: encode_for(model, rows, tokenizer, options) for task, rows in by_task.items() if task not in existing
        }
        folders: dict[str, Path] = {}
        sizes = {
            task: sum(row.length for row in encoded.rows[:64]) / len(encoded.rows[:64])
            for task, encoded in ready.items()
        }
        work = stack.enter_context(Progress("training experts", sum(sizes.values())))
        for number, (task, rows) in enumerate(by_task.items(), 1):
            folders[task] = out / task
            if task in existing:
                logger.info(f"[{number}/{len(by_task)}] {task}: already trained, kept.")
                continue
            encoded = ready[task]
            logger.info(f"[{number}/{len(by_task)}] {task}: {encoded.report()}")
            torch.manual_seed(options.seed)
            peft_model = cast(PeftModel, get_peft_model(model, lora_config(options, task_type(model))))
            if frozen_A is not None:
                share_A(peft_model, frozen_A)
            facts = record_facts(model, data, rows, encoded, options)
            peft_model.peft_config["default"].base_model_name_or_path = base_name(model)
            with (
                work.part(sizes[task]),
                writing(f"the adapter {task}", out, again=AGAIN if resume else f"{AGAIN} with `resume`"),
            ):
                seconds = _train_one(peft_model, encoded, folders[task], options, facts, device)
            model = cast(PreTrainedModel, peft_model.unload())
            logger.info(f"[{number}/{len(by_task)}] {task}: saved to {folders[task]} after {duration(seconds)}.")
        return folders


def begun_dtype(out: Path) -> str | None:
    """The base's dtype in which the adapters in a folder were trained, where its records say it: the rest are trained alike."""
    file = out / "records.jsonl"
    found = [
        r["dtype"] for r in (read_records(file) if file.exists() else ()) if r["suite"] == "experts" and "dtype" in r
    ]
    return found[-1] if found else None


def rows_read(folder: str | Path) -> int | None:
    """Rows that the training of an adapter read, repeats counted; None where no options of `train_experts` lie beside it."""
    file = Path(folder) / "options.json"
    found = read_json(file) if file.is_file() else {}
    steps, batch = found.get("steps"), found.get("batch_size")
    return steps * batch if type(steps) is int and type(batch) is int and min(steps, batch) > 0 else None


def check_options(folder: Path, options: ExpertOptions) -> None:
    """Check that an adapter that is to be kept was trained with these options, where it says how it was.

    Raises:
        RadarGateError: it was not.
    """
    file = folder / "options.json"
    if not file.is_file():
        return
    before, wanted = read_json(file), json.loads(json.dumps(asdict(options)))
    differing = [key for key in wanted if key in before and before[key] != wanted[key]]
    if differing:
        key = differing[0]
        raise RadarGateError(
            f"{folder} was trained with {key} {shown(before[key])}, not {wanted[key]}. Repeat its options, or choose another `out`."
        )


def _train_one(
    model: PeftModel,
    encoded: EncodedRows,
    folder: Path,
    options: ExpertOptions,
    facts: dict[str, Any],
    device: str | None,
) -> float:
    """Train one adapter, save it whole into ``folder``, and add its record; returns the seconds it took."""
    work = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    try:
        arguments = training_arguments(work / "run", options, device=device)
        trainer = AnswerTrainer(model, encoded.rows, arguments, encoded.collator)
        result = trainer.train()
        adapter = work / "adapter"
        model.save_pretrained(str(adapter), save_embedding_layers=False)
        _cast_file(adapter / "adapter_model.safetensors", options.save_dtype)
        shutil.move(work / "run" / "metrics.jsonl", adapter / "metrics.jsonl")
        (adapter / "options.json").write_text(json.dumps(asdict(options), indent=2))
        metrics = {"final_loss": trainer.losses[-1][1], "seconds": result.metrics["train_runtime"]}
        # the record first: it needs room, the rename does not, and a finished adapter is not trained again
        append_records(folder.parent / "records.jsonl", [make_record("experts", folder.name, metrics, **facts)])
        flush(adapter)
        adapter.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return float(metrics["seconds"])


def _check_folder_name(task: str) -> None:
    """Raise `DataError` where an adapter of this task would lie anywhere but in a folder of its own."""
    if not _FOLDER_NAME.fullmatch(task) or task.strip() != task:
        raise DataError(
            f"the data have a task {shown(task)!r}, which cannot be the name of its adapter's folder. Rename it in the data: up "
            "to 100 letters, digits, spaces, or any of _ . + - ( ), not with a full stop in front."
        )


def _cast_file(file: Path, dtype: str) -> None:
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def share_A(model: PeftModel, adapter: Path) -> None:
    """Give a fresh LoRA the A of a saved one, frozen; its B stays zero and trainable."""
    saved = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.copy_(saved[name.replace(".default.", ".")])
                parameter.requires_grad_(False)


def lora_config(options: ExpertOptions, task: str | None) -> LoraConfig:
    """PEFT's config for one expert of a base of that task type; a classifier's head stays the base's own."""
    # None lets PEFT choose the attention projections usual for the model's type
    targets: Any = list(options.target_modules) if options.target_modules else None
    if targets == ["all-linear"]:
        targets = "all-linear"
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        target_modules=targets,
        task_type=None if task == "SEQ_CLS" else task,
    )
