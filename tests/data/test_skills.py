"""Composed skills: every token of an answer is an expert's own, atoms and composed rows share no unit, answers hold."""

from __future__ import annotations

import datetime
import re

import pytest

from radargate.data.builtin import builtin_tasks
from radargate.data.builtin.skills import ATOMS, COMPOSED, PAIRS, PHRASINGS, SKILLS, pair_named, skill_rows
from radargate.data.sources import load_rows
from radargate.errors import DataError

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def rows():
    return {(task, split): skill_rows(task, split) for task in SKILLS for split in SPLITS}


def test_there_are_enough_rows_and_none_twice(rows):
    assert len(PAIRS) >= 3 and all(pair.trained != pair.held_out for pair in PAIRS)
    prompts = [row.prompt for found in rows.values() for row in found]
    assert len(prompts) == len(set(prompts))
    ids = [row.id for found in rows.values() for row in found]
    assert len(ids) == len(set(ids))
    for pair in PAIRS:
        trained, held_out = pair.composed
        assert len(rows[trained, "train"]) == 200 and not rows[held_out, "train"]
        assert all(len(rows[task, "test"]) >= 100 for task in pair.composed)
        assert len(rows[pair.first, "train"]) >= 400 and len(rows[pair.first, "test"]) >= 100
        assert len(rows[pair.second, "test"]) >= 60


def test_every_row_says_which_atoms_it_needs(rows):
    for (task, _), found in rows.items():
        for row in found:
            expected = (task,) if task in ATOMS else next((p.first, p.second) for p in PAIRS if task in p.composed)
            assert row.needs == expected and bool(row.passes) == (task in COMPOSED)


def pieces(text: str) -> list[str]:
    """Words and single digits, as the base's tokenizer cuts numbers."""
    return re.findall(r"\d|[^\d\s]+", text)


def test_every_token_of_a_composed_answer_is_written_by_one_of_its_experts(rows):
    """The answer is the second expert's own answer, and begins with the first expert's own answer."""
    second = {
        atom: {r.prompt: r.target for s in SPLITS for r in rows[atom, s]} for atom in {pair.second for pair in PAIRS}
    }
    for pair in PAIRS:
        written = {piece for row in rows[pair.first, "train"] for piece in pieces(row.target)}
        for task in pair.composed:
            for split in SPLITS:
                for row in rows[task, split]:
                    result = row.target.partition(" =")[0]
                    assert {*pieces(result), "="} <= written  # a first expert ends its answers with the connector
                    assert second[pair.second][row.passes[1].format(result)] == row.target


def test_no_unit_of_a_composed_row_is_in_an_atomic_row_or_in_another_split(rows):
    for pair in PAIRS:
        atomic = {split: {row.prompt for row in rows[pair.first, split]} for split in SPLITS}
        composed = {split: {row.passes[0] for task in pair.composed for row in rows[task, split]} for split in SPLITS}
        every = [*atomic.values(), *composed.values()]
        assert sum(map(len, every)) == len(set().union(*every))
    both = {split: [frozenset(re.findall(r"\d+", row.prompt)) for row in rows["sum", split]] for split in SPLITS}
    both["composed"] = [frozenset(re.findall(r"\d+", row.prompt)) for s in SPLITS for row in rows["sum_in_german", s]]
    assert sum(len(set(found)) for found in both.values()) == len(set().union(*both.values()))  # a + b is b + a
    assert len(both["test"]) == len(set(both["test"])) and len(both["composed"]) == len(set(both["composed"]))


def test_every_fact_is_known_and_a_test_row_asks_it_in_another_phrasing(rows):
    for atom in {pair.second for pair in PAIRS}:
        trained = {row.prompt for row in rows[atom, "train"]}
        for split in ("validation", "test"):
            for row in rows[atom, split]:
                said, _, what = row.prompt.partition(" ")
                other = next(phrasing for phrasing in PHRASINGS if phrasing != said)
                assert f"{other} {what}" in trained and row.prompt not in trained


_GERMAN = "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn"
_GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"
_SPANISH = (
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete "
    "dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete veintiocho "
    "veintinueve"
)
_SPANISH_TENS = "treinta cuarenta cincuenta sesenta setenta ochenta noventa"


def german(number: int) -> str:
    ones, tens = _GERMAN.split(), _GERMAN_TENS.split()
    if number < 20:
        return ones[number] + "s" * (number == 1)
    return tens[number // 10 - 2] if number % 10 == 0 else f"{ones[number % 10]}und{tens[number // 10 - 2]}"


def spanish(number: int) -> str:
    ones, tens = _SPANISH.split(), _SPANISH_TENS.split()
    if number < 30:
        return ones[number]
    return tens[number // 10 - 3] if number % 10 == 0 else f"{tens[number // 10 - 3]} y {ones[number % 10]}"


def german_ordinal(number: int) -> str:
    special = {1: "erste", 3: "dritte", 7: "siebte", 8: "achte"}
    return special.get(number) or german(number) + ("te" if number < 20 else "ste")


def english_ordinal(number: int) -> str:
    import inflect

    engine = inflect.engine()
    return str(engine.ordinal(engine.number_to_words(number)))


def test_words_hold_when_made_by_the_languages_own_rules(rows):
    numbers = {"German": german, "Spanish": spanish}
    ordinals = {"German": german_ordinal, "English": english_ordinal}
    months = {
        "German": [
            "Januar",
            "Februar",
            "März",
            "April",
            "Mai",
            "Juni",
            "Juli",
            "August",
            "September",
            "Oktober",
            "November",
            "Dezember",
        ],
        "Spanish": [
            "enero",
            "febrero",
            "marzo",
            "abril",
            "mayo",
            "junio",
            "julio",
            "agosto",
            "septiembre",
            "octubre",
            "noviembre",
            "diciembre",
        ],
    }
    for atom, words in (("number_word", numbers), ("ordinal_word", ordinals)):
        for split in SPLITS:
            for row in rows[atom, split]:
                shown, _, word = row.target.partition(" = ")
                assert word == words[row.prompt.rstrip(".").split(" in ")[1]](int(shown)), row
    for split in SPLITS:
        for row in rows["date_word", split]:
            shown, _, word = row.target.partition(" = ")
            day, language = datetime.datetime.strptime(f"{shown} 2023", "%B %d %Y"), row.prompt.split(" in ")[1][:-1]
            month = months[language][day.month - 1]
            assert word == (f"{day.day}. {month}" if language == "German" else f"{day.day} de {month}")


def test_first_skills_hold_when_computed_another_way(rows):
    per = {
        ("quart", "pint"): 2,
        ("yard", "feet"): 3,
        ("gallon", "quart"): 4,
        ("fathom", "feet"): 6,
        ("week", "day"): 7,
        ("gallon", "pint"): 8,
        ("mile", "furlong"): 8,
        ("centimetre", "millimetre"): 10,
        ("feet", "inche"): 12,
        ("year", "month"): 12,
        ("fortnight", "day"): 14,
        ("pound", "ounce"): 16,
    }
    plain = {"foot": "feet", "inch": "inche"}
    days = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    names = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    for split in SPLITS:
        for row in rows["sum", split]:
            assert sum(map(int, re.findall(r"\d+", row.prompt))) == int(row.target[:-2])
        for row in rows["sequence", split]:
            a, b, c = map(int, re.findall(r"\d+", row.prompt))
            assert c - b == b - a != 0 and int(row.target[:-2]) == c + (c - b)
        for row in rows["conversion", split]:
            wanted, count, unit = re.fullmatch(r"How many (\w+) are (\d+) (\w+)\?", row.prompt).groups()
            wanted, unit = (plain.get(name, name.removesuffix("s")) for name in (wanted, unit))
            known = (unit, wanted) in per
            count, factor = int(count), per[(unit, wanted) if known else (wanted, unit)]
            assert int(row.target[:-2]) * (1 if known else factor) == count * (factor if known else 1), row
        for row in rows["date", split]:
            distance, month, day = re.search(r"day (\d+) days? after (\w+) (\d+)", row.prompt).groups()
            place, day = names.index(month), int(day) + int(distance)
            if day > days[place]:
                place, day = place + 1, day - days[place]
            assert row.target == f"{names[place]} {day} ="


def test_skills_are_a_source_of_rows_and_no_part_of_all():
    assert builtin_tasks("skills") == SKILLS and not set(builtin_tasks("all")) & set(SKILLS)
    found = load_rows("builtin:skills", "test", ["sum", "sum_in_german"], limit=2)
    assert [row.prompt for row in found["sum"]] == [row.prompt for row in skill_rows("sum", "test")[:2]]
    assert list(load_rows("builtin:skills", "test")) == list(SKILLS)
    assert pair_named("sum-number_word").composed == ("sum_in_german", "sum_in_spanish")
    with pytest.raises(DataError, match="sum-number_word"):
        pair_named("sum-words")
