"""What the experiment on composed skills crosses: pairs, systems, rows, seeds; and how large each preset makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from radargate.data.builtin.skills import PAIRS
from radargate.errors import OptionError, UnknownNameError
from radargate.evaluation.options import Scoring
from radargate.registry import option, unknown_name
from radargate.training.options import ExpertOptions, GateTraining

NAMES = ("skills", "skills-tuning")
BAR = 0.9  # exact match that an atomic expert must reach on its own test rows
CONTRAST = ("radar", "signed", "stretch", "cat", "multiplicative", "lora", "fresh")
CONTRAST_ROWS = 50
# name in records → kind of its cell, and what it is: a gate or rule with options, or a maker of `systems`
SYSTEMS: dict[str, tuple[str, str]] = {
    "base": ("base", "base"),
    "expert": ("expert", "expert"),  # a cell for each of the two
    "select": ("rule", "select"),
    "uniform": ("rule", "uniform"),
    "sum": ("adapter", "sum"),
    "two-pass": ("passes", "two-pass"),
    "ties": ("rule", "ties"),
    "knots": ("rule", "knots"),
    "lorahub": ("rule", "lorahub"),
    "radar": ("gate", "radar"),
    "signed": ("gate", "signed"),
    "stretch": ("gate", "stretch"),
    "cat": ("gate", "cat"),
    "multiplicative": ("gate", "multiplicative"),
    "lora": ("gate", "lora"),
    "fresh": ("adapter", "fresh"),
    "fresh-on-sum": ("adapter", "fresh-on-sum"),
    "trained-on": ("adapter", "trained-on"),
    "signed-radar": ("gate", "signed-radar"),
    "vector": ("gate", "vector"),
    "lora, signed's size": ("gate", "lora:rank=1"),
    "stretch length=expert": ("gate", "stretch:length=expert"),
    "stretch router=text": ("gate", "stretch:router=text"),  # decides again at each token, from the answer so far too
    "radar router=text": ("gate", "radar:router=text"),
    "radar constant angles": ("gate", "radar:rotation_input=constant,rotation_sharing=expert"),
    "union": ("union", "union"),
    "union+rows": ("union", "union+rows"),
}
UNTRAINED = ("base", "expert", "select", "uniform", "sum", "two-pass", "ties", "knots")
ADAPTERS = ("fresh", "fresh-on-sum", "trained-on")  # one LoRA trained on the composed rows
# tried for every trained system of a kind on validation rows
TRIED: dict[str, tuple[float, ...]] = {
    "gate": (2e-3, 5e-3, 2e-2),
    "cat": (2e-2, 5e-2, 2e-1),
    "adapter": (5e-4, 1e-3, 3e-3),
}


@dataclass(frozen=True)
class SkillsDesign:
    """A whole experiment.

    Attributes:
        base: base model, read without its chat template.
        pairs: names of pairs of atomic skills.
        systems: names of `SYSTEMS`; ``NAME:lr=…`` sets a learning rate.
        rows: budgets of composed training rows; 0 trains gates on atomic rows.
        expert_seeds: seeds of every expert.
        seeds: seeds of everything trained on top, where all seeds are crossed.
        crossed_pairs: how many pairs, the first ones, have all seeds of the contrast's systems; other cells have one.
        training: of gates; LoRAs on composed rows have its steps and batch.
        recipe: of experts.
        recipes: atom → fields of the recipe that differ.
        fresh_rank: rank of a LoRA on composed rows; its alpha is twice that.
        scoring: of every cell.
        languages: 1 scores the trained language alone, 2 the held-out one too.
        rates: system → learning rate found on validation rows.
    """

    base: str = "smollm2-135m"
    pairs: tuple[str, ...] = option(
        tuple(pair.name for pair in PAIRS),
        "of skills: comma-separated pairs of atomic skills, such as sum-number_word",
        metavar="NAMES",
    )
    systems: tuple[str, ...] = tuple(SYSTEMS)
    rows: tuple[int, ...] = option(
        (50, 0, 20, 200), "of skills: composed rows that systems are trained on (may be repeated)", repeat=True, least=0
    )
    expert_seeds: int = option(3, "of skills: seeds of every expert", least=1)
    seeds: int = 3
    crossed_pairs: int = 2
    training: GateTraining = GateTraining(steps=60, batch_size=8, max_length=64, save_every=0, dense_start=0.0)
    recipe: ExpertOptions = ExpertOptions(
        steps=300,
        batch_size=32,
        lr=2e-3,
        rank=4,
        alpha=16,
        max_length=64,
        target_modules=("all-linear",),
        save_dtype="bfloat16",
    )
    recipes: Mapping[str, Mapping[str, Any]] = None  # type: ignore[assignment]
    fresh_rank: int = 8
    scoring: Scoring = Scoring(max_new_tokens=20, batch_size=40)
    languages: int = 2
    rates: Mapping[str, float] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Fill in what is found on validation rows, and check names."""
        object.__setattr__(self, "recipes", dict(RECIPES if self.recipes is None else self.recipes))
        object.__setattr__(self, "rates", dict(RATES if self.rates is None else self.rates))
        for text in self.systems:
            name = text.partition(":lr=")[0]
            if name not in SYSTEMS:
                raise UnknownNameError(unknown_name("system", name, list(SYSTEMS)))
        for field in ("expert_seeds", "seeds", "crossed_pairs"):
            if getattr(self, field) < (field != "crossed_pairs"):
                raise OptionError(f"{field} is {getattr(self, field)}, expected at least 1.")

    def recipe_of(self, atom: str, seed: int) -> ExpertOptions:
        """How the expert of an atom is trained."""
        return replace(self.recipe, seed=seed, **self.recipes.get(atom, {}))


# steps and rows a step were found on validation rows (docs/log.md)
RECIPES: dict[str, dict[str, Any]] = {
    "number_word": {"batch_size": 16},
    "ordinal_word": {"batch_size": 16},
    "date_word": {"batch_size": 16},
}
# best of `TRIED` on 40 validation rows of the first pair, 50 training rows, one seed: records of skills-tuning
RATES: dict[str, float] = {
    "radar": 5e-3,
    "signed": 5e-3,
    "stretch": 5e-3,
    "cat": 2e-1,
    "multiplicative": 5e-3,
    "lora": 5e-3,
    "fresh": 3e-3,
}
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "gpu": {"base": "meta-llama/Llama-3.2-1B"},
    "paper": {"base": "google/flan-t5-large", "expert_seeds": 5, "seeds": 5},
}


def plan(name: str, preset: str, *, smoke: bool = False, **changes: Any) -> SkillsDesign:
    """The design of one preset.

    Args:
        name: one of `NAMES`; ``skills-tuning`` tries learning rates on validation rows.
        preset: a name of `PRESETS`.
        smoke: shrink it to minutes; its experts know little, so the bar is not asked for.
        changes: what the user set: ``bases``, ``pairs``, ``gates`` (systems), ``rows``, ``seeds``, ``expert_seeds``, ``limit``,
            ``steps``; None leaves one as it is.

    Raises:
        UnknownNameError: no such preset or system.
        OptionError: a value that cannot work.
    """
    if preset not in PRESETS:
        raise UnknownNameError(unknown_name("preset", preset, list(PRESETS)))
    design = SkillsDesign(**PRESETS[preset])
    if name == "skills-tuning":
        design = _rates(design)
    if smoke:
        design = _shrunk(design)
    given = {key: value for key, value in changes.items() if value is not None}
    if len(given.get("bases", ("one",))) != 1:
        raise OptionError(
            f"{name} has one base, found {len(given['bases'])}: run it again with another in another `out`."
        )
    own: dict[str, Any] = {}
    for key, value in given.items():
        if key == "bases":
            own["base"] = value[0]
        elif key == "gates":
            own["systems"] = tuple(value)
        elif key == "limit":
            own["scoring"] = replace(design.scoring, limit=value)
        elif key == "steps":
            own["training"] = replace(design.training, steps=value)
        elif key in ("pairs", "rows", "seeds", "expert_seeds", "crossed_pairs"):
            own[key] = value
        else:
            raise OptionError(f"`{key}` is no option of {name}.")
    return replace(design, **own)


def tried(system: str) -> tuple[float, ...]:
    """Learning rates to try for a system; none for what is not trained, or has the experts' own."""
    kind = SYSTEMS[system][0]
    if system in UNTRAINED or kind not in ("gate", "adapter"):
        return ()
    return TRIED.get(system, TRIED[kind])


def _rates(design: SkillsDesign) -> SkillsDesign:
    """Every trained system at each of its rates, on validation rows of the first pair's trained language."""
    names = (*CONTRAST, *(name for name in SYSTEMS if name not in CONTRAST))
    systems = tuple(f"{name}:lr={rate:g}" for name in names for rate in tried(name))
    scoring = replace(design.scoring, split="validation")
    return replace(
        design,
        pairs=design.pairs[:1],
        systems=systems,
        rows=(CONTRAST_ROWS,),
        expert_seeds=1,
        seeds=1,
        crossed_pairs=0,
        scoring=scoring,
        languages=1,
    )


def _shrunk(design: SkillsDesign) -> SkillsDesign:
    """The same in minutes: one pair, one budget, few steps and rows, one seed."""
    return replace(
        design,
        pairs=design.pairs[:1],
        rows=(20,),
        expert_seeds=1,
        seeds=1,
        crossed_pairs=0,
        training=replace(design.training, steps=3, batch_size=4),
        recipe=replace(design.recipe, steps=4),
        recipes={},
        scoring=replace(design.scoring, limit=5, max_new_tokens=8),
    )
