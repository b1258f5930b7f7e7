"""``radargate quickstart``: the main job on an embedded default, from nothing to a report."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from radargate.base_models.dtype import CHECKPOINT
from radargate.base_models.loading import load_tokenizer, resolve_base
from radargate.composition.composing import load
from radargate.data.sources import load_rows
from radargate.evaluation.options import Scoring
from radargate.evaluation.run import evaluate
from radargate.evaluation.usage import expert_usage
from radargate.experts.shipped import BASE, shipped_experts
from radargate.io.cache import cache_folder
from radargate.io.disk import check_writable, writing
from radargate.io.progress import Progress, duration, quietly
from radargate.io.records import append_records, make_record, read_records, write_atomic
from radargate.quickstart.options import Quickstart
from radargate.quickstart.page import quickstart_page, systems
from radargate.training.gates import train_gates
from radargate.training.options import GateTraining
from radargate.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

DATA = "builtin:all"
# system → its gate, the gate's options, what it is in words
TRAINED: dict[str, tuple[str, dict[str, Any], str]] = {
    "stretch": ("stretch", {}, "how much of each expert, at each layer for itself"),
    "radar": ("radar", {}, "stretch and rotation"),
    "router": (
        "stretch",
        {"router": "prompt", "router_start": "select"},
        "stretch, and one decision for the whole model from the prompt",
    ),
}
UNTRAINED = ("uniform", "select")
TRAINING = 0.85  # time of a training step, over that of scoring one row of each task with one system


def quickstart(out: str | Path, options: Quickstart, *, device: str | None = None) -> Path:
    """Train and score the embedded default; finished parts of an earlier run in ``out`` are kept.

    Args:
        out: folder for bundles, records and the report.
        options: steps, rows and so on.
        device: where to run.

    Returns:
        The report's path.

    Raises:
        BaseModelError: the model cannot be fetched; the message says how to provide it.
    """
    out, started = Path(out), time.monotonic()
    check_writable(out / "records.jsonl", "the results")
    logger.info(
        f"1/5  The base model: {BASE}, a small instruction model (fetched once, then kept in {cache_folder()})."
    )
    resolve_base(BASE)
    dtype = RunFolder(out / "stretch").dtype(BASE, None, device) or CHECKPOINT
    experts = {name: str(path) for name, path in shipped_experts().items()}
    logger.info(f"     The experts: {len(experts)} LoRA adapters that come with RadarGate: {', '.join(experts)}.")
    to_train = [name for name in TRAINED if not (out / name / "record.json").exists()]
    to_score = _unscored(out, experts, options)
    with Progress(
        "quickstart", len(to_train) * TRAINING * options.steps + len(to_score) * options.limit, forecast=True
    ) as work:
        for number, (name, (gate, own, words)) in enumerate(TRAINED.items(), 2):
            logger.info(
                f"{number}/5  Training the gate {name} ({words}) on a mixture of all tasks; base and experts stay as they are."
            )
            training = GateTraining(
                gate=gate, gate_options=own, steps=options.steps, batch_size=options.batch_size, seed=options.seed
            )
            with work.part(TRAINING * options.steps if name in to_train else 0):
                train_gates(BASE, experts, DATA, out / name, training, resume=True, dtype=dtype, device=device)
        for rule in UNTRAINED:  # nothing to train: this saves them as bundles
            with quietly():
                nothing = GateTraining(gate=rule, seed=options.seed)
                train_gates(BASE, experts, DATA, out / rule, nothing, resume=True, dtype=dtype, device=device)
        logger.info(
            f"5/5  Scoring on rows nothing was trained on: {options.limit} of each of the ten tasks, for "
            f"{len(systems(list(experts)))} systems."
        )
        logger.info("     accuracy: share of right answers; NLL: surprise at the right answer, lower is better.")
        for system in to_score:
            with work.part(options.limit):
                _score(system, out, experts, options, dtype, device)
    _look_at_usage(out, options, dtype, device)
    report = out / "report.html"
    page = quickstart_page(out)
    with writing("the report", report):
        write_atomic(report, page)
    logger.info(f"Done in {duration(time.monotonic() - started)}.")
    return report


def _unscored(out: Path, experts: dict[str, str], options: Quickstart) -> list[str]:
    """The systems that an earlier run has not scored on as many rows."""
    file = out / "records.jsonl"
    records = read_records(file) if file.exists() else []
    done = {r["system"] for r in records if r.get("task") == "mean" and r["limit"] == options.limit}
    return [system for system in systems(list(experts)) if system not in done]


def _score(
    system: str, out: Path, experts: dict[str, str], options: Quickstart, dtype: str, device: str | None
) -> None:
    scoring = Scoring(limit=options.limit, max_new_tokens=options.max_new_tokens, seed=options.seed)
    adapters = {system: experts[system]} if system in experts else {}
    target = BASE if adapters or system == "base" else str(out / system)
    part = out / f".{system}.jsonl"
    part.unlink(missing_ok=True)
    with quietly():
        records = evaluate(
            target,
            adapters,
            part,
            data=DATA,
            tasks=None,
            lm_eval_tasks=None,
            scoring=scoring,
            dtype=dtype,
            device=device,
        )
    for record in records:
        record["system"] = system
    append_records(out / "records.jsonl", records)  # all of a system at once: a crash leaves none of it
    part.unlink()
    mean = records[-1]["metrics"]
    logger.info(f"     {system:<12} accuracy {mean['acc']['value']:.2f}  NLL {mean['nll']['value']:.2f}")


def _look_at_usage(out: Path, options: Quickstart, dtype: str, device: str | None) -> None:
    """Which experts the radar gate uses for which task, as a record."""
    file = out / "records.jsonl"
    if "usage" not in {r["suite"] for r in read_records(file)}:
        model = load(None, out / "radar", dtype=dtype, device=device)
        usage = expert_usage(model, load_tokenizer(BASE), load_rows(DATA, "test", limit=5))
        append_records(file, [make_record("usage", "radar", usage.by_task, rows_per_task=5, seed=options.seed)])
