"""Two skills needed at once: atomic tasks, and composed tasks whose answers need two of them.

The first skill of a pair answers ``25 =``, the second answers ``25 = fünfundzwanzig``, and so does the composed task. Every
token of a composed answer is therefore one that an expert of the two writes itself, at that place of its own answer: a mixture
of experts that cannot leave their hull is able to write it. Libraries: num2words, pint, babel (CLDR).
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from radargate.data.builtin.translation import LANGUAGES
from radargate.data.rows import Row
from radargate.errors import DataError

MOST = 99  # the largest number that a first skill answers with
# units of a first skill in each split; those of composed rows are in no atomic row. What is left over trains its expert
SIZES = {
    ("composed", "test"): 120,
    ("composed", "validation"): 40,
    ("composed", "train"): 200,
    ("atomic", "test"): 100,
    ("atomic", "validation"): 40,
    ("atomic", "train"): 1_600,
}
PHRASINGS = ("Write", "Say")  # of a second skill; composed prompts say the first
UNITS = (
    ("quart", "pint"),
    ("yard", "foot"),
    ("gallon", "quart"),
    ("fathom", "foot"),
    ("week", "day"),
    ("gallon", "pint"),
    ("mile", "furlong"),
    ("centimetre", "millimetre"),
    ("foot", "inch"),
    ("year", "month"),
    ("fortnight", "day"),
    ("pound", "ounce"),
)
_PLURALS = {"foot": "feet", "inch": "inches"}


@dataclass(frozen=True)
class SkillRow(Row):
    """A row that says which atomic skills it needs.

    Attributes:
        needs: names of atomic tasks, in the order in which the answer shows them.
        passes: of a composed row the prompts that ask its atomic skills one after the other; ``{}`` in the second stands for
            what the first answers, without its connector.
    """

    needs: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two atomic skills in a row.

    Attributes:
        first: atomic task whose result is written first.
        second: atomic task that puts it into words.
        trained: language of the composed task that has training rows.
        held_out: language of the composed task that has none.
    """

    first: str
    second: str
    trained: str
    held_out: str

    @property
    def name(self) -> str:
        """``sum-number_word``."""
        return f"{self.first}-{self.second}"

    @property
    def composed(self) -> tuple[str, str]:
        """The composed tasks, the trained one first."""
        trained, held_out = (f"{self.first}_in_{LANGUAGES_OF[code].lower()}" for code in (self.trained, self.held_out))
        return trained, held_out


LANGUAGES_OF = {**LANGUAGES, "en": "English"}
PAIRS = (
    Pair("sum", "number_word", "de", "es"),
    Pair("sequence", "ordinal_word", "en", "de"),
    Pair("conversion", "number_word", "es", "de"),
    Pair("date", "date_word", "de", "es"),
)
ATOMS = tuple(dict.fromkeys(atom for pair in PAIRS for atom in (pair.first, pair.second)))
COMPOSED = tuple(task for pair in PAIRS for task in pair.composed)
SKILLS = (*ATOMS, *COMPOSED)

# what a first skill asks, how a composed prompt says it, and its result
Item = tuple[str, str, str, str]  # key, question, phrase, result


def skill_rows(task: str, split: str) -> list[Row]:
    """Rows of one task of `SKILLS`, the same on every machine; a composed task of a held-out language has no training rows.

    Raises:
        DataError: a library that the task needs is missing.
    """
    try:
        return list(_all_rows(task)[split])
    except ImportError as error:
        raise DataError(f"builtin:{task} needs the package {error.name}: pip install 'radargate[builtin]'.") from error


def pair_named(name: str) -> Pair:
    """The pair of a name such as ``sum-number_word``.

    Raises:
        DataError: there is none.
    """
    for pair in PAIRS:
        if pair.name == name:
            return pair
    raise DataError(f"found no pair of skills {name!r}, expected one of: {', '.join(pair.name for pair in PAIRS)}.")


@functools.cache
def _all_rows(task: str) -> dict[str, list[Row]]:
    if task in _FIRST:
        by_split = {split: _first_rows(task, split) for split in ("test", "validation", "train")}
    elif task in _SECOND:
        by_split = _second_rows(task)
    else:
        by_split = _composed_rows(task)
    return {
        split: [replace(row, task=task, id=f"{task}/{split}/{i:04d}") for i, row in enumerate(rows)]
        for split, rows in by_split.items()
    }


def _first_rows(atom: str, split: str) -> list[Row]:
    found: list[Row] = []
    for key, question, _, result in _unit_items(atom)["atomic", split]:
        found.append(SkillRow(question, f"{result} =", needs=(atom,)))
        if atom == "sum" and split == "train" and (other := _swapped(key)) != question:
            found.append(SkillRow(other, f"{result} =", needs=(atom,)))  # a + b and b + a are one unit
    return found


def _second_rows(atom: str) -> dict[str, list[Row]]:
    """Facts cannot be guessed, so none is held out; a test row asks in a phrasing in which its fact was never trained."""
    rows: dict[str, list[Row]] = {"test": [], "validation": [], "train": []}
    for language in _languages(atom):
        for shown in _domain(atom):
            prompts = [f"{phrasing} {_wish(atom, shown, language)}" for phrasing in PHRASINGS]
            place = _hash(f"{atom}|{language}|{shown}") % 10
            held_out = "test" if place < 4 else "validation" if place < 6 else None
            for number, prompt in enumerate(prompts):
                split = held_out if held_out and number == place % 2 else "train"
                rows[split].append(SkillRow(prompt, _answer(atom, shown, language), needs=(atom,)))
    return {split: sorted(found, key=lambda row: _hash(row.prompt)) for split, found in rows.items()}


def _composed_rows(task: str) -> dict[str, list[Row]]:
    pair = next(pair for pair in PAIRS if task in pair.composed)
    language = pair.trained if task == pair.composed[0] else pair.held_out
    rows: dict[str, list[Row]] = {}
    for split in ("test", "validation", "train"):
        rows[split] = [
            SkillRow(
                f"{PHRASINGS[0]} {_wish(pair.second, phrase, language)}",
                _answer(pair.second, result, language),
                needs=(pair.first, pair.second),
                passes=(question, f"{PHRASINGS[0]} {_wish(pair.second, '{}', language)}"),
            )
            for _, question, phrase, result in _unit_items(pair.first)["composed", split]
            if split != "train" or language == pair.trained
        ]
    return rows


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@functools.cache
def _unit_items(atom: str) -> dict[tuple[str, str], list[Item]]:
    """The units of a first skill, shared out by a hash of their keys."""
    items = sorted(_FIRST[atom](), key=lambda item: _hash(f"{atom}|{item[0]}"))
    shares, start = {}, 0
    for share, size in SIZES.items():
        shares[share] = items[start : start + size]
        start += size
    return shares


def _sums() -> Iterator[Item]:
    """``7 + 18``; of the two orders one is asked."""
    for a in range(1, MOST):
        for b in range(a, MOST + 1 - a):
            first, second = (a, b) if _hash(f"{a}+{b}") % 2 else (b, a)
            yield f"{first} + {second}", f"What is {first} + {second}?", f"{first} + {second}", str(a + b)


def _swapped(key: str) -> str:
    first, second = key.split(" + ")
    return f"What is {second} + {first}?"


def _sequences() -> Iterator[Item]:
    """``4, 7, 10`` → ``13``, upwards and downwards."""
    for step in (*range(-12, 0), *range(1, 13)):
        for start in range(1, MOST + 1):
            terms = [start + i * step for i in range(4)]
            if min(terms) >= 1 and max(terms) <= MOST:
                shown = ", ".join(map(str, terms[:3]))
                yield shown, f"What comes after {shown}?", f"what comes after {shown}", str(terms[3])


def _conversions() -> Iterator[Item]:
    """``8 feet`` in yards, or yards in feet; whole numbers both ways."""
    import pint

    registry: pint.UnitRegistry = pint.UnitRegistry()
    for big, small in UNITS:
        for count in range(1, 61):
            many = round(registry.Quantity(count, big).to(small).magnitude)
            for number, unit, other, result in ((count, big, small, many), (many, small, big, count)):
                if result <= MOST:
                    amount = f"{number} {_noun(unit, number)}"
                    phrase = f"{amount} in {_noun(other, 2)}"
                    yield phrase, f"How many {_noun(other, 2)} are {amount}?", phrase, str(result)


def _noun(unit: str, count: int) -> str:
    return unit if count == 1 else _PLURALS.get(unit, f"{unit}s")


def _dates() -> Iterator[Item]:
    """``5 days after March 12`` → ``March 17``; never over the end of a February or of a year."""
    for offset in range(365):
        day = datetime.date(2023, 1, 1) + datetime.timedelta(offset)
        for distance in range(1, 11):
            then = day + datetime.timedelta(distance)
            if then.year == day.year and (day.month <= 2) == (then.month <= 2):
                phrase = f"the day {distance} day{'s' * (distance > 1)} after {_english(day)}"
                yield phrase, f"What is {phrase}?", phrase, _english(then)


def _english(day: datetime.date) -> str:
    return f"{day:%B} {day.day}"


def _domain(atom: str) -> Iterable[str]:
    """What a second skill puts into words."""
    if atom == "date_word":
        return [_english(datetime.date(2023, 1, 1) + datetime.timedelta(offset)) for offset in range(365)]
    return map(str, range(1, MOST + 1))


def _languages(atom: str) -> list[str]:
    """Languages of a second skill."""
    return list(dict.fromkeys(code for pair in PAIRS if pair.second == atom for code in (pair.trained, pair.held_out)))


def _wish(atom: str, what: str, language: str) -> str:
    ordinal = " as an ordinal" if atom == "ordinal_word" else ""
    return f"{what}{ordinal} in {LANGUAGES_OF[language]}."


def _answer(atom: str, shown: str, language: str) -> str:
    return f"{shown} = {_SECOND[atom](shown, language)}"


def _number_word(shown: str, language: str) -> str:
    from num2words import num2words

    return str(num2words(int(shown), lang=language))


def _ordinal_word(shown: str, language: str) -> str:
    from num2words import num2words

    return str(num2words(int(shown), lang=language, to="ordinal"))


def _date_word(shown: str, language: str) -> str:
    from babel.dates import format_skeleton

    return str(format_skeleton("MMMMd", datetime.datetime.strptime(f"{shown} 2023", "%B %d %Y"), locale=language))


_FIRST: dict[str, Callable[[], Iterator[Item]]] = {
    "sum": _sums,
    "sequence": _sequences,
    "conversion": _conversions,
    "date": _dates,
}
_SECOND: dict[str, Callable[[str, str], str]] = {
    "number_word": _number_word,
    "ordinal_word": _ordinal_word,
    "date_word": _date_word,
}
