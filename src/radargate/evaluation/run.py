"""``radargate eval``: score a bundle, a base, or a base with each adapter alone, and keep records."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel

from radargate.base_models.dtype import QUANTISED
from radargate.base_models.loading import base_name, load_base, load_tokenizer
from radargate.composition.composing import compose, load, radar_config
from radargate.data.rows import Row, row_hash, rows_hash
from radargate.data.sources import load_rows
from radargate.evaluation.answers import check_metrics
from radargate.evaluation.harness import check_hub, evaluate_tasks, load_tasks, task_manager
from radargate.evaluation.labels import scorer_for
from radargate.evaluation.metrics import RowScore, metric_counts, summarise, summarise_tasks
from radargate.evaluation.options import Scoring
from radargate.evaluation.presets import find_preset, local_rows
from radargate.io.disk import check_writable
from radargate.io.progress import Progress, share
from radargate.io.records import append_records, make_record

logger = logging.getLogger(__name__)


def is_bundle(target: str) -> bool:
    """Whether a BUNDLE|BASE argument is a saved composition."""
    return (Path(target) / "adapter_config.json").is_file()


def open_system(
    target: str, *, dtype: str | None = None, device: str | None = None, base: str | None = None
) -> tuple[Any, Any]:
    """Load what is to be scored or used, with its tokenizer: a bundle or a base."""
    if is_bundle(target):
        model = load(base, target, dtype=dtype, device=device)
        return model, load_tokenizer(base_name(cast(PreTrainedModel, model.get_base_model())))
    return load_base(target, dtype=dtype, device=device), load_tokenizer(target)


@dataclass(frozen=True)
class Work:
    """What each system is scored on, in suites: the benchmarks of a preset, or one without a name.

    Attributes:
        rows: suite → task → rows.
        lm_eval: suite → names of lm-eval tasks.
        num_fewshot: worked examples in lm-eval's prompts; None leaves each task its own.
        lm_eval_new_tokens: of lm-eval's generated answers; None leaves each task its own.
        manager: lm-eval's index of tasks, where there are any.
    """

    rows: Mapping[str, dict[str, list[Row]]] = field(default_factory=dict)
    lm_eval: Mapping[str, list[str]] = field(default_factory=dict)
    num_fewshot: int | None = None
    lm_eval_new_tokens: int | None = None
    manager: Any = None


def plan_work(
    scoring: Scoring,
    *,
    data: str | None,
    tasks: list[str] | None = None,
    lm_eval_tasks: list[str] | None = None,
    preset: str | None = None,
    num_fewshot: int | None = None,
    lm_eval_new_tokens: int | None = None,
) -> Work:
    """Read everything that is to be scored, and check that it can be, before a model is loaded.

    Args:
        scoring: split and limits.
        data: source of rows; with a preset, the folder of its benchmarks' folders.
        tasks: only these of the source's tasks.
        lm_eval_tasks: lm-eval tasks by name.
        preset: name of a set of benchmarks, from ``data`` if it is given, else from lm-eval.
        num_fewshot: worked examples in lm-eval's prompts.
        lm_eval_new_tokens: of lm-eval's generated answers.

    Raises:
        RadarGateError: something is not there, or a package is missing.
    """
    rows: dict[str, dict[str, list[Row]]] = {}
    suites: dict[str, list[str]] = {}
    remedy = ""
    if preset is not None:
        found = find_preset(preset)
        if data:
            rows = local_rows(found, data, scoring.split, scoring.limit)
        else:
            suites = {benchmark.name: list(benchmark.lm_eval) for benchmark in found.benchmarks}
            num_fewshot = found.num_fewshot if num_fewshot is None else num_fewshot
            remedy = f"Give `data` with `preset` {preset} to run it from local rows. "
    elif data:
        rows = {"": load_rows(data, scoring.split, tasks, scoring.limit)}
    if lm_eval_tasks:
        suites = {**suites, "": lm_eval_tasks}
    check_metrics(row for by_task in rows.values() for group in by_task.values() for row in group)
    manager = None
    if suites:
        names = [name for suite in suites.values() for name in suite]
        check_hub(remedy)  # first: it is quicker than reading lm-eval's index
        manager = task_manager(names)
        load_tasks(manager, names, remedy)
    return Work(rows, suites, num_fewshot, lm_eval_new_tokens, manager)


def evaluate(
    target: str,
    adapters: Mapping[str, str],
    out: str | Path,
    *,
    data: str | None,
    tasks: list[str] | None,
    lm_eval_tasks: list[str] | None,
    scoring: Scoring,
    dtype: str | None = None,
    device: str | None = None,
    base: str | None = None,
    **more: Any,
) -> list[dict[str, Any]]:
    """Score one system, or each of several adapters alone over one base, and append records to ``out``.

    Args:
        target: bundle or base.
        adapters: with a base: each is scored alone.
        out: JSON-lines file of records.
        data: source of rows.
        tasks: only these of its tasks.
        lm_eval_tasks: lm-eval tasks by name, instead of rows or beside them.
        scoring: split, limits, batch.
        dtype: of the base.
        device: where to run.
        base: another name for a bundle's base.
        **more: what else `plan_work` takes.

    Returns:
        The records: one a system and task, and one a system (and benchmark) for the mean over tasks.
    """
    work = plan_work(scoring, data=data, tasks=tasks, lm_eval_tasks=lm_eval_tasks, **more)
    check_writable(out, "the records")
    _warn_of_seen_rows(target, work)
    records: list[dict[str, Any]] = []
    with Progress("scoring", max(len(adapters), 1)) as progress:
        for name, model, tokenizer in _systems(target, adapters, dtype, device, base):
            facts = {
                "target": Path(target).name,
                "adapter": name if adapters else None,
                "dtype": _dtype(model, dtype),
                "experts": _expert_hashes(model),
            }
            with progress.part(1):
                for part in _parts(name, model, tokenizer, work, scoring, facts, data):
                    append_records(out, part)  # at once: a later benchmark that fails loses nothing
                    records += part
    return records


def _warn_of_seen_rows(target: str, work: Work) -> None:
    """One line where a bundle was trained on rows that it is to be scored on."""
    file = Path(target) / "record.json"
    if not file.is_file():
        return
    seen = set(json.loads(file.read_text(encoding="utf-8")).get("metrics", {}).get("rows_seen") or ())
    rows = [row for by_task in work.rows.values() for group in by_task.values() for row in group]
    known = sum(row_hash(row) in seen for row in rows)
    if known:
        logger.warning(
            f"{known} of {len(rows)} rows are ones that {Path(target).name} was trained on, so that its score on them says little. "
            "Score it on rows that it has not seen."
        )


def _systems(
    target: str, adapters: Mapping[str, str], dtype: str | None, device: str | None, base: str | None
) -> Iterator[tuple[str, Any, Any]]:
    """Name, model and tokenizer of every system; adapters share one base that is loaded once."""
    model, tokenizer = open_system(target, dtype=dtype, device=device, base=base)
    if not adapters:
        yield Path(target).name, model, tokenizer
    for name, path in adapters.items():
        composed = compose(model, {name: path}, gate="uniform", top_k=1)
        yield name, composed, tokenizer
        composed.unload()


def _parts(
    name: str, model: Any, tokenizer: Any, work: Work, scoring: Scoring, facts: dict[str, Any], data: str | None
) -> Iterator[list[dict[str, Any]]]:
    """The records of one system, suite by suite."""
    for suite, names in work.lm_eval.items():
        results = evaluate_tasks(
            model,
            tokenizer,
            names,
            limit=scoring.limit,
            batch_size=scoring.batch_size,
            manager=work.manager,
            num_fewshot=work.num_fewshot,
            max_new_tokens=work.lm_eval_new_tokens,
        )
        yield [
            make_record(
                "lm-eval",
                f"{name}/{task}",
                values,
                **facts,
                **_benchmark(suite),
                system=name,
                task=task,
                limit=scoring.limit,
                num_fewshot=work.num_fewshot,
                max_new_tokens=work.lm_eval_new_tokens,
            )
            for task, values in results.items()
        ]
    for suite, by_task in work.rows.items():
        known = {**facts, **_benchmark(suite), "data": Path(str(data)).name}
        with share(1 / (len(work.rows) + len(work.lm_eval))):
            found = score_system(name, model, tokenizer, by_task, scoring, known)
        yield found


def _benchmark(suite: str) -> dict[str, str]:
    return {"benchmark": suite} if suite else {}


def score_system(
    name: str,
    model: Any,
    tokenizer: Any,
    by_task: dict[str, list[Row]],
    scoring: Scoring,
    facts: dict[str, Any],
    before: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Score one loaded model on every task; one record a task, and one for their mean, ``facts`` in each.

    ``before`` is called with a task's name before its rows are read: it gives the model what is that task's own.
    """
    scorer = scorer_for(model, tokenizer, scoring)
    scorer.check(row for rows in by_task.values() for row in rows)
    scores: dict[str, list[RowScore]] = {}
    records = []
    costs = {task: sum(map(scorer.cost, rows)) for task, rows in by_task.items()}
    with Progress(f"scoring {name}", sum(costs.values())) as work:
        for task, rows in by_task.items():
            begun = time.monotonic()
            if before is not None:
                before(task)
            scores[task] = scorer.score(rows, work)
            metrics = summarise(scores[task], scoring.seed)
            logger.info(f"{name}  {task}: {line(metrics)}")
            records.append(
                make_record(
                    "eval",
                    f"{name}/{task}",
                    {**metrics, "seconds": round(time.monotonic() - begun, 2)},
                    **facts,
                    system=name,
                    task=task,
                    split=scoring.split,
                    limit=scoring.limit,
                    data_hash=rows_hash(rows),
                    max_new_tokens=scoring.max_new_tokens,
                    metric=metric_counts(scores[task]),
                    rows=_columns(scores[task]),
                    examples=_examples(rows, scores[task]),
                )
            )
    metrics = summarise_tasks(scores, scoring.seed)
    suite = f"{facts['benchmark']}/" if "benchmark" in facts else ""
    logger.info(f"{name}  {suite}mean of {len(scores)} tasks: {line(metrics)}")
    records.append(
        make_record(
            "eval",
            f"{name}/{suite}mean",
            metrics,
            **facts,
            system=name,
            task="mean",
            split=scoring.split,
            limit=scoring.limit,
        )
    )
    return records


def line(metrics: dict[str, Any]) -> str:
    """Accuracy (of translations chrF and BLEU) and NLL with their intervals, for a terminal."""
    scores = [("chrF", "chrf", 1), ("BLEU", "bleu", 1)] if "chrf" in metrics else [("accuracy", "acc", 3)]
    shown = [(word, metrics[key], digits) for word, key, digits in [*scores, ("NLL", "nll", 3)]]
    return "  ".join(f"{word} {m['value']:.{d}f} [{m['low']:.{d}f}, {m['high']:.{d}f}]" for word, m, d in shown)


def _columns(scores: list[RowScore]) -> dict[str, list[Any]]:
    names = list(dict.fromkeys(name for s in scores for name in s.values))
    return {
        "id": [s.id for s in scores],
        "correct": [int(s.correct) for s in scores],
        "correct_norm": [None if s.correct_norm is None else int(s.correct_norm) for s in scores],
        "prediction": [s.prediction for s in scores],
        "nll_sum": [round(s.nll_sum, 6) for s in scores],
        "tokens": [s.tokens for s in scores],
        **{name: [None if name not in s.values else round(s.values[name], 4) for s in scores] for name in names},
    }


def _examples(rows: list[Row], scores: list[RowScore], count: int = 3) -> list[dict[str, Any]]:
    """A few rows with their answers in full, to look at."""
    shown = []
    for row, score in zip(rows[:count], scores, strict=False):
        answer = row.candidates[score.prediction] if isinstance(score.prediction, int) else score.prediction
        shown.append({"prompt": row.prompt, "target": row.target, "answer": answer, "correct": score.correct})
    return shown


def _dtype(model: Any, asked: str | None) -> str:
    """What the base was computed in."""
    return asked if asked in QUANTISED else str(model.dtype).removeprefix("torch.")


def _expert_hashes(model: Any) -> dict[str, str]:
    if not isinstance(model, PeftModel):
        return {}
    return {name: facts["sha256"] for name, facts in radar_config(model).expert_facts.items()}
