"""The examples that need neither PyTorch nor a checkpoint of one's own; the others: tests/parity/test_uses.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import maskattn

DATES = Path(maskattn.__file__).parent / "data" / "dates"
TASKS = ["translation", "summary", "parse", "sentiment", "chat"]


@pytest.fixture(scope="module")
def example() -> Iterator[Callable[[str], Any]]:
    """Modules of examples/ by name."""
    folder = str(Path(__file__).parents[1] / "examples")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_held_out_is_not_for_training(task: str, example: Callable[[str], Any]) -> None:
    data = example("toy_data")
    make = getattr(data, task)
    held_out, training, again = (
        [repr(made) for made in islice(data.draw(make, seed, held_out=held), 300)]
        for seed, held in ((1, True), (2, False), (2, False))
    )
    assert not set(held_out) & set(training)
    assert training == again
    assert len(set(training)) > 100


def test_german_objects_stand_in_the_accusative(example: Callable[[str], Any]) -> None:
    data = example("toy_data")
    genders = {noun.german: noun.article for noun in data.OBJECTS.values()}
    for _, german in islice(data.draw(data.translation, 3), 200):
        words = german.rstrip(".").split()
        nouns = [i for i, word in enumerate(words) if word in genders]
        assert len(nouns) == 2
        for i, accusative in zip(nouns, (False, True), strict=True):
            gender = genders[words[i]]
            masculine = accusative and gender == "der"
            article = words[i - 1] if words[i - 1] in ("der", "die", "das", "den") else words[i - 2]
            assert article == ("den" if masculine else gender)
            if article != words[i - 1]:
                assert words[i - 1].endswith("en" if masculine else "e")


def test_summaries_say_what_the_report_says(example: Callable[[str], Any]) -> None:
    data = example("toy_data")
    for report, summary in islice(data.draw(data.summary, 3), 100):
        first, _, second, _, _, place, *_ = summary.split()
        assert {first, second} <= set(data.NAMES)
        assert all(word in report for word in (first, second, place, summary.partition(" will ")[2]))
        assert report.index(first) < report.index(second)


def test_answers_fit_what_was_said_before(example: Callable[[str], Any]) -> None:
    data = example("toy_data")
    for talk in islice(data.draw(data.chat, 3), 200):
        topic, name = "", ""
        for question, answer in zip(talk[::2], talk[1::2], strict=True):
            text = question["content"].rstrip("?.")
            last = text.split()[-1]
            if text.startswith("My name"):
                name = last
            elif text.startswith("What is my"):
                assert answer["content"] == f"Your name is {name}."
            else:
                topic = {"What is the": "capital", "What do people": "language"}.get(" ".join(text.split()[:3]), topic)
                known = data.CAPITALS if topic == "capital" else data.LANGUAGES
                assert answer["content"].split()[-1] == f"{known[last]}."


def test_any_fitting_checkpoint_will_do(example: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    example("translate").main(["--model", str(DATES), "--picture", "3 March 2024"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2024-03-03"
    assert [line.split()[0] for line in lines[-11:]] == [*"2024-03-03", "</s>"]


def test_questions_are_ranked_by_any_model_that_writes(
    example: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    candidates = ["--candidate", "2024-03-04", "--candidate", "2024-03-03"]
    example("parse_questions").main(["--model", str(DATES), *candidates, "3 March 2024"])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["2024-03-03", "2024-03-04"]
