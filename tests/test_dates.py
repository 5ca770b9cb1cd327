"""The embedded default writes dates in ISO 8601: the spellings it promises, and 2,000 dates that training never saw."""

from __future__ import annotations

import datetime
import importlib.util
import random
import string
import sys
from pathlib import Path
from types import ModuleType

import pytest

import maskattn
from maskattn.decoder import Model

_DATES = Path(__file__).parent.parent / "examples" / "dates" / "dates.py"


@pytest.fixture(scope="module")
def model() -> Model:
    return maskattn.load()


@pytest.fixture(scope="module")
def dates() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dates", _DATES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dates"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("3 March 2024", "2024-03-03"),
        ("3rd of March, 2024", "2024-03-03"),
        ("the 3rd of March 2024", "2024-03-03"),
        ("the 3rd of March, 2024", "2024-03-03"),
        ("March 3, 2024", "2024-03-03"),
        ("Mar 3rd 2024", "2024-03-03"),
        ("3 Mar 24", "2024-03-03"),
        ("Sunday, March 3rd, 2024", "2024-03-03"),
        ("Sun 3 Mar 2024", "2024-03-03"),
        ("2024-03-03", "2024-03-03"),
        ("2024/03/03", "2024-03-03"),
        ("20240303", "2024-03-03"),
        ("03.03.2024", "2024-03-03"),
        ("3.3.24", "2024-03-03"),
        ("03/04/2024", "2024-03-04"),
        ("March 2024", "2024-03"),
        ("3 MARCH 2024", "2024-03-03"),
        ("  3   march  2024 ", "2024-03-03"),
        ("3 Marhch 2024", "2024-03-03"),
        ("3 Mach 2024", "2024-03-03"),
        ("3 Msrch 2024", "2024-03-03"),
        ("5 Jan 49", "2049-01-05"),
        ("5 Jan 50", "1950-01-05"),
    ],
)
def test_promised_spellings(model: Model, text: str, iso: str) -> None:
    assert model.generate([text]) == [iso]


def test_dates_that_training_never_saw(model: Model, dates: ModuleType) -> None:
    pairs = dates.held_out(seed=20261122, n=2000)
    assert all(dates.is_held_out(iso) for _, iso in pairs)
    written = model.generate([text for text, _ in pairs])
    wrong = [(text, iso, got) for (text, iso), got in zip(pairs, written, strict=True) if got != iso]
    assert len(wrong) <= 0.01 * len(pairs), wrong[:20]


# A second generator that shares no code with the one the model was trained on.
_MONTHS = ["January", "February", "March", "April", "May", "June"]
_MONTHS += ["July", "August", "September", "October", "November", "December"]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def _typo(rng: random.Random, name: str) -> str:
    at = rng.randrange(1, len(name))
    letter = rng.choice(string.ascii_lowercase)
    return rng.choice([name[:at] + letter + name[at:], name[:at] + name[at + 1 :], name[:at] + letter + name[at + 1 :]])


def _plain_pair(rng: random.Random) -> tuple[str, str]:
    date = datetime.date(1900, 1, 1) + datetime.timedelta(days=rng.randrange(73049))
    y, m, d = date.year, date.month, date.day
    name = _MONTHS[m - 1]
    if len(name) >= 5 and rng.random() < 0.3:
        name = _typo(rng, name)
    short, weekday = _MONTHS[m - 1][:3], _DAYS[date.weekday()]
    ordinal = f"{d}{'th' if 4 <= d % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(d % 10, 'th')}"
    two_digits = 1950 <= y <= 2049
    forms = [f"{d} {name} {y}", f"{ordinal} of {name}, {y}", f"the {ordinal} of {name} {y}", f"{name} {d}, {y}"]
    forms += [f"{short} {ordinal} {y}", f"{weekday}, {name} {ordinal}, {y}", f"{weekday[:3]} {d} {short} {y}"]
    forms += [date.isoformat(), f"{y}/{m:02}/{d:02}", f"{y}{m:02}{d:02}", f"{d:02}.{m:02}.{y}", f"{m:02}/{d:02}/{y}"]
    if two_digits:
        forms += [f"{d} {short} {y % 100:02}", f"{d}.{m}.{y % 100:02}"]
    forms.append(f"{name} {y}")
    text = rng.choice(forms)
    iso = f"{y}-{m:02}" if text == forms[-1] else date.isoformat()
    text = rng.choice([str, str.lower, str.upper, str.title])(text)
    if rng.random() < 0.3:
        text = " " * rng.randrange(3) + text.replace(" ", " " * rng.randint(1, 2)) + " " * rng.randrange(3)
    return text, iso


def test_dates_from_an_independent_generator(model: Model) -> None:
    rng = random.Random(7)
    pairs = [_plain_pair(rng) for _ in range(2000)]
    written = model.generate([text for text, _ in pairs])
    wrong = [(text, iso, got) for (text, iso), got in zip(pairs, written, strict=True) if got != iso]
    assert len(wrong) <= 0.01 * len(pairs), wrong[:20]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_narrow_weights_write_the_same_dates(model: Model, dates: ModuleType, dtype: str) -> None:
    texts = [text for text, _ in dates.held_out(seed=5, n=1000)]
    assert maskattn.load(dtype=dtype).generate(texts) == model.generate(texts)
