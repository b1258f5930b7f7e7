"""English: plurals of counted nouns, ordinal numbers. Libraries: inflect, num2words."""

from __future__ import annotations

from collections.abc import Iterator

from radargate.data.rows import Row

NOUNS = (
    "apple",
    "army",
    "baby",
    "berry",
    "bird",
    "body",
    "box",
    "brush",
    "bus",
    "calf",
    "cat",
    "cherry",
    "child",
    "church",
    "city",
    "class",
    "copy",
    "country",
    "deer",
    "dish",
    "dog",
    "family",
    "fish",
    "fly",
    "foot",
    "fox",
    "glass",
    "goose",
    "half",
    "hero",
    "house",
    "key",
    "knife",
    "lady",
    "leaf",
    "life",
    "loaf",
    "man",
    "match",
    "mouse",
    "party",
    "photo",
    "piano",
    "potato",
    "roof",
    "sheep",
    "shelf",
    "story",
    "tax",
    "horse",
    "tomato",
    "tooth",
    "toy",
    "tree",
    "watch",
    "wife",
    "wish",
    "wolf",
    "woman",
)


def counted_nouns() -> Iterator[tuple[str, Row]]:
    """``7 child`` → ``seven children``."""
    import inflect
    from num2words import num2words

    engine = inflect.engine()
    for noun in NOUNS:
        plural = engine.plural(noun)
        for count in range(2, 61):
            yield (
                f"{count} {noun}",
                Row(f"Write in words, with the right plural: {count} {noun}", f"{num2words(count)} {plural}"),
            )


def ordinals() -> Iterator[tuple[str, Row]]:
    """``forty-two`` → ``forty-second``."""
    from num2words import num2words

    for number in range(1, 3_601):
        yield str(number), Row(f"Write as an ordinal number: {num2words(number)}", num2words(number, to="ordinal"))
