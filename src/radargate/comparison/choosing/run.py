"""``radargate choose``: try what can win, take the simplest of the best, save it as a bundle."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from radargate.base_models.dtype import CHECKPOINT
from radargate.comparison.cells import Cell
from radargate.comparison.choosing.candidates import at_steps, candidates
from radargate.comparison.choosing.decision import Decision, decide
from radargate.comparison.choosing.held_out import hold_out
from radargate.comparison.choosing.options import Choosing
from radargate.comparison.choosing.page import choice_page, choice_scores
from radargate.comparison.choosing.plan import FINALISTS, Plan, plan_for
from radargate.comparison.choosing.trials import TRIES, Trials, first
from radargate.comparison.forecast import Forecast
from radargate.comparison.grid import Grid
from radargate.composition.card import add_scores
from radargate.composition.composing import compose, load_for, radar_config
from radargate.data.rows import row_hash
from radargate.errors import OptionError
from radargate.evaluation.answers import check_metrics
from radargate.experts.adapters import Adapter, read_adapter
from radargate.gates.router.examples import check_examples
from radargate.io.disk import alone, writing
from radargate.io.progress import Progress, duration
from radargate.io.records import append_records, make_record, write_atomic
from radargate.training.run_folder import RunFolder

PAGE = "report.html"
SUITE = "choose"  # of the plan's record
logger = logging.getLogger(__name__)


def choose(
    base: str,
    adapters: Mapping[str, str | Path],
    data: str | Path | None = None,
    *,
    out: str | Path,
    examples: Mapping[str, Sequence[str]] | None = None,
    tasks: list[str] | None = None,
    resume: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Find the best model that these adapters give, and save it as a bundle in ``out``: what ``radargate choose`` does.

    Args:
        base: base model name or folder.
        adapters: name → folder or Hub id, two or more.
        data: where rows with answers are; some are held out.
        out: the bundle's folder, with records and a page.
        examples: adapter → prompts that it is for; rule ``select`` then takes these instead of rows. Without ``data`` they
            build it, and nothing is measured.
        tasks: only these of the data.
        resume: go on with an interrupted choice; it ends as an undisturbed one.
        dtype: of the base.
        device: where to run; None means CPU or PyTorch's default.
        **options: fields of `radargate.comparison.choosing.options.Choosing`, such as ``minutes``.

    Returns:
        The choice's record; its metrics say what was ``taken``.

    Raises:
        RadarGateError: something that cannot work; most of it before a model is loaded.
    """
    folder, how = RunFolder(out), Choosing(**options)
    if data is None and not examples:
        raise OptionError(
            "there is nothing to choose by. Give `data`, rows with answers; or `examples`, a prompt or more for each adapter."
        )
    given = {} if examples is None else check_examples(examples, list(adapters))
    cells = candidates(list(adapters), how, given)
    if data is None and (how.serve_as_one_lora or how.union or tasks):
        raise OptionError(
            "without `data` only rule select can be built, which is no single LoRA and trains nothing. Give `data`, or leave out "
            "`serve_as_one_lora`, `union` and `task`."
        )
    known = [text for texts in given.values() for text in texts if isinstance(text, str)]
    held = None if data is None else hold_out(str(data), tasks, known)
    if held is not None:
        check_metrics(row for rows in (held.validation | held.test).values() for row in rows)
    read = {name: read_adapter(name, source) for name, source in adapters.items()}
    with alone(folder.path), writing("the choice", folder.path):
        known_dtype = folder.dtype(base, dtype, device)
        request: dict[str, Any] = {
            "base": base,
            "adapters": {name: str(source) for name, source in adapters.items()},
            "data": None if data is None else str(data),
            "tasks": tasks,
            "data_hash": None if held is None else held.hash(),
            "options": asdict(how),
            "examples": given or None,
            "dtype": known_dtype,
            "experts": {name: adapter.file.sha256 for name, adapter in read.items()},
        }
        if folder.claim(request, resume):
            record = folder.read()
            _tidy(folder, record)
            return record
        if held is None:
            return _select_alone(folder, base, read, given, how.head, known_dtype, device)
        trials = Trials(folder.path, base, read, held, how, known_dtype, device)
        return _choose(folder, base, trials, cells)


def _select_alone(
    folder: RunFolder,
    base: str,
    adapters: Mapping[str, Adapter],
    examples: Mapping[str, Any],
    head: str | None,
    dtype: str | None,
    device: str | None,
) -> dict[str, Any]:
    """Rule ``select`` from examples alone, as a bundle."""
    model = load_for(base, adapters, head, dtype or CHECKPOINT, device)
    composed = compose(model, adapters, gate="select", head=head, examples=examples)
    return _save(folder, composed, base, {"taken": "select", "measured": False}, {"gate": "select"})


def _save(
    folder: RunFolder, model: PeftModel, base: str, metrics: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    config = radar_config(model)
    config.gate_only = False
    known = {name: facts["sha256"] for name, facts in config.expert_facts.items() if "sha256" in facts}
    dtype = str(model.dtype).removeprefix("torch.")
    folder.save(model, metrics, {"base": base, "experts": known, "options": options, "dtype": dtype})
    folder.tidy()
    return folder.read()


def _choose(folder: RunFolder, base: str, trials: Trials, cells: Sequence[Cell]) -> dict[str, Any]:
    """Try, decide, score what is left on rows that nothing saw, save."""
    forecast, known = trials.forecast(), trials.records(SUITE)
    plan = Plan.of(known[0]["plan"]) if known else _plan(trials, cells, forecast)
    begun = time.monotonic()
    with Progress("choosing", plan.seconds, forecast=True) as work:
        for grid, some in _rounds(trials, cells, plan):
            for cell in some:
                trials.run(cell, grid, work, forecast.seconds(cell, grid.options.training, grid.test))
        records = [record for record in trials.records("cell", "eval") if "cell" in record]
        decision = decide(records, [cell.label for cell in cells])
        logger.info(_said(decision))
        for cell in _finalists(cells, decision):
            with work.part(forecast.row * plan.test * len(trials.held.test)):
                trials.report_on(cell, plan.test)
    took = {"seconds": round(time.monotonic() - begun, 1), "resumed": bool(known)}
    return _take(folder, base, trials, cells, decision, plan, took)


def _plan(trials: Trials, cells: Sequence[Cell], forecast: Forecast) -> Plan:
    """A new plan, told and recorded."""
    held, minutes = trials.held, trials.options.minutes * 60

    def cost(cell: Cell, steps: int, rows: int) -> float:
        training = replace(trials.training, steps=max(steps, 1))
        return forecast.seconds(at_steps(cell, training.steps), training, first(held.validation, rows))

    def row(rows: int) -> float:
        return forecast.opening + forecast.row * sum(map(len, first(held.test, rows).values()))

    plan = plan_for(cells, minutes, cost, row)
    steps = f"; the best are trained for {plan.rounds[-1].steps} steps" if plan.rounds else ""
    logger.info(
        f"{len(cells) - len(plan.left_out)} systems on {len(held.validation)} tasks, at most {plan.validation} rows of each to choose by and "
        f"{plan.test} to report on{steps}. Predicted {duration(plan.seconds)} of the {duration(minutes)} allowed."
    )
    if plan.left_out:
        logger.info(f"not tried, for want of time: {', '.join(plan.left_out)}. Give more `minutes` to try them.")
    labels = [cell.label for cell in cells]
    append_records(trials.file, [make_record(SUITE, "plan", {}, plan=plan.record(), cells=labels)])
    return plan


def _rounds(trials: Trials, cells: Sequence[Cell], plan: Plan) -> Iterator[tuple[Grid, list[Cell]]]:
    """What the cells of a round share, and the cells: what is not trained, then fewer and fewer of what is."""
    grid = trials.grid(1, plan.validation)
    yield grid, [cell for cell in cells if not cell.trained]
    left = [cell for cell in cells if cell.trained and cell.label not in plan.left_out]
    for found in plan.rounds:
        left = [cell for cell in left if cell.label not in trials.left_out]
        if found.kept < len(left):
            means = trials.means(left, grid)
            best = sorted(left, key=lambda cell: means[cell.label])[: found.kept]
            left = [cell for cell in left if cell in best]
        left, grid = [at_steps(cell, found.steps) for cell in left], trials.grid(found.steps, plan.validation)
        yield grid, left


def _finalists(cells: Sequence[Cell], decision: Decision) -> list[Cell]:
    """What is taken, what leads, the best adapter alone and the base."""
    wanted = [decision.taken, decision.leader, decision.adapter(), cells[0].label]
    return [next(c for c in cells if c.label == label) for label in dict.fromkeys(wanted) if label][:FINALISTS]


def _take(
    folder: RunFolder,
    base: str,
    trials: Trials,
    cells: Sequence[Cell],
    decision: Decision,
    plan: Plan,
    took: Mapping[str, Any],
) -> dict[str, Any]:
    """Save the choice; where the base alone is taken there is nothing but its record to save."""
    taken = next(cell for cell in cells if cell.label == decision.taken)
    options = dict(decision.system(taken.label).cells[-1].get("options") or {})
    steps = int(options.get("steps", 0)) if taken.trained else 0
    metrics = {
        "taken": taken.label,
        "kind": taken.kind,
        "leader": decision.leader,
        "level": list(decision.level),
        "measured": True,
        **took,
        "predicted_seconds": round(plan.seconds, 1),
        "rows_seen": [row_hash(row) for row in trials.seen(steps, plan.validation)],
    }
    if taken.kind == "base":
        record = make_record("train", "base", metrics, base=base, options={"gate": None})
        folder.note(record)
        write_atomic(folder.path / "record.json", json.dumps(record, indent=2))
    else:
        record = _save(folder, trials.opened(taken), base, metrics, options)
    _tidy(folder, record)
    return record


def _tidy(folder: RunFolder, record: dict[str, Any]) -> None:
    """The page, where something was measured; and nothing is left of what was only tried."""
    if record["metrics"].get("measured"):
        write_atomic(folder.path / PAGE, choice_page(folder.path))
        add_scores(folder.path, *choice_scores(folder.path))
    shutil.rmtree(folder.path / TRIES, ignore_errors=True)


def _said(decision: Decision) -> str:
    """What is taken and why, in a sentence."""
    if decision.taken == decision.leader:
        return f"Taken: {decision.taken}. It leads, and nothing simpler is level with it."
    return (
        f"Taken: {decision.taken}, the simplest of {len(decision.level)} systems that are not significantly behind the best "
        f"({decision.leader})."
    )
