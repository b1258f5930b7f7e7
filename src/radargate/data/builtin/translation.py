"""Number words and dates in several languages. Libraries: num2words, babel (CLDR)."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from radargate.data.rows import Row

LANGUAGES = {
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "nl": "Dutch",
    "sv": "Swedish",
    "pl": "Polish",
}
NUMBER_LANGUAGES = ("fr", "de", "es", "it", "pt", "nl")


def number_words() -> Iterator[tuple[str, Row]]:
    """``forty-two`` → ``quarante-deux``."""
    from num2words import num2words

    for code in NUMBER_LANGUAGES:
        for number in range(1, 601):
            prompt = f"Translate into {LANGUAGES[code]}: {num2words(number)}"
            yield f"{code} {number}", Row(prompt, num2words(number, lang=code))


def dates() -> Iterator[tuple[str, Row]]:
    """``March 3`` → ``3. März``."""
    from babel.dates import format_skeleton

    for code, language in LANGUAGES.items():
        for offset in range(366):
            day = datetime.date(2024, 1, 1) + datetime.timedelta(offset)
            english, other = (format_skeleton("MMMMd", day, locale=locale) for locale in ("en", code))
            yield f"{code} {day:%m-%d}", Row(f"Translate into {language}: {english}", other)
