"""Built-in tasks: enough distinct rows, disjoint splits, the same on every machine, answers checked a second way."""

from __future__ import annotations

import datetime
import hashlib
import re
from pathlib import Path

import pytest

from radargate.data.builtin import CATEGORIES, TASKS, builtin_rows, category_of
from radargate.data.builtin.page import sample_page
from radargate.data.builtin.translation import LANGUAGES
from radargate.data.sources import load_rows
from radargate.errors import DataError

SPLITS = ("train", "validation", "test")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows():
    return {(task, split): builtin_rows(task, split) for task in TASKS for split in SPLITS}


def test_every_task_has_enough_distinct_short_rows_and_no_prompt_twice(rows):
    assert len(CATEGORIES) == 5 and all(len(tasks) >= 2 for tasks in CATEGORIES.values())
    seen: set[str] = set()
    for task in TASKS:
        assert len(rows[task, "train"]) >= 2_000 and len(rows[task, "test"]) >= 300
        for split in SPLITS:
            for row in rows[task, split]:
                assert row.prompt not in seen, f"{row.prompt!r} stands twice"
                seen.add(row.prompt)
                assert len(row.prompt) < 130 and row.target and row.task == task
                assert not row.choices or row.candidates == row.choices


def test_rows_are_the_same_on_every_machine(rows):
    text = "\n".join(
        f"{row.prompt}|{row.target}"
        for task in ("addition", "sequences", "weekdays", "ordering")
        for row in rows[task, "test"]
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "43390f3d14a80dbf"
    assert builtin_rows("addition", "test") == rows["addition", "test"]


def test_no_sum_or_pair_is_asked_the_other_way_round_in_another_split(rows):
    for task, pattern in (("addition", r"(\d+) \+ (\d+)"), ("heavier_element", r": (\w+) or (\w+)\?")):
        found = [{frozenset(re.search(pattern, r.prompt).groups()) for r in rows[task, split]} for split in SPLITS]
        assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])


def test_answers_hold_when_computed_another_way(rows):
    import inflect
    import periodictable
    from babel import Locale
    from num2words import num2words

    engine = inflect.engine()
    words = {num2words(i): i for i in range(1, 3_601)}
    months = {code: {v.lower(): k for k, v in Locale(code).months["format"]["wide"].items()} for code in LANGUAGES}
    english = {v: k for k, v in Locale("en").months["format"]["wide"].items()}
    mass = {e.name: e.mass for e in periodictable.elements}
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    factor = {
        "metres": 1000,
        "centimetres": 100,
        "millimetres": 10,
        "grams": 1000,
        "kilograms": 1000,
        "millilitres": 1000,
        "minutes": 60,
        "seconds": 60,
        "hours": 24,
        "days": 7,
    }
    codes = {name: code for code, name in LANGUAGES.items()}
    for (task, _), items in rows.items():
        for row in items:
            numbers = [int(n) for n in re.findall(r"\d+", row.prompt)]
            if task == "addition":
                assert int(row.target) == sum(numbers)
            elif task == "sequences":
                assert int(row.target) == 2 * numbers[3] - numbers[2]
            elif task == "weekdays":
                start = datetime.date(2024, 1, 1 + days.index(re.search(r"is (\w+)\.", row.prompt)[1]))
                move = datetime.timedelta(numbers[0] if "in" in row.prompt.split("is it")[-1].split() else -numbers[0])
                assert days[(start + move).weekday()] == row.target
            elif task == "ordering":
                a, b, c, d, word = re.match(
                    r"(\w+) is taller than (\w+)\. (\w+) is taller than (\w+)\. Who is the (\w+)\?", row.prompt
                ).groups()
                order = [a, b, d] if b == c else [c, a, b]
                assert row.target == (order[0] if word == "tallest" else order[-1])
            elif task == "counted_nouns":
                noun, plural = row.prompt.rsplit(" ", 1)[-1], row.target.rsplit(" ", 1)[-1]
                assert words[row.target.rsplit(" ", 1)[0]] == numbers[0]
                assert engine.singular_noun(plural) in (noun, False) and (
                    plural != noun or noun in ("deer", "fish", "sheep")
                )
            elif task == "ordinals":
                assert num2words(words[row.prompt.split(": ")[1]], to="ordinal") == row.target
            elif task == "number_words":
                language, text = re.match(r"Translate into (\w+): (.+)", row.prompt).groups()
                assert num2words(words[text], lang=codes[language]) == row.target
            elif task == "dates":
                language, month, day = re.match(r"Translate into (\w+): (\w+) (\d+)", row.prompt).groups()
                assert re.search(rf"\b{day}\b", row.target)
                name = re.sub(r"[\d.]|\bde\b", "", row.target).strip().lower()
                assert months[codes[language]][name] == english[month]
            elif task == "heavier_element":
                assert row.target == max(row.choices, key=lambda name: mass[name])
            elif task == "units":
                small = re.match(r"How many (\w+)", row.prompt)[1]
                assert int(row.target) == numbers[0] * (1000 if "tonne" in row.prompt else factor[small])


def test_sources_take_tasks_categories_and_all():
    assert list(load_rows("builtin:science", "test", limit=2)) == ["heavier_element", "units"]
    assert len(load_rows("builtin:all", "validation", limit=1)) == 10
    assert category_of("dates") == "translation"
    with pytest.raises(DataError, match="Did you mean 'dates'"):
        load_rows("builtin:date", "test")


def test_the_page_of_samples_is_up_to_date():
    assert (ROOT / "docs" / "tasks.md").read_text() == sample_page()
