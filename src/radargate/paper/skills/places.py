"""The cells of the experiment on composed skills: which system, on which pair, rows and seeds, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from radargate.comparison.cells import UNION, Cell, parse_system
from radargate.comparison.grid import grid_conditions
from radargate.comparison.union import union_steps
from radargate.data.builtin.skills import Pair, pair_named, skill_rows
from radargate.data.rows import Row, rows_hash
from radargate.paper.predict import Rates
from radargate.paper.skills.bank import Bank
from radargate.paper.skills.design import ADAPTERS, CONTRAST, CONTRAST_ROWS, SYSTEMS, TRIED, UNTRAINED, SkillsDesign
from radargate.training.cost import rotates
from radargate.training.options import one_rate

# measured on one thread with smollm2-135m in bfloat16 (benchmarks/results/skills): tokens of a row, those that scoring one takes
# as long as, generation with its early end included, a step of a gate that rotates beside others, and opening a composition
TOKENS, SCORED, TURNING, OPENING = 24, 22, 1.3, 10.0
ATOMIC_ROWS = 100  # of each of the two atoms, for gates that see no composed row
Rows = dict[str, list[Row]]


@dataclass(frozen=True)
class Place:
    """One cell and where it stands.

    Attributes:
        id: what it is known by.
        cell: the system.
        pair: atomic skills.
        rows: composed training rows; None where nothing is trained on any.
        expert_seed: of both experts.
        conditions: all that its result depends on beside the cell.
        seconds: what it should take.
    """

    id: str
    cell: Cell
    pair: Pair
    rows: int | None
    expert_seed: int
    conditions: dict[str, Any]
    seconds: float

    def at(self) -> dict[str, Any]:
        """Where it stands, for records."""
        return {"pair": self.pair.name, "rows": self.rows, "expert_seed": self.expert_seed}


def train_rows(pair: Pair, rows: int | None) -> Rows:
    """What systems are trained on: composed rows of the trained language; at 0 rows of the two atoms."""
    if rows:
        return {pair.composed[0]: skill_rows(pair.composed[0], "train")[:rows]}
    return {atom: skill_rows(atom, "train")[:ATOMIC_ROWS] for atom in (pair.first, pair.second)}


def atomic_rows(pair: Pair) -> Rows:
    """All training rows of the two experts."""
    return {atom: skill_rows(atom, "train") for atom in (pair.first, pair.second)}


def test_rows(pair: Pair, design: SkillsDesign) -> Rows:
    """The composed tasks' rows that are scored."""
    scoring = design.scoring
    return {task: skill_rows(task, scoring.split)[: scoring.limit] for task in pair.composed[: design.languages]}


def cells_of(text: str, pair: Pair, design: SkillsDesign, seed: int, union_rows_read: Sequence[int]) -> list[Cell]:
    """The cells of one system, named as records name it."""
    name, _, rate = text.partition(":lr=")
    kind, made = SYSTEMS[name]
    lr = float(rate) if rate else design.rates.get(name)
    label = f"{name} lr={lr:g}" if rate else name
    if name == "expert":
        return [Cell(atom, "expert", f"expert: {atom}") for atom in (pair.first, pair.second)]
    if kind in ("base", "passes") or name == "sum":
        return [Cell(made, kind, label)]
    if name in ADAPTERS:
        return [Cell(made, kind, label, seed=seed, options={"lr": lr or 1e-3, "rank": design.fresh_rank})]
    if kind == "union":
        steps = union_steps(list(union_rows_read), design.training)
        return [Cell(UNION, "rule", label, seed=seed, options={"steps": steps})]
    system, options = parse_system(made)
    if kind == "gate" and lr is not None:
        options |= {"lr": lr} if name in TRIED else one_rate(lr)  # what has rates of its own does not rotate
    searched = system == "lorahub"
    return [Cell(system, kind, label, "mole", seed if kind == "gate" or searched else None, options)]


def places(design: SkillsDesign, bank: Bank, identity: str, dtype: str | None, device: str) -> list[Place]:
    """Every cell, those of the contrast first, then more seeds, then the other budgets and pairs."""
    found: dict[str, Place] = {}
    for pair, rows, expert_seed, seed, systems in _order(design):
        for text in systems:
            name = text.partition(":lr=")[0]
            own_rows = None if name in UNTRAINED else rows
            if (rows == 0 and name in (*ADAPTERS, "lorahub", "union+rows")) or (name == "union" and rows):
                continue  # without composed rows these are nothing new
            recipes = [design.recipe_of(atom, expert_seed) for atom in (pair.first, pair.second)]
            read = [recipe.steps * recipe.batch_size for recipe in recipes]
            for cell in cells_of(text, pair, design, seed, read):
                place = _place(cell, pair, own_rows, expert_seed, design, bank, identity, dtype, device)
                found.setdefault(place.id, place)
    return list(found.values())


def _order(design: SkillsDesign) -> Iterator[tuple[Pair, int, int, int, list[str]]]:
    """Pair, rows, expert seed, seed and systems, what matters most first."""
    pairs, systems = [pair_named(name) for name in design.pairs], list(design.systems)
    contrast = [name for name in systems if name.partition(":lr=")[0] in CONTRAST]
    untrained = [name for name in systems if name in UNTRAINED]
    main = CONTRAST_ROWS if CONTRAST_ROWS in design.rows else design.rows[0]
    for pair in pairs[:1]:
        yield pair, main, 0, 0, [*contrast, *untrained]
    units = sorted(((e, s) for e in range(design.expert_seeds) for s in range(design.seeds)), key=lambda u: (max(u), u))
    for number, pair in enumerate(pairs[: design.crossed_pairs]):
        for expert_seed, seed in units if number == 0 else units[:1]:
            yield pair, main, expert_seed, seed, contrast
    for pair in pairs[:1]:
        for rows in (main, *(rows for rows in design.rows if rows != main)):
            yield pair, rows, 0, 0, systems
    for pair in pairs[1 : design.crossed_pairs]:
        for expert_seed, seed in units:
            yield pair, main, expert_seed, seed, contrast
    for pair in pairs:
        for rows in (main, *(rows for rows in design.rows if rows != main)):
            yield pair, rows, 0, 0, systems


def _place(
    cell: Cell,
    pair: Pair,
    rows: int | None,
    expert_seed: int,
    design: SkillsDesign,
    bank: Bank,
    identity: str,
    dtype: str | None,
    device: str,
) -> Place:
    train, test = train_rows(pair, rows), test_rows(pair, design)
    flat = [row for found in train.values() for row in found] if rows is not None else []
    hashes = {"mole": bank.hashes(pair, expert_seed)}
    conditions = grid_conditions(identity, dtype, hashes, flat, test, design.training, design.scoring)
    if cell.system == UNION or cell.system == "select":
        conditions["atomic_rows"] = rows_hash(row for found in atomic_rows(pair).values() for row in found)
    seconds = _seconds(cell, test, design, device)
    return Place(cell.id(conditions), cell, pair, rows, expert_seed, conditions, seconds)


def _seconds(cell: Cell, test: Rows, design: SkillsDesign, device: str) -> float:
    """By what such short rows took (see `TOKENS`), all in training tokens of this base and device."""
    rates, scored = Rates(design.base, device), sum(map(len, test.values()))
    passes = 2 if cell.kind == "passes" or cell.label == "radar" else 1  # radar is scored with Q = 0 too
    tokens = float(passes * SCORED * scored)
    steps = cell.options["steps"] if cell.system == UNION else design.training.steps if cell.seed is not None else 0
    turning = TURNING if cell.kind == "gate" and rotates(cell.system) else 1.0
    tokens += steps * design.training.batch_size * TOKENS * turning
    return OPENING + tokens * rates.token


def record_of(place: Place) -> dict[str, Any]:
    """Its line in the record of the whole plan."""
    return {"id": place.id, **asdict(place.cell), "at": place.at()}
