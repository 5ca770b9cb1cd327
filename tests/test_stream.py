"""Tokens and texts as they come: all of what is generated, at once, and no more than is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import maskattn
import tiny_families
import tiny_marian
from maskattn.decoder.stream import Piece, Tokens
from tiny_marian import VOCAB

LENGTHS = (1, 5, 17, 30, 2, 9, 40, 3)
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 5, "temperature": 1.5},
    "processors": {"no_repeat_ngram_size": 2, "min_new_tokens": 4},
    "beams": {"num_beams": 4, "length_penalty": 0.5},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return maskattn.load(tiny_marian.write(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    rng = np.random.default_rng(8)
    return [rng.integers(3, len(VOCAB), n).tolist() for n in LENGTHS]


def gathered(stream: Iterable[Tokens], count: int) -> list[list[int]]:
    made: list[list[int]] = [[] for _ in range(count)]
    for tokens in stream:
        ids = made[tokens.source]
        made[tokens.source] = ids[: len(ids) - tokens.retracted] + tokens
    return made


def joined(stream: Iterable[Piece], count: int) -> list[str]:
    made = [""] * count
    for piece in stream:
        made[piece.source] = made[piece.source][: len(made[piece.source]) - piece.retracted] + piece
    return made


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_comes_is_what_is_generated(options: dict[str, Any], model: Any, sources: list[list[int]]) -> None:
    want = model.generate_ids(sources, max_new_tokens=20, **options)
    streamed = list(model.stream_ids(sources, max_new_tokens=20, **options))
    assert gathered(streamed, len(sources)) == want
    if "num_beams" not in options:
        assert all(len(tokens) == 1 and not tokens.retracted for tokens in streamed)
        finished = [tokens.source for tokens in streamed if tokens.finished]
        assert sorted(finished) == list(range(len(sources)))
    told: list[Tokens] = []
    assert model.generate_ids(sources, max_new_tokens=20, batch_size=3, on_tokens=told.append, **options) == want
    assert gathered(told, len(sources)) == want


def test_one_source(model: Any, sources: list[list[int]]) -> None:
    (want,) = model.generate_ids([sources[3]], max_new_tokens=12, return_log_probabilities=True)
    streamed = list(model.stream_ids(sources[3], max_new_tokens=12, return_log_probabilities=True))
    assert [token for tokens in streamed for token in tokens] == want
    np.testing.assert_array_equal(np.concatenate([t.log_probabilities for t in streamed]), want.log_probabilities)
    assert list(model.stream_ids([])) == []


def test_sound_is_a_source(tmp_path: Any) -> None:
    whisper = maskattn.load(tiny_families.write(tmp_path, tiny_families.config("whisper", decoder_start_token_id=2)))
    sound = np.random.default_rng(1).standard_normal((2, 7, 20), dtype=np.float32)
    want = whisper.generate_ids(sound, max_new_tokens=6)
    assert gathered(whisper.stream_ids(sound, max_new_tokens=6), 2) == want
    assert gathered(whisper.stream_ids(sound[1], max_new_tokens=6), 1) == want[1:]


def test_beams_take_back(model: Any, sources: list[list[int]]) -> None:
    streamed = list(model.stream_ids(sources, max_new_tokens=20, num_beams=4))
    assert any(tokens.retracted for tokens in streamed), "or this test shows nothing"
    texts = ["".join(tiny_marian.CHARACTERS[i - 3] for i in ids) for ids in sources]
    assert joined(model.stream(texts, max_new_tokens=20, num_beams=4), 8) == model.generate(
        texts, max_new_tokens=20, num_beams=4
    )


def test_pieces_are_the_text_and_come_a_token_late(model: Any) -> None:
    (want,) = model.generate(["march 3"], max_new_tokens=12, min_new_tokens=12)
    pieces = list(model.stream("march 3", max_new_tokens=12, min_new_tokens=12))
    assert "".join(pieces) == want
    assert len(pieces) > 6, "a character each"
    asked: list[int] = []

    def counting(ids: Any, scores: Any) -> Any:
        asked.append(ids.shape[1])
        return scores

    stream = model.stream("march 3", max_new_tokens=12, min_new_tokens=12, logits_processor=[counting])
    next(stream)
    assert len(asked) == 2


def test_leaving_the_loop_ends_the_work(model: Any, sources: list[list[int]]) -> None:
    steps: list[int] = []

    def counting(ids: Any, scores: Any) -> Any:
        steps.append(ids.shape[1])
        return scores

    options: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20, "logits_processor": [counting]}
    for _ in model.stream_ids(sources[0], **options):
        break
    assert len(steps) == 1
    stream = model.stream_ids(sources[0], **options)
    for n, _ in enumerate(stream):
        if n == 2:
            stream.close()
    assert len(steps) == 4
    assert list(stream) == []
    with model.stream_ids(sources[0], **options) as stream:
        next(stream)
    assert list(stream) == []
    assert len(steps) == 5

    def refuse(tokens: Tokens) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        model.generate_ids(sources[:1], on_tokens=refuse, **options)


def test_another_thread_ends_the_work(model: Any, sources: list[list[int]]) -> None:
    inside, closed = threading.Event(), threading.Event()

    def waiting(ids: Any, scores: Any) -> Any:
        inside.set()
        assert closed.wait(10)
        return scores

    stream = model.stream_ids(sources[0], max_new_tokens=20, logits_processor=[waiting])
    got: list[Tokens] = []
    reader = threading.Thread(target=lambda: got.extend(stream))
    reader.start()
    assert inside.wait(10)
    stream.close()
    closed.set()
    reader.join(10)
    assert not reader.is_alive()
    assert got == [], "the step that was under way ended, and is not shown"


def test_stop_strings_are_held_back_until_they_are_whole(model: Any) -> None:
    (text,) = model.generate(["march 3"], max_new_tokens=16, min_new_tokens=16)
    stop = next(text[i : i + 3] for i in range(4, 12) if text.index(text[i : i + 3]) == i)
    options: dict[str, Any] = {"max_new_tokens": 16, "min_new_tokens": 16, "stop_strings": [stop, text[2:5] + "\n"]}
    pieces = list(model.stream("march 3", **options))
    assert "".join(pieces) == model.generate(["march 3"], **options)[0] == text[: text.index(stop) + 3]
    assert pieces[-1] == stop, "in one piece"
    assert text[2:5] in "".join(pieces), "what has not become one is shown"


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (
            {"num_beams": 2, "num_return_sequences": 2},
            ValueError,
            "num_return_sequences must be 1 in a stream .* got 2",
        ),
        ({"num_beams": 2, "return_log_probabilities": True}, ValueError, "return_log_probabilities must be False"),
        ({"max_new_token": 3}, TypeError, "did you mean max_new_tokens"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be "),
    ],
)
def test_what_is_refused_is_refused_at_once(
    asked: dict[str, Any], error: type[Exception], message: str, model: Any
) -> None:
    with pytest.raises(error, match=message):
        model.stream_ids([3, 4], **asked)
    with pytest.raises(TypeError, match=r"texts\[0\] must be "):
        model.stream([3])
