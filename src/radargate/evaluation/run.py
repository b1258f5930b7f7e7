"""``radargate eval``: score a bundle, a base, or a base with each adapter alone, and keep records."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel

from radargate.base_models import base_name, load_base, load_tokenizer
from radargate.composition import compose, load, radar_config
from radargate.data.rows import Row, rows_hash
from radargate.data.sources import load_rows
from radargate.evaluation.lm_eval import evaluate_tasks
from radargate.evaluation.metrics import RowScore, summarise, summarise_tasks
from radargate.evaluation.scoring import Scorer
from radargate.records import append_records, make_record
from radargate.storage import check_writable
from radargate.training.loop import duration


@dataclass(frozen=True)
class Scoring:
    """How rows are scored."""

    split: str = "test"
    limit: int | None = None
    batch_size: int = 16
    max_new_tokens: int = 32
    seed: int = 0


def is_bundle(target: str) -> bool:
    """Whether a BUNDLE|BASE argument is a saved composition."""
    return (Path(target) / "adapter_config.json").is_file()


def open_system(target: str, adapter: tuple[str, str] | None = None, *, dtype: str | None = None,
                device: str | None = None, base: str | None = None) -> tuple[Any, Any]:  # fmt: skip
    """Load what is to be scored or used, with its tokenizer: a bundle, a base, or a base with one adapter."""
    if is_bundle(target):
        model = load(base, target, dtype=dtype, device=device)
        return model, load_tokenizer(base_name(cast(PreTrainedModel, model.get_base_model())))
    if adapter is None:
        return load_base(target, dtype=dtype, device=device), load_tokenizer(target)
    return compose(target, dict([adapter]), gate="uniform", top_k=1, dtype=dtype, device=device), load_tokenizer(target)


def evaluate(target: str, adapters: Mapping[str, str], out: str | Path, *, data: str | None, tasks: list[str] | None,
             lm_eval_tasks: list[str] | None, scoring: Scoring, dtype: str | None = None, device: str | None = None,
             base: str | None = None, say: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:  # fmt: skip
    """Score one system, or each of several adapters alone, and append records to ``out``.

    Args:
        target: bundle or base.
        adapters: with a base: each is scored alone.
        out: JSON-lines file of records.
        data: source of rows.
        tasks: only these of its tasks.
        lm_eval_tasks: lm-eval tasks by name, instead of rows.
        scoring: split, limits, batch.
        dtype: of the base.
        device: where to run.
        base: another name for a bundle's base.
        say: called with each line of progress.

    Returns:
        The records: one a system and task, and one a system for the mean over tasks.
    """
    by_task = load_rows(data, scoring.split, tasks, scoring.limit) if data else {}
    check_writable(out, "the records")
    systems: list[tuple[str, tuple[str, str] | None]] = (
        [(name, (name, path)) for name, path in adapters.items()] if adapters else [(Path(target).name, None)]
    )
    records: list[dict[str, Any]] = []
    for name, adapter in systems:
        model, tokenizer = open_system(target, adapter, dtype=dtype, device=device, base=base)
        facts = {"target": Path(target).name, "adapter": adapter[0] if adapter else None, "dtype": str(dtype),
                 "experts": _expert_hashes(model)}  # fmt: skip
        if lm_eval_tasks:
            results = evaluate_tasks(
                model, tokenizer, lm_eval_tasks, limit=scoring.limit, batch_size=scoring.batch_size
            )
            records += [make_record("lm-eval", f"{name}/{task}", values, **facts) for task, values in results.items()]
        if by_task:
            records += score_system(
                name, model, tokenizer, by_task, scoring, {**facts, "data": Path(str(data)).name}, say
            )
    append_records(out, records)
    return records


def score_system(name: str, model: Any, tokenizer: Any, by_task: dict[str, list[Row]], scoring: Scoring,
                  facts: dict[str, Any], say: Callable[[str], None]) -> list[dict[str, Any]]:  # fmt: skip
    """Score one loaded model on every task; one record a task, and one for their mean, ``facts`` in each."""
    scorer = Scorer(model, tokenizer, batch_size=scoring.batch_size, max_new_tokens=scoring.max_new_tokens)
    scores: dict[str, list[RowScore]] = {}
    records, started, total = [], time.monotonic(), sum(len(rows) for rows in by_task.values())
    done = 0
    for task, rows in by_task.items():
        begun = time.monotonic()
        scores[task] = scorer.score(rows)
        done += len(rows)
        metrics = summarise(scores[task], scoring.seed)
        left = (time.monotonic() - started) / done * (total - done)
        say(f"{name}  {task}: {line(metrics)}  ({done}/{total} rows, {duration(left)} left)")
        records.append(
            make_record(
                "eval", f"{name}/{task}", {**metrics, "seconds": round(time.monotonic() - begun, 2)}, **facts,
                system=name, task=task, split=scoring.split, limit=scoring.limit, data_hash=rows_hash(rows),
                max_new_tokens=scoring.max_new_tokens, rows=_columns(scores[task]), examples=_examples(rows, scores[task]),
            )
        )  # fmt: skip
    metrics = summarise_tasks(scores, scoring.seed)
    say(f"{name}  mean of {len(scores)} tasks: {line(metrics)}")
    records.append(make_record("eval", f"{name}/mean", metrics, **facts, system=name, task="mean", split=scoring.split,
                               limit=scoring.limit))  # fmt: skip
    return records


def line(metrics: dict[str, Any]) -> str:
    """Accuracy and NLL with their intervals, for a terminal."""
    acc, nll = metrics["acc"], metrics["nll"]
    return (
        f"accuracy {acc['value']:.3f} [{acc['low']:.3f}, {acc['high']:.3f}]  "
        f"NLL {nll['value']:.3f} [{nll['low']:.3f}, {nll['high']:.3f}]"
    )


def _columns(scores: list[RowScore]) -> dict[str, list[Any]]:
    return {
        "id": [s.id for s in scores],
        "correct": [int(s.correct) for s in scores],
        "correct_norm": [None if s.correct_norm is None else int(s.correct_norm) for s in scores],
        "prediction": [s.prediction for s in scores],
        "nll_sum": [round(s.nll_sum, 6) for s in scores],
        "tokens": [s.tokens for s in scores],
    }


def _examples(rows: list[Row], scores: list[RowScore], count: int = 3) -> list[dict[str, Any]]:
    """A few rows with their answers in full, to look at."""
    shown = []
    for row, score in zip(rows[:count], scores, strict=False):
        answer = row.candidates[score.prediction] if isinstance(score.prediction, int) else score.prediction
        shown.append({"prompt": row.prompt, "target": row.target, "answer": answer, "correct": score.correct})
    return shown


def _expert_hashes(model: Any) -> dict[str, str]:
    if not isinstance(model, PeftModel):
        return {}
    return {name: facts["sha256"] for name, facts in radar_config(model).expert_facts.items()}
