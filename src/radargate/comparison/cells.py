"""The cells of a comparison: which systems, under which architectures, with which seeds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from radargate.architectures import ARCHITECTURES
from radargate.composition.config import check_works_under, gate_class
from radargate.errors import OptionError
from radargate.gates import GATES
from radargate.gates.base import make_options
from radargate.gates.rules import RULES
from radargate.gates.rules.searched import SearchedRule
from radargate.io.records import content_hash
from radargate.registry import Registry, read_options
from radargate.training.options import DEFAULTS, check_share

# what `--rules all` means beside each rule with its own defaults: the other forms users compare
VARIANTS = {"lorahub": "form=sane", "arrow": "mixing=ab"}
# one LoRA on all tasks' rows. Cells of this very label, without steps of their own, are those of before: they saw the
# gate's rows only, and reports call them so (`radargate.comparison.results.RENAMED`)
UNION = "union LoRA"
UNION_ALL_ROWS, UNION_EQUAL_TIME = f"{UNION} on all rows", f"{UNION} in equal time"
TOLD = "told the task"  # in labels
ROLES = ("paper", "control", "rival")  # asked for in place of a gate, they stand for all gates of that role
# of a gate's training, said among its options; they win over the grid's
TRAINING = tuple(DEFAULTS[None])


@dataclass(frozen=True)
class Cell:
    """One system, trained and scored once.

    Attributes:
        system: gate, rule or adapter.
        kind: ``"base"``, ``"expert"``, ``"rule"``, ``"gate"`` or ``"told"`` (a rule with weights searched for each task, so
            that it has to be told the task).
        label: its name in tables, without the seed.
        architecture: for gates and rules.
        seed: for what is trained.
        options: of the gate or rule, and those of a gate's training (`TRAINING`) that differ from the grid's; of the union
            LoRA its ``steps``.
    """

    system: str
    kind: str
    label: str
    architecture: str | None = None
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def id(self, conditions: Mapping[str, Any]) -> str:
        """Hash of what the cell's result depends on, code and the experts' order aside; of the experts those of its own architecture only.

        Base and single experts are neither trained nor mixed, so that nothing of training, or of other experts, counts.
        """
        experts = conditions["experts"][self.architecture or "mole"]
        own = {**conditions, "experts": experts}
        if self.kind in ("base", "expert"):
            own = {key: conditions[key] for key in ("base", "dtype", "scoring", "test_hash") if key in conditions}
            own["experts"] = {self.system: experts[self.system]} if self.kind == "expert" else {}
        elif self.system == UNION:
            own["first"] = next(iter(experts))  # whose rank and targets it takes over
        return content_hash({"cell": asdict(self), "conditions": own})

    @property
    def own_options(self) -> dict[str, Any]:
        """Options of the gate or rule itself."""
        return _split(self.kind, self.options)[0]

    @property
    def training(self) -> dict[str, Any]:
        """What differs in its training from the grid's."""
        return _split(self.kind, self.options)[1]

    @property
    def trained(self) -> bool:
        """Whether gradient steps (or a search) happen."""
        return self.seed is not None


def parse_system(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME`` or ``NAME:option=value,option=value`` → name and options, neither of them checked.

    Raises:
        OptionError: no text of that form.
    """
    name, _, words = text.partition(":")
    return name, read_options(words.split(",") if words else (), f"{name}:", "rotation_rank=4")


def all_cells(
    adapters: Sequence[str],
    *,
    gates: Sequence[str],
    rules: Sequence[str],
    architectures: Sequence[str],
    seeds: int,
    rates: Sequence[str] = (),
    tasks: Collection[str] | None = None,
    union_steps: int | None = None,
    task_rows: Mapping[str, int] | None = None,
) -> tuple[list[Cell], list[str]]:
    """All cells of a comparison, and why some combinations are left out.

    Args:
        adapters: names of the adapters.
        gates: names, with options as `parse_system` reads them, `ROLES`, or ``["all"]``.
        rules: the same.
        architectures: names, or ``["all"]``.
        seeds: how many seeds everything trained gets.
        rates: `TRAINING` of some gates, in the same form; labels do not say it, and a gate's own text wins over it.
        tasks: names of those with training rows; None where nobody knows yet.
        union_steps: of the LoRA on all tasks' rows; None leaves it out.
        task_rows: tested task → its training rows. Rules that search their weights do so for each task; None lets them search
            once, on the rows of all tasks.

    Raises:
        UnknownNameError: a name is unknown; the nearest are given.
        OptionError: options that cannot work, one adapter only, or nothing left to compare.
    """
    if len(adapters) < 2:
        raise OptionError(f"found {len(adapters)} adapter, expected at least 2: there is nothing to combine.")
    if seeds < 1:
        raise OptionError(f"seeds is {seeds}, expected at least 1.")
    if union_steps is not None and union_steps < 1:
        raise OptionError(f"union_steps is {union_steps}, expected at least 1.")
    names = ARCHITECTURES.names() if list(architectures) == ["all"] else list(architectures)
    for name in names:
        ARCHITECTURES.check(name)
    cells = [Cell("base", "base", "base")]
    cells += [Cell(name, "expert", f"expert: {name}") for name in adapters]
    if union_steps is not None:
        own = {"steps": union_steps}
        cells += [Cell(UNION, "rule", UNION_ALL_ROWS, seed=seed, options=own) for seed in range(seeds)]
    left_out: list[str] = []
    given = dict(map(parse_system, rates))
    for text, kind in [
        *((t, "rule") for t in _expanded(rules, RULES)),
        *((t, "gate") for t in _expanded(gates, GATES)),
    ]:
        name, options = parse_system(text)
        (RULES if kind == "rule" else GATES).check(name)
        shown = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
        if kind == "gate":
            options = {**given.get(name, {}), **options}
        own, training = _split(kind, options)
        _check_training(text, training)
        made = make_options(gate_class(name), {k: v for k, v in own.items() if v != "hidden"})
        used = 0
        for architecture in names:
            try:
                check_works_under(name, architecture)
                gate_class(name).check(made, list(adapters), architecture)
                if tasks is not None:
                    gate_class(name).check_tasks(made, tasks, adapters)
                searched = issubclass(rule := gate_class(name), SearchedRule) and rule.searches(made)
                if searched and task_rows is not None:
                    _check_examples(text, made.examples, task_rows)
            except OptionError as error:
                left_out.append(str(error))
                continue
            used += 1
            told = searched and task_rows is not None
            label = f"{shown} {TOLD} ({architecture})" if told else f"{shown} ({architecture})"
            each = range(seeds) if kind == "gate" or searched else (None,)
            cells += [Cell(name, "told" if told else kind, label, architecture, seed, options) for seed in each]
        if not used and list(rules if kind == "rule" else gates) != ["all"]:
            raise OptionError(left_out[-1])
    return cells, left_out


def _split(kind: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the gate or rule itself, and those of a gate's training."""
    training = {key: value for key, value in options.items() if kind == "gate" and key in TRAINING}
    return {key: value for key, value in options.items() if key not in training}, training


def _check_examples(text: str, examples: int, task_rows: Mapping[str, int]) -> None:
    task = min(task_rows, key=lambda name: task_rows[name])
    if task_rows[task] < examples:
        raise OptionError(
            f"{text}: the search for each task wants {examples} examples and {task} has {task_rows[task]} training rows. Give "
            f"more rows, or the option examples={task_rows[task]}."
        )


def _check_training(text: str, training: Mapping[str, Any]) -> None:
    for key, value in training.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key == "dense_start" and number:
            check_share(value)
        elif not number or not 0 < value < math.inf:
            raise OptionError(f"{text}: {key} is {value!r}, expected a number above 0.")


def _expanded(asked: Sequence[str], registry: Registry) -> list[str]:
    """``all``, and roles of gates, as the names that they stand for."""
    found: list[str] = []
    for text in asked:
        if text in ROLES and registry is GATES:
            found += GATES.having(role=text)
        elif list(asked) != ["all"]:
            found.append(text)
        else:
            for name in registry:
                if name != "single":  # every adapter alone is a cell of its own anyway
                    found.append(name)
                    found += [f"{name}:{VARIANTS[name]}"] if name in VARIANTS else []
    return list(dict.fromkeys(found))
