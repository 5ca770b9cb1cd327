"""Dates as people write them, paired with ISO 8601: the data for a small character-level Transformer.

``random_pair`` writes one date in one of the styles in ``STYLES``, in any letter case, with stray spaces and with
one-letter typos in month names, and returns ``(text, iso)``. Everything is drawn from a ``random.Random`` the caller
seeds, so every list of pairs can be made again.

One date in ten is held out: ``is_held_out`` decides from the ISO date alone, so ``training_pairs`` never shows a model
any spelling of a date that ``held_out`` draws.

Run this file to print a few pairs of every style.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import random
import string
import zlib
from collections.abc import Callable, Iterator, Sequence

FIRST_YEAR, LAST_YEAR = 1900, 2099
# Two-digit years: 00-49 are 2000-2049 and 50-99 are 1950-1999.
FIRST_SHORT_YEAR, LAST_SHORT_YEAR = 1950, 2049

MONTHS = ["January", "February", "March", "April", "May", "June"]
MONTHS += ["July", "August", "September", "October", "November", "December"]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTH_ABBREVIATIONS = [[name[:3]] for name in MONTHS]
MONTH_ABBREVIATIONS[8].append("Sept")
WEEKDAY_ABBREVIATIONS = [[name[:3]] for name in WEEKDAYS]
WEEKDAY_ABBREVIATIONS[1].append("Tues")
WEEKDAY_ABBREVIATIONS[3] += ["Thur", "Thurs"]
# Names of four letters or fewer are spelled right: one letter away from "June" is "July" or "Jun".
SHORTEST_NAME_WITH_TYPO = 5

# Every character a written date may have after lower-casing; anything else is unknown to the model.
ALPHABET = " '" + ",-./" + string.digits + string.ascii_lowercase

Style = Callable[[random.Random, datetime.date], str]


# ---- Pieces -----------------------------------------------------------------------------------------------------


def ordinal(day: int) -> str:
    """The day with its English suffix: 1st, 2nd, 3rd, 4th, 11th."""
    suffixes = {1: "st", 2: "nd", 3: "rd"}
    return str(day) + ("th" if 11 <= day <= 13 else suffixes.get(day % 10, "th"))


def with_typo(rng: random.Random, name: str) -> str:
    """``name`` with one letter added, dropped or changed, never the first, and never another month's name."""
    while True:
        place = rng.randrange(1, len(name))
        letter = rng.choice(string.ascii_lowercase)
        kind = rng.randrange(3)
        if kind == 0:
            # One place more than there are letters: an added letter may also end the name.
            place = rng.randrange(1, len(name) + 1)
            # People often double the letter they have just typed.
            wrong = name[:place] + (name[place - 1].lower() if rng.random() < 0.2 else letter) + name[place:]
        elif kind == 1:
            wrong = name[:place] + name[place + 1 :]
        else:
            wrong = name[:place] + letter + name[place + 1 :]
        if wrong not in MONTHS:
            return wrong


def month_word(rng: random.Random, month: int) -> str:
    """The month in words: its name, at times with a typo, or an abbreviation, at times with a dot."""
    name = MONTHS[month - 1]
    if rng.random() < 0.3:
        short = rng.choice(MONTH_ABBREVIATIONS[month - 1])
        return short + "." if short != name and rng.random() < 0.15 else short
    if len(name) >= SHORTEST_NAME_WITH_TYPO and rng.random() < 0.55:
        return with_typo(rng, name)
    return name


def weekday_word(rng: random.Random, date: datetime.date) -> str:
    """The weekday, in full or short. One in ten is wrong: the date decides, not the weekday."""
    number = rng.randrange(7) if rng.random() < 0.1 else date.weekday()
    if rng.random() < 0.5:
        return WEEKDAYS[number]
    return rng.choice(WEEKDAY_ABBREVIATIONS[number]) + ("." if rng.random() < 0.1 else "")


def day_word(rng: random.Random, day: int) -> str:
    """The day as 3, 03, 3rd, 03rd or, with the wrong suffix, 3th."""
    draw = rng.random()
    if draw < 0.4:
        return str(day)
    if draw < 0.55:
        return f"{day:02d}"
    if draw < 0.58:
        return str(day) + rng.choice(("st", "nd", "rd", "th"))
    return ordinal(day) if draw < 0.95 else ordinal(day).zfill(4)


def number(rng: random.Random, value: int) -> str:
    """A day or month in figures, padded to two places or not."""
    return f"{value:02d}" if rng.random() < 0.5 else str(value)


def spaced(rng: random.Random, words: Sequence[str]) -> str:
    """Join words by one space, at times by more, with a space before or none after a comma, and around it all."""
    untidy = rng.random() < 0.45
    text = words[0]
    for before, word in itertools.pairwise(words):
        if word == ",":
            gap = rng.choice((0, 0, 0, 1, 2)) if untidy else 0
        elif before == "," and rng.random() < 0.1:
            gap = 0
        else:
            gap = rng.choice((1, 1, 2, 3, 4)) if untidy else 1
        text += " " * gap + word
    return text


def separated(rng: random.Random, numbers: Sequence[str], separator: str) -> str:
    """Join numbers by a separator, at times with stray spaces around it."""
    untidy = rng.random() < 0.3
    text = numbers[0]
    for value in numbers[1:]:
        before, after = (rng.choice((0, 0, 1, 1, 2, 3)) if untidy else 0 for _ in range(2))
        text += " " * before + separator + " " * after + value
    return text


def any_case(rng: random.Random, text: str) -> str:
    """The text in one of the cases people write: as it is, lower, upper, or each letter either way."""
    draw = rng.random()
    if draw < 0.5:
        return text
    if draw < 0.7:
        return text.lower()
    if draw < 0.85:
        return text.upper()
    return "".join(rng.choice((letter.lower(), letter.upper())) for letter in text)


# ---- Styles -----------------------------------------------------------------------------------------------------


def optional(rng: random.Random, chance: float, *words: str) -> list[str]:
    """The words with this chance, else none."""
    return list(words) if rng.random() < chance else []


def leading_weekday(rng: random.Random, date: datetime.date) -> list[str]:
    """No weekday, or one with or without a comma."""
    if rng.random() < 0.55:
        return []
    return [weekday_word(rng, date), *optional(rng, 0.6, ",")]


def short_year(rng: random.Random, date: datetime.date) -> str:
    """The year's last two figures, at times after an apostrophe."""
    return ("'" if rng.random() < 0.1 else "") + f"{date.year % 100:02d}"


def day_month(rng: random.Random, date: datetime.date, year: str) -> str:
    """Such as ``3 March 2024`` and ``Sunday, the 3rd of March, 2024``."""
    words = [*leading_weekday(rng, date), *optional(rng, 0.3, "the"), day_word(rng, date.day)]
    words += [*optional(rng, 0.4, "of"), month_word(rng, date.month)]
    return spaced(rng, [*words, *optional(rng, 0.35, ","), year])


def month_day(rng: random.Random, date: datetime.date, year: str) -> str:
    """Such as ``Mar 3rd 2024`` and ``Sunday, March the 3rd, 2024``."""
    words = [*leading_weekday(rng, date), month_word(rng, date.month), *optional(rng, 0.1, "the")]
    return spaced(rng, [*words, day_word(rng, date.day), *optional(rng, 0.6, ","), year])


def month_only(rng: random.Random, date: datetime.date) -> str:
    """Such as ``March 2024`` and ``Mar, 2024``: no day."""
    return spaced(rng, [month_word(rng, date.month), *optional(rng, 0.25, ","), str(date.year)])


def year_first(separator: str) -> Style:
    """Such as ``2024-03-03`` and ``2024/3/3``."""

    def write(rng: random.Random, date: datetime.date) -> str:
        if rng.random() < 0.6:
            figures = [f"{date.month:02d}", f"{date.day:02d}"]
        else:
            figures = [number(rng, date.month), number(rng, date.day)]
        return separated(rng, [str(date.year), *figures], separator)

    return write


def dotted(rng: random.Random, date: datetime.date, year: str) -> str:
    """Such as ``03.03.2024`` and ``3.3.24``: the day first."""
    return separated(rng, [number(rng, date.day), number(rng, date.month), year], ".")


def slashed(rng: random.Random, date: datetime.date, year: str) -> str:
    """Such as ``03/04/2024`` and ``3/4/24``: the month first."""
    return separated(rng, [number(rng, date.month), number(rng, date.day), year], "/")


STYLES: dict[str, Style] = {
    "day month year": lambda rng, date: day_month(rng, date, str(date.year)),
    "day month short year": lambda rng, date: day_month(rng, date, short_year(rng, date)),
    "month day year": lambda rng, date: month_day(rng, date, str(date.year)),
    "month day short year": lambda rng, date: month_day(rng, date, short_year(rng, date)),
    "month year": month_only,
    "year-month-day": year_first("-"),
    "year/month/day": year_first("/"),
    "yearmonthday": lambda rng, date: date.strftime("%Y%m%d"),
    "day.month.year": lambda rng, date: dotted(rng, date, str(date.year)),
    "day.month.short year": lambda rng, date: dotted(rng, date, f"{date.year % 100:02d}"),
    "month/day/year": lambda rng, date: slashed(rng, date, str(date.year)),
    "month/day/short year": lambda rng, date: slashed(rng, date, f"{date.year % 100:02d}"),
}
# How often training draws each style: words have the most spellings and so the most to learn.
TRAINING_WEIGHTS: dict[str, float] = dict.fromkeys(STYLES, 1.0) | {
    "day month year": 3.5,
    "day month short year": 2.5,
    "month day year": 3.5,
    "month day short year": 2.5,
    "month year": 2.0,
}


# ---- Pairs ------------------------------------------------------------------------------------------------------


def is_held_out(iso: str) -> bool:
    """Whether a date (``2024-03-03``) or month (``2024-03``) is kept from training: one in ten is."""
    return zlib.crc32(iso.encode()) % 10 == 0


def iso_of(style: str, date: datetime.date) -> str:
    """What a date written in this style means in ISO 8601."""
    return date.isoformat()[:7] if style == "month year" else date.isoformat()


def random_date(rng: random.Random, first_year: int, last_year: int) -> datetime.date:
    """A day from all the days of these years."""
    first = datetime.date(first_year, 1, 1).toordinal()
    return datetime.date.fromordinal(rng.randint(first, datetime.date(last_year, 12, 31).toordinal()))


def random_pair(rng: random.Random, style: str, held_out: bool | None = None) -> tuple[str, str]:
    """One ``(text, iso)`` pair in one style; ``held_out`` says which dates to draw from, ``None`` from all."""
    years = (FIRST_SHORT_YEAR, LAST_SHORT_YEAR) if "short year" in style else (FIRST_YEAR, LAST_YEAR)
    while True:
        date = random_date(rng, *years)
        iso = iso_of(style, date)
        if held_out is None or is_held_out(iso) == held_out:
            break
    text = any_case(rng, STYLES[style](rng, date))
    if rng.random() < 0.15:
        text = " " * rng.randrange(3) + text + " " * rng.randrange(3)
    return text, iso


def training_pairs(seed: int) -> Iterator[tuple[str, str]]:
    """Pairs without end, by ``TRAINING_WEIGHTS``, of the dates that are not held out."""
    rng = random.Random(seed)
    names, weights = list(TRAINING_WEIGHTS), list(TRAINING_WEIGHTS.values())
    while True:
        for style in rng.choices(names, weights, k=1000):
            yield random_pair(rng, style, held_out=False)


def held_out(seed: int, n: int, style: str | None = None) -> list[tuple[str, str]]:
    """``n`` pairs of held-out dates, all in one style, or each in any style alike."""
    rng = random.Random(seed)
    return [random_pair(rng, style or rng.choice(list(STYLES)), held_out=True) for _ in range(n)]


def main() -> None:
    """Print some pairs of every style."""
    parser = argparse.ArgumentParser(description="Print written dates and their ISO form.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=4, help="pairs of each style")
    options = parser.parse_args()
    for style in STYLES:
        print(style)
        for text, iso in held_out(options.seed, options.count, style):
            print(f"    {iso:10}  {text!r}")


if __name__ == "__main__":
    main()
