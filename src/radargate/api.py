"""One call each for what people do with adapters: functions behind ``import radargate``. Imports what lies below the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radargate.base_models.loading import base_name, load_tokenizer
from radargate.comparison.options import Comparison
from radargate.comparison.run import compare as run_comparison
from radargate.data.rows import Row
from radargate.data.sources import load_rows
from radargate.evaluation import scoring
from radargate.evaluation.run import Scoring, open_system, score_system
from radargate.exporting.exact import save_as_lora
from radargate.exporting.fit import Fitting, fit_lora
from radargate.exporting.reading import fit_and_held_out
from radargate.io.records import read_records
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining


def train(
    base: str,
    adapters: Mapping[str, str | Path],
    data: str | Path,
    out: str | Path,
    *,
    tasks: list[str] | None = None,
    resume: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Compose adapters, train their gates on rows, and save the bundle in ``out``; base and experts stay as they are.

    Args:
        base: base model name or folder.
        adapters: name → folder or Hub id.
        data: where the rows are (split ``train``), as for ``radargate train --data``.
        out: the bundle's folder.
        tasks: train on these only.
        resume: go on with an interrupted run.
        dtype: of the base; None follows the rule of `radargate.base_models`.
        device: where to train; None means CPU or PyTorch's default.
        **options: fields of `radargate.training.options.GateTraining` (``gate``, ``top_k``, ``steps``, ``lr`` …); all others are
            options of the gate, as `radargate.compose` takes them.

    Returns:
        The run's record.

    Raises:
        RadarGateError: something that cannot work; most of it before a model is loaded.
    """
    known = {field.name for field in dataclasses.fields(GateTraining)}
    own = {name: options.pop(name) for name in list(options) if name in known}
    own["gate_options"] = {**own.get("gate_options", {}), **options}
    return train_gates(
        base, adapters, str(data), out, GateTraining(**own), tasks=tasks, resume=resume, dtype=dtype, device=device
    )


def evaluate(
    model: Any,
    data: str | Path | Mapping[str, list[Row]],
    *,
    tasks: list[str] | None = None,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    dtype: str | None = None,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Score a model on rows: accuracy and NLL of the right answer, with intervals.

    Args:
        model: a composed or base model, or a bundle's folder, or a base model's name.
        data: where the rows are, or task → rows.
        tasks: only these.
        split: of the data.
        limit: rows of each task.
        batch_size: rows a batch.
        max_new_tokens: of free answers.
        dtype: of the base, where it is loaded here.
        device: of the base, where it is loaded here.

    Returns:
        A record for each task, and one, with ``task="mean"``, for their mean.
    """
    rows = dict(data) if isinstance(data, Mapping) else load_rows(data, split, tasks, limit)
    name, model, tokenizer = _opened(model, dtype, device)
    how = Scoring(split=split, limit=limit, batch_size=batch_size, max_new_tokens=max_new_tokens)
    return score_system(name, model, tokenizer, rows, how, {"target": name, "dtype": str(model.dtype)})


def generate(model: Any, prompts: str | Sequence[str], *, max_new_tokens: int = 128, **options: Any) -> list[str]:
    """Answers to prompts, greedy unless options say otherwise.

    Args:
        model: a composed or base model, or a bundle's folder, or a base model's name.
        prompts: one or several.
        max_new_tokens: of an answer.
        **options: of ``model.generate``.
    """
    _, model, tokenizer = _opened(model, None, None)
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    return scoring.generate(model.eval(), tokenizer, asked, max_new_tokens=max_new_tokens, **options)


def compare(
    base: str,
    adapters: Mapping[str, str],
    data: str | Path,
    out: str | Path,
    *,
    gates: Sequence[str] = ("stretch", "radar"),
    rules: Sequence[str] = ("uniform", "select"),
    architectures: Sequence[str] = ("mole",),
    seeds: int = 1,
    union_steps: int | None = None,
    limit: int | None = None,
    tasks: list[str] | None = None,
    resume: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    **training: Any,
) -> list[dict[str, Any]]:
    """Run every way of combining the same adapters on the same rows; records come cell by cell, so that any stop can go on.

    Args:
        base: base model name or folder.
        adapters: name → folder.
        data: where the rows are (splits ``train`` and ``test``).
        out: folder for the records.
        gates: names, with options as ``NAME:option=value``, or ``("all",)``.
        rules: the same.
        architectures: the same.
        seeds: of everything trained.
        union_steps: of the LoRA trained on all rows; None takes as many rows as the adapters' training and the gate's read.
        limit: test rows of each task.
        tasks: only these.
        resume: go on with what is there.
        dtype: of the base.
        device: where to run.
        **training: fields of `radargate.training.options.GateTraining` for all gates.

    Returns:
        All records.
    """
    options = Comparison(
        gates=tuple(gates),
        rules=tuple(rules),
        architectures=tuple(architectures),
        seeds=seeds,
        training=GateTraining(**training),
        scoring=Scoring(limit=limit),
        union_steps=union_steps,
    )
    file = run_comparison(
        base, adapters, str(data), out, options, tasks=tasks, resume=resume, dtype=dtype, device=device
    )
    return read_records(file)


def export(
    model: Any, out: str | Path, *, rank: int | None = None, data: str | Path | None = None, limit: int = 50
) -> dict[str, Any] | None:
    """Save one ordinary LoRA: exactly what a static rule adds, or of a given rank, fitted to what a composition adds on rows.

    Args:
        model: a composed model, or a bundle's folder.
        out: the adapter's folder.
        rank: of a fitted LoRA.
        data: the rows that it is fitted to and measured on.
        limit: held-out rows of each task to measure on.

    Returns:
        What a fit lost; None where the export is exact.
    """
    _, model, _ = _opened(model, None, None)
    if rank is None or data is None:
        save_as_lora(model, out)
        return None
    fit, held_out = fit_and_held_out(str(data), None, 200, limit)
    return fit_lora(model, Path(out), fit, held_out, Fitting(rank=rank))


def _opened(model: Any, dtype: str | None, device: str | None) -> tuple[str, Any, Any]:
    """A name, the model and its tokenizer."""
    if isinstance(model, str | Path):
        return Path(model).name, *open_system(str(model), dtype=dtype, device=device)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base_name(inner), model, load_tokenizer(base_name(inner))
