"""From a design and rows to points (the places on an experiment's axes), their cells, and what each cell's id hashes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

from radargate.comparison.cells import UNION, Cell, all_cells
from radargate.composition.config import check_top_k
from radargate.data.rows import Row, rows_hash
from radargate.data.sources import has_split, load_rows
from radargate.errors import DataError
from radargate.evaluation.presets import find_preset, local_rows
from radargate.io.records import content_hash, file_hash
from radargate.paper.design import Design
from radargate.paper.prompts import Rows, in_form
from radargate.training.options import GateTraining


@dataclass(frozen=True)
class Point:
    """One place on the axes; all its cells share base, bank, rows and top-k.

    Attributes:
        base: base model's name.
        experts: tasks whose experts are in the bank.
        learned: tasks that gates are trained on.
        rows: training rows of each of these, None for all.
        top_k: experts kept a token.
        left_out: the task whose expert was left out.
    """

    base: str
    experts: tuple[str, ...]
    learned: tuple[str, ...]
    rows: int | None
    top_k: int
    left_out: str | None = None

    def at(self) -> dict[str, Any]:
        """Its place on every axis, by the axis' name."""
        return {
            "bases": self.base,
            "experts": len(self.experts),
            "rows": self.rows,
            "top_k": self.top_k,
            "leave_one_out": self.left_out,
        }


@dataclass(frozen=True)
class Material:
    """The rows of an experiment.

    Attributes:
        train: every task of the source, in the order in which tasks are taken: quick ones to score first.
        test: what is tested on.
        left_out: benchmarks that are not in the data, tasks that are not learned because they are tested on, and those whose
            prompts could not be changed.
    """

    train: Rows
    test: Rows
    left_out: tuple[str, ...] = ()

    @cached_property
    def source_hash(self) -> str:
        """Hash of all training rows."""
        return rows_hash(_flat(self.train))


def load_material(data: str, design: Design) -> Material:
    """Read the rows that a design asks for.

    Raises:
        DataError: ``data`` has no such folder, too few tasks, or prompts that cannot be given the design's form.
    """
    sources = _sources(data, design)
    train = _quick_first(
        {t: rows for source, tasks in sources.items() for t, rows in load_rows(source, "train", tasks).items()}
    )
    needed = max(design.tasks or 1, *(n or 1 for n in design.experts))
    if design.others is not None and len(train) < needed:
        others = _quick_first(load_rows(_source(data, design.others, "train"), "train"))
        train |= {task: rows for task, rows in others.items() if task not in train}
    test, left_out = _benchmark_rows(data, design) if design.benchmarks else ({}, [])
    tested = {name.split("/")[1] for name in test} & set(train)
    train = {task: rows for task, rows in train.items() if task not in tested}
    left_out += [f"{task} is tested on, so nothing learns from it" for task in sorted(tested)]
    if len(train) < needed:
        raise DataError(
            f"`data` {data}: {'it' if data in sources else ' and '.join(Path(source).name for source in sources)} has {len(train)} tasks with training rows, expected at "
            f"least {needed}, one for each expert. Use `smoke` for a small run, or data with more tasks."
        )
    if design.benchmarks is None:
        first = list(train)[: design.tasks]
        found = {
            t: rows
            for source, tasks in sources.items()
            for t, rows in load_rows(source, design.scoring.split, tasks or first, design.scoring.limit).items()
        }
        test = {task: found[task] for task in first}
    train, test, notes = in_form(design.prompts, train, test)  # last, so that the order of tasks stays
    return Material(train, test, (*left_out, *notes))


def points(design: Design, material: Material) -> list[Point]:
    """Every place on the axes.

    Raises:
        OptionError: more experts are to be kept than a bank holds.
    """
    tasks, found = list(material.train), []
    learned = tuple(tasks[: design.tasks])
    for base, size, rows, top_k in product(design.bases, design.experts, design.rows, design.top_k):
        bank = learned if size is None else tuple(tasks[:size])
        banks: list[tuple[str | None, tuple[str, ...]]] = [(None, bank)]
        if design.leave_one_out:
            banks = [(task, tuple(name for name in bank if name != task)) for task in learned]
        for left_out, names in banks:
            check_top_k(top_k, len(names))
            found.append(Point(base, names, learned, rows, top_k, left_out))
    return found


def cells_of(
    point: Point, design: Design, union_steps: int | None = None, task_rows: Mapping[str, int] | None = None
) -> tuple[list[Cell], list[str]]:
    """The cells of one point, and why some combinations are left out.

    Args:
        point: where they stand.
        design: of the experiment.
        union_steps: of the union LoRA; None leaves it out.
        task_rows: tested task → its training rows, for rules that are searched for each; None lets them search once.

    Raises:
        UnknownNameError: a gate, rule or architecture is unknown.
        OptionError: a combination that cannot work.
    """
    cells, left_out = all_cells(
        point.experts,
        gates=design.gates,
        rules=design.rules,
        architectures=design.architectures,
        seeds=design.seeds,
        rates=design.rates,
        tasks=point.learned,
        union_steps=union_steps,
        task_rows=task_rows,
    )
    # alone, an expert says what its own task has to gain
    alone = set(point.learned) if design.benchmarks is None and point.left_out is None else set()
    return [c for c in cells if c.kind != "expert" or c.system in alone], left_out


def train_rows(point: Point, material: Material) -> Rows:
    """The rows that gates are trained on at a point."""
    return {task: material.train[task][: point.rows] for task in point.learned}


def union_rows(point: Point, material: Material) -> Rows:
    """The rows that the union LoRA is trained on at a point: all of its experts', and the gates' of tasks without an expert."""
    rows = {task: material.train[task] for task in point.experts}
    return {**rows, **{task: own for task, own in train_rows(point, material).items() if task not in rows}}


def row_hashes(train: Rows, test: Rows) -> tuple[str, str]:
    """Hashes of the rows that cells are trained on, and of those that they are scored on."""
    return rows_hash(_flat(train)), rows_hash(_flat(test))


def test_rows(point: Point, material: Material) -> Rows:
    """The rows that cells are scored on at a point."""
    return material.test if point.left_out is None else {point.left_out: material.test[point.left_out]}


def gate_training(point: Point, design: Design, convert: bool = False) -> GateTraining:
    """How gates are trained at a point; ``convert`` lets hydra take adapters that do not share A."""
    converting = {"convert": True} if convert else {}
    return replace(design.training, architecture_options=converting, top_k=point.top_k).resolved()


def cell_conditions(
    cell: Cell,
    point: Point,
    design: Design,
    rows: tuple[str, str],
    base: str,
    experts: Mapping[str, Mapping[str, str]],
    probe: str | None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Everything a cell's result depends on, so that points share cells; known without any model.

    Args:
        cell: the cell.
        point: where it stands.
        design: of the experiment.
        rows: hashes of the training rows (for the union LoRA its own) and of test rows.
        base: `base_identity` of the base.
        experts: architecture → expert → hash of it, or of its recipe and rows.
        probe: what looks at the trained gate.
        dtype: of the base; None for the checkpoint's own.
    """
    shared = {
        "base": base,
        "dtype": dtype,
        "scoring": asdict(design.scoring),
        "test_hash": rows[1],
    }
    if cell.kind == "base":
        return {**shared, "experts": {"mole": {}}}
    shared["train_hash"] = rows[0]
    if cell.system == UNION:
        first = point.experts[0]  # it takes over rank and targets
        common = {key: value for key, value in design.training.common().items() if key != "seed"}
        return {
            **shared,
            **common,
            "experts": {"mole": {first: experts["mole"][first]}},
            "lr": design.recipe.lr,
        }
    kept = {a: {name: hashes[name] for name in point.experts} for a, hashes in experts.items()}
    return {
        **shared,
        "experts": kept,
        "training": gate_training(point, design).shared(),
        **({"probe": probe} if probe and cell.kind == "gate" else {}),
    }


def base_identity(name: str) -> str:
    """A base model's name, or for a folder or ``.gguf`` file the hash of its contents."""
    path = Path(name)
    kinds = ("*.safetensors", "*.bin", "*.json", "*.model", "*.txt")  # weights, config and tokenizer
    files = [path] if path.is_file() else sorted(file for kind in kinds for file in path.glob(kind))
    return _contents(tuple((str(file), file.stat().st_mtime_ns) for file in files)) if files else name


@cache
def _contents(files: tuple[tuple[str, int], ...]) -> str:
    return content_hash([[Path(file).name, file_hash(file)] for file, _ in files])


def slug(name: str) -> str:
    """A name as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", Path(name).name if Path(name).exists() else name).strip("-")


def _benchmark_rows(data: str, design: Design) -> tuple[Rows, list[str]]:
    """``BENCHMARK/TASK`` → rows of the quickest tasks of each benchmark that is there, and why others are not."""
    assert design.benchmarks is not None
    preset, left_out = find_preset(design.benchmarks), list[str]()
    test: Rows = {}
    for benchmark in preset.benchmarks:
        try:
            rows = local_rows(replace(preset, benchmarks=(benchmark,)), data, "test", design.scoring.limit)
        except DataError as error:
            left_out.append(f"{benchmark.name} ({error})")
            continue
        found = _quick_first(rows[benchmark.name])
        test |= {f"{benchmark.name}/{task}": found[task] for task in list(found)[: design.test_tasks]}
    if not test:
        raise DataError(
            f"`data` {data}: this experiment tests on benchmarks that nothing was trained on, and none of "
            f"{', '.join(benchmark.name for benchmark in preset.benchmarks)} is there. The first: {left_out[0]}"
        )
    return test, left_out


def _sources(data: str, design: Design) -> dict[str, list[str] | None]:
    """Folder or other source → its tasks that are learned, None for all of them."""
    found: dict[str, list[str]] = {}
    for name in design.named:
        source, task = name.split("/")
        found.setdefault(str(Path(data) / source), []).append(task)
    if found and all(has_split(source, "train") for source in found):
        return {**found}
    return {_source(data, design.source, "train"): None}


def _source(data: str, name: str, split: str) -> str:
    """The folder ``name`` of ``data`` where there is one, else ``data`` itself."""
    folder = Path(data) / name
    if has_split(folder, split):
        return str(folder)
    if Path(data).is_dir() and not has_split(data, split):
        raise DataError(
            f"`data` {data}: found neither a folder {name} with TASK.{split}.jsonl[.gz] files nor such files in it. "
            "Give a folder of sources, or of TASK.SPLIT.jsonl[.gz] files."
        )
    return data


def _quick_first(by_task: Rows) -> Rows:
    """Multiple choice before free answers, short rows before long ones."""

    def cost(task: str) -> tuple[bool, float, str]:
        rows = by_task[task][:200]
        return not rows[0].choices, sum(len(row.prompt) + len(row.target) for row in rows) / len(rows), task

    return {task: by_task[task] for task in sorted(by_task, key=cost)}


def _flat(by_task: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    return (row for rows in by_task.values() for row in rows)
