"""The same multiple-choice rows through EleutherAI's lm-eval, to compare decisions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radargate.data.prompts import answer_delimiter
from radargate.data.rows import Row
from radargate.errors import DataError
from radargate.evaluation.harness import language_model


def rows_task(rows: Sequence[Row], folder: Path, tokenizer: Any) -> Any:
    """A ``ConfigurableTask`` over multiple-choice rows, for ``simple_evaluate``.

    Raises:
        DataError: a row has no choices.
    """
    from lm_eval.api.task import ConfigurableTask

    file = folder / "rows.jsonl"
    with open(file, "w", encoding="utf-8") as out:
        for row in rows:
            if not row.candidates:
                raise DataError(f"row {row.id}: only multiple-choice rows go through lm-eval here.")
            out.write(
                json.dumps({"context": row.prompt, "choices": list(row.candidates), "gold": row.answer_index}) + "\n"
            )
    return ConfigurableTask(
        config={
            "task": "radargate_rows",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_target": "gold",
            "doc_to_choice": "choices",
            "target_delimiter": answer_delimiter(tokenizer) or " ",
            "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
            ],
            "metadata": {"version": 1},
        }
    )


def decisions(model: Any, tokenizer: Any, rows: Sequence[Row], batch_size: int = 8) -> list[tuple[bool, bool]]:
    """Per row, whether lm-eval finds it right by ``acc`` and by ``acc_norm``."""
    import lm_eval

    with tempfile.TemporaryDirectory() as work:
        task = rows_task(rows, Path(work), tokenizer)
        results = lm_eval.simple_evaluate(
            model=language_model(model, tokenizer, batch_size),
            tasks=[task],
            log_samples=True,
            bootstrap_iters=0,
            apply_chat_template=bool(getattr(tokenizer, "chat_template", None)),
        )
    samples = sorted(results["samples"]["radargate_rows"], key=lambda sample: sample["doc_id"])
    return [(bool(sample["acc"]), bool(sample["acc_norm"])) for sample in samples]
