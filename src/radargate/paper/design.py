"""What one of the paper's experiments is: which axis varies, which systems meet, and how large a preset makes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from radargate.errors import OptionError, UnknownNameError
from radargate.evaluation.options import Scoring
from radargate.registry import option, unknown_name
from radargate.training.options import ExpertOptions, GateTraining

# a task, row or expert count of None takes all there are
Counts = tuple[int | None, ...]
SUITE = "experiment"  # of the record that lists an experiment's cells
# fields of `Design` that can be an axis, and how a place on them is said
AXES = {"bases": "base", "experts": "experts", "rows": "rows a task", "top_k": "top-k", "leave_one_out": "without"}


@dataclass(frozen=True)
class Design:
    """A whole grid. Fields that hold tuples are crossed with each other; every other field is the same in all cells.

    Attributes:
        source: folder of the data that experts and gates learn from.
        named: ``SOURCE/TASK`` of tasks to learn instead, where the data have these sources.
        others: folder whose further tasks have experts too, where a bank is larger than the tasks to learn.
        benchmarks: name of `radargate.evaluation.presets.PRESETS` that is tested on; None means the learned tasks' own test rows.
        prompts: ``"as given"``, ``"cut"`` or ``"paraphrased"``, for experts, gates and tests alike: see `radargate.paper.prompts`.
        tasks: tasks that gates learn and are tested on.
        test_tasks: tasks of each benchmark.
        bases: base models.
        experts: sizes of the bank; None is one expert for each learned task.
        rows: training rows a task that gates see.
        top_k: experts kept a token.
        leave_one_out: a grid for each task, with its expert left out of the bank, tested on that task alone.
        architectures: of gates and rules.
        gates: systems that are trained.
        rates: ``GATE:lr=…`` and the like, of gates that have learning rates of their own; said in no label.
        rules: systems that are not.
        union: whether one LoRA is a system too that is trained on the rows of all experts and of the gates, and sees as many
            rows as one expert after the other and a gate.
        union_equal_time: whether there is another of it, trained for as long as all experts and the slowest gate by prediction.
        unturned: whether each trained gate that rotates is scored once more with Q = 0, under a label of its own.
        seeds: of everything trained.
        training: of gates; the union LoRA has its batch. Gate, architecture, top-k and seed are the cells' own.
        recipe: of experts; the union LoRA has their learning rate.
        scoring: of every cell; its split is ``"validation"`` while a form is being chosen.
    """

    source: str = "flan_cot"
    named: tuple[str, ...] = ()
    others: str | None = None
    benchmarks: str | None = None
    prompts: str = "as given"
    tasks: int | None = None
    test_tasks: int | None = None
    bases: tuple[str, ...] = option(
        ("smollm2-135m",),
        "base model instead of the preset's (may be repeated)",
        flag="base",
        metavar="BASE",
        repeat=True,
    )
    experts: Counts = (None,)
    rows: Counts = (None,)
    top_k: tuple[int, ...] = option((2,), "experts kept a token (may be repeated)", repeat=True, least=1)
    leave_one_out: bool = False
    architectures: tuple[str, ...] = ("mole",)
    gates: tuple[str, ...] = option(
        ("stretch", "radar"), "comma-separated, instead of the experiment's own", metavar="NAMES"
    )
    rates: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    union: bool = True
    union_equal_time: bool = option(
        False,
        "one more union LoRA, trained for as long as all experts and the slowest gate together are predicted to take",
    )
    unturned: bool = True
    seeds: int = option(3, "seeds of everything trained", least=1)
    training: GateTraining = GateTraining(steps=100, batch_size=4, max_length=256, save_every=0)
    recipe: ExpertOptions = ExpertOptions(steps=60, batch_size=4, max_length=256)
    scoring: Scoring = Scoring(limit=20, max_new_tokens=16)

    def changed(self, **changes: Any) -> Design:
        """The same with other values of fields, or of what `PARTS` names."""
        own = {key: value for key, value in changes.items() if key not in PARTS}
        for part in ("training", "recipe", "scoring"):
            inside = {PARTS[key][part]: changes[key] for key in changes if part in PARTS.get(key, {})}
            own[part] = dataclasses.replace(own.get(part, getattr(self, part)), **inside)
        return dataclasses.replace(self, **own)

    def flat(self) -> dict[str, Any]:
        """Every value under one name, as records have it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts = {part: values.pop(part) for part in ("training", "recipe", "scoring")}
        for key, places in PARTS.items():
            part, name = next(iter(places.items()))
            values[key] = getattr(parts[part], name)
        return values


# name in presets and records → part of a `Design` → the part's field
PARTS: dict[str, dict[str, str]] = {
    "steps": {"training": "steps"},
    "expert_steps": {"recipe": "steps"},
    "batch_size": {"training": "batch_size", "recipe": "batch_size"},
    "lr": {"training": "lr"},
    "expert_lr": {"recipe": "lr"},
    "dropout": {"recipe": "dropout"},
    "gate_preset": {"training": "preset"},
    "max_length": {"training": "max_length", "recipe": "max_length"},
    "split": {"scoring": "split"},
    "limit": {"scoring": "limit"},
    "max_new_tokens": {"scoring": "max_new_tokens"},
}
# rank 8 and alpha 32 are the experts' defaults in every preset
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "gpu": {
        "bases": ("meta-llama/Llama-3.2-1B",),
        "architectures": ("mole", "hydra", "omoe"),
        "steps": 400,
        "expert_steps": 300,
        "batch_size": 8,
        "max_length": 512,
        "limit": 100,
        "max_new_tokens": 32,
    },
    "paper": {
        "bases": ("google/flan-t5-large",),
        "architectures": ("mole", "hydra", "omoe"),
        "steps": 2000,
        "expert_steps": 1000,
        "batch_size": 4,
        "lr": 1e-4,
        "expert_lr": 1e-4,
        "dropout": 0.1,
        "gate_preset": "paper",
        "max_length": 512,
        "limit": None,
        "max_new_tokens": 512,
    },
}


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments, or of our own.

    Attributes:
        name: what users type.
        question: what it asks, in one sentence.
        paper: the tables and figures of the paper it stands for; empty for our own.
        axis: field of `Design` that varies: ``"bases"``, ``"experts"``, ``"rows"``, ``"top_k"``, ``"leave_one_out"``, or
            None where only systems are compared.
        layout: name of its table and figure, as in `radargate.paper.page.LAYOUTS`.
        design: fields of `Design`, or names in `PARTS`, under every preset.
        presets: preset → fields that it changes beyond `PRESETS`.
        probe: ``"module:function"`` that looks at every trained gate; its findings go into the cell's record.
    """

    name: str
    question: str
    paper: str
    axis: str | None
    layout: str
    design: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    probe: str | None = None

    def plan(self, preset: str, *, smoke: bool = False, **changes: Any) -> Design:
        """The grid of one preset.

        Args:
            preset: a name of `PRESETS`.
            smoke: shrink it to minutes.
            changes: fields of `Design`, or names in `PARTS`, that the user set; None leaves one as it is.

        Raises:
            UnknownNameError: no preset has that name.
            OptionError: a field has a value that cannot work.
        """
        if preset not in PRESETS:
            raise UnknownNameError(unknown_name("preset", preset, list(PRESETS)))
        design = Design().changed(**{**PRESETS[preset], **self.design, **self.presets.get(preset, {})})
        if smoke:
            design = shrunk(design)
        design = design.changed(**{key: value for key, value in changes.items() if value is not None})
        values = design.flat()
        for key in ("seeds", "steps", "expert_steps", "batch_size"):
            if values[key] < 1:
                raise OptionError(f"{key} is {values[key]}, expected at least 1.")
        for key in AXES:
            if key not in (self.axis, "leave_one_out") and len(set(getattr(design, key))) > 1:
                raise OptionError(
                    f"{self.name} has one value of {key}, found {len(getattr(design, key))}: give one, and run it again with "
                    "another in another `out`."
                )
        return design


def shrunk(design: Design) -> Design:
    """The same experiment in minutes: two tasks, few steps and rows, one seed, at most two values of its axis."""
    return design.changed(
        tasks=3 if design.leave_one_out else 2,
        test_tasks=1,
        bases=design.bases[:1],
        experts=(2, 3) if len(design.experts) > 1 else (None,),
        rows=(4, 8) if len(design.rows) > 1 else design.rows,
        top_k=tuple(k for k in design.top_k if k <= 2),
        architectures=design.architectures[:2],
        seeds=1,
        steps=6,
        expert_steps=10,
        batch_size=4,
        max_length=256,
        limit=5,
        max_new_tokens=4,
    )
