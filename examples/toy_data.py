"""Small made-up tasks, each a grammar that draws examples: what tiny_models.py learns from and the tests ask about."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple


class Noun(NamedTuple):
    german: str
    article: str


class Verb(NamedTuple):
    german: str
    participle: str
    german_participle: str


# Machine translation: English to German, with cases, the verb in second place and the participle at the end.

SUBJECTS = {
    "dog": Noun("Hund", "der"), "man": Noun("Mann", "der"), "bird": Noun("Vogel", "der"), "cat": Noun("Katze", "die"),
    "woman": Noun("Frau", "die"), "queen": Noun("Königin", "die"), "child": Noun("Kind", "das"),
    "girl": Noun("Mädchen", "das"),
}  # fmt: skip
OBJECTS = SUBJECTS | {
    "tree": Noun("Baum", "der"), "apple": Noun("Apfel", "der"), "flower": Noun("Blume", "die"),
    "house": Noun("Haus", "das"), "book": Noun("Buch", "das"),
}  # fmt: skip
ADJECTIVES = {"": "", "small": "klein", "big": "groß", "old": "alt", "beautiful": "schön", "young": "jung"}
VERBS = {
    "sees": Verb("sieht", "seen", "gesehen"), "loves": Verb("liebt", "loved", "geliebt"),
    "finds": Verb("findet", "found", "gefunden"), "hears": Verb("hört", "heard", "gehört"),
    "paints": Verb("malt", "painted", "gemalt"),
}  # fmt: skip
ADVERBS = {"": "", "today": "heute", "here": "hier", "often": "oft"}


def _phrase(rng: Random, nouns: dict[str, Noun], case: str) -> tuple[str, str]:
    noun, adjective = rng.choice([*nouns]), rng.choice([*ADJECTIVES])
    german, article = nouns[noun]
    changes = case == "accusative" and article == "der"
    ending = "en" if changes else "e"
    words = ["den" if changes else article, ADJECTIVES[adjective] and ADJECTIVES[adjective] + ending, german]
    return _joined("the", adjective, noun), _joined(*words)


def translation(rng: Random) -> tuple[str, str]:
    """An English sentence and its German translation."""
    subject, german_subject = _phrase(rng, SUBJECTS, "nominative")
    object_, german_object = _phrase(rng, OBJECTS, "accusative")
    word, adverb = rng.choice([*VERBS]), rng.choice([*ADVERBS])
    verb = VERBS[word]
    english, german, last = (word, verb.german, "")
    if rng.random() < 0.4:
        english, german, last = f"has {verb.participle}", "hat", verb.german_participle
    first = [german_subject, german] if not adverb else [ADVERBS[adverb], german, german_subject]
    return _joined(adverb, subject, english, object_) + ".", _joined(*first, german_object, last) + "."


# Summarization: reports with a point, and talk around it.

NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas"]
PLACES = ["Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi", "Boston", "Vienna"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
PLANS = ["build a school", "plant a forest", "open a library", "write a book", "repair the bridge", "start a choir"]
ASIDES = [
    "The weather was warm.", "Many people came to listen.", "It had rained all night.", "There was tea and cake.",
    "A band played in the park.", "Nobody had expected so many guests.", "The trains were late again.",
    "Some children asked questions.",
]  # fmt: skip


def summary(rng: Random) -> tuple[str, str]:
    """A report of five sentences and what happened in it, in one."""
    first, second = rng.sample(NAMES, 2)
    place, day, plan = rng.choice(PLACES), rng.choice(DAYS), rng.choice(PLANS)
    point = rng.choice([
        f"On {day} {first} met {second} in {place}.",
        f"{first} travelled to {place} on {day} to meet {second}.",
        f"In {place}, {first} and {second} came together on {day}.",
    ])  # fmt: skip
    end = rng.choice([f"They agreed to {plan}.", f"In the end the two decided to {plan}."])
    asides = rng.sample(ASIDES, 3)
    places = sorted(rng.sample(range(5), 2))
    report = [point if i == places[0] else end if i == places[1] else asides.pop() for i in range(5)]
    return " ".join(report), f"{first} and {second} met in {place} and will {plan}."


# Semantic parsing: questions about geography as SQL.

COUNTRIES = ["France", "Spain", "Italy", "Norway", "Peru", "Japan", "Kenya", "Canada"]
TABLES = {  # table: column, more, less, most, unit, numbers
    "rivers": ("length", "longer", "shorter", "longest", "km", (100, 200, 300, 500, 800)),
    "mountains": ("height", "higher", "lower", "highest", "m", (1000, 2000, 3000, 4000)),
    "cities": ("people", "larger", "smaller", "largest", "million people", (1, 2, 3, 5)),
}


def parse(rng: Random) -> tuple[str, str]:
    """A question and the query that answers it."""
    table = rng.choice([*TABLES])
    column, more, less, most, unit, numbers = TABLES[table]
    country = rng.choice(["", *COUNTRIES])
    place = f" in {country}" if country else ""
    conditions = [f"country = '{country}'"] if country else []
    what, rest, kind = "name", "", rng.randrange(3)
    if kind == 0:
        question = rng.choice([f"What is the {most} of the {table}{place}?", f"Name the {most} of all {table}{place}."])
        rest = f" order by {column} desc limit 1"
    else:
        comparison, sign = rng.choice([(more, ">"), (less, "<")])
        number = rng.choice(numbers)
        conditions.append(f"{column} {sign} {number}")
        question = f"{{}} {table}{place} are {comparison} than {number} {unit}?"
        question = question.format(rng.choice(["Which", "What"]) if kind == 1 else "How many")
        what = "name" if kind == 1 else "count(*)"
    where = f" where {' and '.join(conditions)}" if conditions else ""
    return question, f"select {what} from {table}{where}{rest}"


# Sentiment: reviews in which a "not" or a "but" turns everything round.

THINGS = ["film", "food", "hotel", "book", "service", "music", "room", "story", "coffee", "concert"]
GOOD = ["good", "great", "wonderful", "lovely", "perfect", "charming"]
BAD = ["bad", "awful", "boring", "terrible", "poor", "sad"]


def sentiment(rng: Random) -> tuple[str, str]:
    """A review, and "positive" or "negative"."""
    positive = rng.random() < 0.5
    same, other = (GOOD, BAD) if positive else (BAD, GOOD)
    thing, second = rng.sample(THINGS, 2)
    how = rng.choice(["", "really", "very", "so"])
    review = rng.choice([
        _joined("the", thing, "was", how, rng.choice(same)),
        _joined("the", thing, "was not", how, rng.choice(other)),
        _joined("i expected a", rng.choice(other), thing, "but it was", how, rng.choice(same)),
        _joined("the", thing, "looked", rng.choice(other), "but was", how, rng.choice(same)),
        _joined("they call the", thing, rng.choice(other), "but it is", rng.choice(same)),
        _joined("a", how, rng.choice(same), thing, "and the", second, "was", rng.choice(same)),
        _joined("what a", rng.choice(same), thing),
        _joined("nobody can say that the", thing, "was", rng.choice(other)),
    ])  # fmt: skip
    return review, "positive" if positive else "negative"


# Chat: questions that mean what they mean because of what was said before.

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Norway": "Oslo", "Peru": "Lima", "Japan": "Tokyo",
    "Kenya": "Nairobi", "Canada": "Ottawa",
}  # fmt: skip
LANGUAGES = {
    "France": "French", "Spain": "Spanish", "Italy": "Italian", "Norway": "Norwegian", "Peru": "Spanish",
    "Japan": "Japanese", "Kenya": "Swahili", "Canada": "English",
}  # fmt: skip


def chat(rng: Random) -> list[dict[str, str]]:
    """One to three exchanges, as messages with a role and a content."""
    turns: list[tuple[str, str]] = []
    name, topic = "", ""
    for _ in range(rng.randint(1, 3)):
        country, kind = rng.choice(COUNTRIES), rng.random()
        if kind < 0.2 and not name:
            name = rng.choice(NAMES)
            turns.append((f"My name is {name}.", f"Hello {name}!"))
        elif kind < 0.4 and name:
            turns.append(("What is my name?", f"Your name is {name}."))
        else:
            asked = kind > 0.6 and topic
            topic = topic if asked else rng.choice(["capital", "language"])
            city, language = CAPITALS[country], LANGUAGES[country]
            if topic == "capital":
                turns.append((f"What is the capital of {country}?", f"The capital of {country} is {city}."))
            else:
                turns.append((f"What do people speak in {country}?", f"In {country} they speak {language}."))
            if asked:
                turns[-1] = (f"And {country}?", turns[-1][1])
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


# Drawing


def draw(make: Callable[[Random], Any], seed: int, *, held_out: bool = False) -> Iterator[Any]:
    """Examples without end: nine tenths of all there are for training, or the tenth that is kept for tests."""
    rng = Random(seed)
    while True:
        example = make(rng)
        if (zlib.crc32(repr(example).encode()) % 10 == 0) == held_out:
            yield example


def _joined(*words: str) -> str:
    return " ".join(word for word in words if word)
