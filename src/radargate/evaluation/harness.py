"""Tasks by name through EleutherAI's lm-eval, on a model that is loaded already."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from radargate.errors import DataError, OptionError
from radargate.registry import unknown_name

REACH_S = 5.0


def task_manager(tasks: Sequence[str]) -> Any:
    """lm-eval's index of tasks, which holds every one of ``tasks``.

    Raises:
        DataError: lm-eval is not installed, or knows no such task.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DataError("lm-eval tasks need lm-eval: pip install 'radargate[eval]'.") from error
    manager = TaskManager()
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            near = unknown_name("lm-eval task", task, list(known)).split(" Known:")[0]
            raise DataError(f"{near} List them with: lm-eval ls tasks.")
    return manager


def check_hub(remedy: str) -> None:
    """Raise `DataError` at once where neither the network nor an offline cache was asked to serve lm-eval's data.

    Args:
        remedy: what else the user can do, put into the message.
    """
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True") or os.environ.get("HF_DATASETS_OFFLINE") == "1":
        return  # the cache alone answers, at once
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=REACH_S).close()
    except urllib.error.HTTPError:
        return  # it answers
    except (OSError, ValueError) as error:
        raise DataError(
            f"{endpoint} does not answer ({error}), and lm-eval tasks load their data from there. {remedy}"
            "Where the data is cached already, set HF_HUB_OFFLINE=1."
        ) from error


def load_tasks(manager: Any, tasks: Sequence[str], remedy: str) -> None:
    """Load the data of every task once, so that what is missing shows before anything is scored.

    Raises:
        DataError: a task's data is not to be had.
    """
    for task in tasks:
        try:
            manager.load([task])
        except Exception as error:  # network, gate, cache, missing package: each library raises its own kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"lm-eval task {task}: its data could not be loaded ({reason}). {remedy}") from error


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Any],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    max_new_tokens: int | None = None,
    manager: Any = None,
) -> dict[str, Any]:
    """Run lm-eval tasks on a model that is loaded already.

    Args:
        model: a causal or encoder–decoder model, composed or not.
        tokenizer: its tokenizer.
        tasks: names, or lm-eval's own task objects.
        limit: rows of each task.
        batch_size: rows a batch.
        num_fewshot: worked examples in the prompt; None leaves each task its own.
        max_new_tokens: of generated answers; None leaves each task its own.
        manager: lm-eval's index of tasks, if there is one already.

    Returns:
        task → its metrics as lm-eval reports them.

    Raises:
        DataError: lm-eval is not installed, or knows no such task.
    """
    manager = manager or task_manager([task for task in tasks if isinstance(task, str)])
    import lm_eval

    results = lm_eval.simple_evaluate(
        model=language_model(model, tokenizer, batch_size),
        tasks=list(tasks),
        limit=limit,
        num_fewshot=num_fewshot,
        task_manager=manager,
        apply_chat_template=bool(getattr(tokenizer, "chat_template", None)),
        log_samples=False,
        gen_kwargs={"max_gen_toks": max_new_tokens} if max_new_tokens else None,
    )
    assert results is not None  # this is the only process
    return dict(results["results"])


def language_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's wrapper around a loaded model."""
    from lm_eval.models.huggingface import HFLM

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole = getattr(getattr(model, "base_model", None), "reads_whole_prompts", False)
    if whole and not inner.config.is_encoder_decoder:
        raise OptionError(
            "lm-eval reads a prompt and an answer in one go, and this composition chooses experts by the whole prompt: it would look at the "
            "answer too. Score it on rows (`data`), or compose with scope='text' or router='text'."
        )
    backend = "seq2seq" if inner.config.is_encoder_decoder else "causal"
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend=backend)
