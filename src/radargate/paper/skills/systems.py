"""Systems that are no composition of RadarGate's: the sum of two LoRAs, LoRAs trained on composed rows, and two passes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from peft import LoraModel, PeftModel, get_peft_model

from radargate.base_models.kinds import task_type
from radargate.comparison.cells import Cell
from radargate.comparison.grid import Grid
from radargate.composition.composing import compose
from radargate.data.builtin.skills import SkillRow
from radargate.evaluation.run import score_system
from radargate.io.records import make_record
from radargate.training.experts import lora_config
from radargate.training.loop import AnswerTrainer, training_arguments
from radargate.training.options import ExpertOptions

Made = tuple[Any, dict[str, Any], str | None]


def summed(cell: Cell, grid: Grid) -> Made:
    """Both LoRAs at weight 1, put side by side by PEFT."""
    return _summed(grid.model, grid), {"trained_parameters": 0, "seconds": 0.0, "final_loss": None, "curve": []}, None


def fresh(cell: Cell, grid: Grid) -> Made:
    """A new LoRA on the base, trained on the composed rows alone."""
    options = _options(cell, grid)
    return _trained(get_peft_model(grid.model, lora_config(options, task_type(grid.model))), options, grid)


def fresh_on_sum(cell: Cell, grid: Grid) -> Made:
    """A new LoRA on a copy of the base into which both experts are merged."""
    options = _options(cell, grid)
    merged = cast(LoraModel, _summed(copy.deepcopy(grid.model), grid).base_model).merge_and_unload()
    return _trained(get_peft_model(merged, lora_config(options, task_type(merged))), options, grid)


def trained_on(cell: Cell, grid: Grid) -> Made:
    """The second expert, which writes the whole form of the answer, trained further on the composed rows."""
    folder = list(grid.adapters["mole"].values())[1]
    return _trained(PeftModel.from_pretrained(grid.model, folder, is_trainable=True), _options(cell, grid), grid)


MAKERS: Mapping[str, Callable[[Cell, Grid], Made]] = {
    "sum": summed,
    "fresh": fresh,
    "fresh-on-sum": fresh_on_sum,
    "trained-on": trained_on,
}


def make_adapter(cell: Cell, grid: Grid) -> Made:
    """The system of a cell of kind ``"adapter"``."""
    return MAKERS[cell.system](cell, grid)


def run_passes(cell: Cell, grid: Grid, cell_id: str) -> list[dict[str, Any]]:
    """The first expert answers its own question, the second the question made from that answer; records as of `run_cell`.

    Its NLL is that of the second pass' answer after that question.
    """
    begun = time.monotonic()
    shown = {
        "id": cell_id,
        "kind": cell.kind,
        "system": cell.system,
        "architecture": None,
        "seed": None,
        "label": cell.label,
    }
    first, second = ({name: folder} for name, folder in grid.adapters["mole"].items())
    asked: dict[str, list[Any]] = {
        task: [
            replace(row, prompt=row.passes[0], target=row.target.partition(" =")[0] + " =") for row in skill_rows(rows)
        ]
        for task, rows in grid.test.items()
    }
    records = _pass(
        first, asked, grid, f"{cell.label}, first pass", {"cell": {**shown, "label": f"{cell.label}, first pass"}}
    )
    answers = {
        record["task"]: [answer.partition("=")[0].strip() for answer in record["rows"]["prediction"]]
        for record in records
        if record["task"] != "mean"
    }
    then: dict[str, list[Any]] = {
        task: [
            replace(row, prompt=row.passes[1].format(answer))
            for row, answer in zip(skill_rows(rows), answers[task], strict=True)
        ]
        for task, rows in grid.test.items()
    }
    records += _pass(second, then, grid, cell.label, {"cell": shown})
    metrics = {
        "trained_parameters": 0,
        "train_seconds": 0.0,
        "score_seconds": round(time.monotonic() - begun, 2),
        "final_loss": None,
    }
    records.append(make_record("cell", cell_id, metrics, cell=shown, options={}, conditions=grid.conditions, note=None))
    return records


def skill_rows(rows: Any) -> list[SkillRow]:
    """Rows of `builtin:skills`, typed."""
    return cast(list[SkillRow], rows)


def _pass(
    adapter: dict[str, str], rows: dict[str, list[Any]], grid: Grid, label: str, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    model = compose(grid.model, adapter, gate="uniform", top_k=1)
    records = score_system(label, model, grid.tokenizer, rows, grid.options.scoring, facts)
    model.unload()
    return records


def _summed(model: Any, grid: Grid) -> PeftModel:
    """Source: PEFT, ``add_weighted_adapter(combination_type="cat")``."""
    (first, one), (second, two) = grid.adapters["mole"].items()
    peft_model = PeftModel.from_pretrained(model, one, adapter_name=first)
    peft_model.load_adapter(two, adapter_name=second)
    inner = cast(LoraModel, peft_model.base_model)
    inner.add_weighted_adapter([first, second], [1.0, 1.0], "sum", combination_type="cat")
    peft_model.set_adapter("sum")
    return peft_model


def _options(cell: Cell, grid: Grid) -> ExpertOptions:
    own = {**grid.options.training.common(), "lr": cell.options["lr"], "seed": cell.seed or 0}
    rank = int(cell.options["rank"])
    return ExpertOptions(**own, rank=rank, alpha=2 * rank, target_modules=("all-linear",))


def _trained(model: Any, options: ExpertOptions, grid: Grid) -> Made:
    """Train the LoRA that is trainable, as experts are trained."""
    arguments = training_arguments(grid.work / "run", options, device=grid.device)
    trainer = AnswerTrainer(model, grid.encoded.rows, arguments, grid.encoded.collator)
    result = trainer.train()
    facts = {
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": result.metrics["train_runtime"],
        "final_loss": trainer.losses[-1][1] if trainer.losses else None,
        "curve": trainer.losses,
        "options": {"lr": options.lr, "rank": options.rank, "gate_options": {}},
    }
    return model.eval(), facts, None
