"""Words with times: a tiny Whisper that writes characters, its alignment against plain loops, and what words are."""

from __future__ import annotations

import json
import re
import wave
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
from maskattn.cli import main
from maskattn.decoder.transcription.warping import first_frames, median_filter, warp
from maskattn.decoder.transcription.words import split
from maskattn.speech import MelSettings, log_mel
from test_transcription import GENERATION, RATE, save, sounds

CHARACTERS = " abcdefghijklm,.("
VOCAB = {name: i for i, name in enumerate(["<pad>", "</s>", "<unk>", *CHARACTERS])}
SETTINGS = MelSettings(feature_size=7, chunk_length=1)
HEADS = [[0, 1], [1, 0]]


#: Beside the timestamps, what the tokenizer does not know.
NO_TEXT = [2, *range(20, 30)]


def save_with_characters(path: Path, **generation: Any) -> Path:
    save(path, {**GENERATION, "suppress_tokens": NO_TEXT, **generation})
    (path / "vocab.json").write_text(json.dumps(VOCAB))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CharacterTokenizer"}))
    return path


@pytest.fixture
def model(tmp_path: Path) -> maskattn.Model:
    return maskattn.load(save_with_characters(tmp_path / "whisper", alignment_heads=HEADS))


def words(result: maskattn.Transcription) -> list[Any]:
    return [word for segment in result.segments for word in segment.words or ()]


@pytest.mark.parametrize("timestamps", [None, False])
def test_words_are_the_text_of_their_segments(timestamps: bool | None, model: maskattn.Model) -> None:
    recordings = sounds(0.3, 1, 0.7) + (sounds(3.7, 2.2) if timestamps is None else [])
    options: dict[str, Any] = {"temperatures": (0.0, 0.8), "logprob_threshold": -0.1, "seed": 3}
    got = model.transcribe(recordings, word_timestamps=True, return_timestamps=timestamps, **options)
    for result in got:
        for segment in result.segments:
            assert segment.words is not None
            assert "".join(word.text for word in segment.words).strip() == segment.text
            times = [time for word in segment.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert all(0 < word.probability <= 1 for word in segment.words)
    assert sum(word.start < word.end for result in got for word in words(result)) > 3
    for batch_size in (1, 2):
        assert got == model.transcribe(
            recordings, word_timestamps=True, return_timestamps=timestamps, batch_size=batch_size, **options
        )
    for with_words, plain in zip(
        got, model.transcribe(recordings, return_timestamps=timestamps is None, **options), strict=True
    ):
        assert plain.segments == tuple(replace(one, words=None) for one in with_words.segments)


def test_probabilities_of_other_searches(model: maskattn.Model) -> None:
    """With drafts they are greedy search's; beams of one pass over what they wrote."""
    recordings = sounds(0.3, 3.7, 1)
    want = model.transcribe(recordings, word_timestamps=True)
    assert model.transcribe(recordings, word_timestamps=True, prompt_lookup_num_tokens=4) == want
    assert model.transcribe(recordings, word_timestamps=True, assistant_model=model) == want
    for result in model.transcribe(recordings, word_timestamps=True, num_beams=3):
        assert words(result)
        assert all(0 < word.probability <= 1 for word in words(result))


def plain_warp(costs: np.ndarray) -> list[int]:
    """By the definition, in float64."""
    rows, columns = costs.shape
    total, back = np.full((rows + 1, columns + 1), np.inf), {}
    total[0, 0] = 0
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            both, above, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            if both < above and both < left:
                back[i, j] = (i - 1, j - 1)
            elif above < both and above < left:
                back[i, j] = (i - 1, j)
            else:
                back[i, j] = (i, j - 1)
            total[i, j] = costs[i - 1, j - 1] + total[back[i, j]]
    place, entered = (rows, columns), [0] * rows
    while place != (0, 0):
        entered[place[0] - 1] = place[1] - 1
        place = back[place]
    return entered


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (4, 30), (30, 4), (23, 23), (12, 57)])
def test_warp(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape)
    for costs in (
        rng.standard_normal(shape),
        rng.integers(-3, 3, shape) / 4,
        np.zeros(shape),
    ):  # ways of equal cost too
        assert warp(costs).tolist() == plain_warp(costs)


def plain_boundaries(weights: np.ndarray, width: int) -> list[int]:
    """Where tokens begin, of weights (heads, tokens, frames)."""
    normal = weights.astype(np.float64)
    normal = (normal - normal.mean(axis=1, keepdims=True)) / normal.std(axis=1, keepdims=True)
    frames, half, filtered = weights.shape[2], width // 2, np.empty(weights.shape)
    for frame in range(frames):
        near = [abs(i) if i < frames else 2 * frames - 2 - i for i in range(frame - half, frame + half + 1)]
        filtered[:, :, frame] = np.median(normal[:, :, near], axis=2)
    return plain_warp(-filtered.mean(axis=0))


def test_first_frames() -> None:
    """Two heads that follow what is said, and a third that does not."""
    rng, onsets = np.random.default_rng(0), np.array([0, 7, 12, 20, 21, 33, 41, 46, 52])
    ends = np.append(onsets[1:], 60)
    said = (np.arange(60) >= onsets[:, None]) & (np.arange(60) < ends[:, None])
    weights = np.stack([said, said, np.zeros_like(said)]) + 0.3 * rng.random((3, 9, 60))
    weights = (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)
    for width in (1, 3, 7):
        found = first_frames(weights, width)
        assert found.tolist() == plain_boundaries(weights, width)
        assert np.abs(found - onsets).max() <= 1 + width // 2


@pytest.mark.parametrize("seconds", [0.31, 0.7, 1])
@pytest.mark.parametrize("timestamps", [False, True])
def test_times_and_probabilities(seconds: float, timestamps: bool, model: maskattn.Model) -> None:
    """From the model's own views of what it wrote; of a short recording only what is no padding."""
    [sound], features = sounds(seconds), log_mel(sounds(seconds)[0], SETTINGS, samples=RATE)
    # Neither the end nor a second timestamp: there is one segment, of all tokens.
    suppressed = [*NO_TEXT, 1, *range(31 if timestamps else 30, 61)]
    options: dict[str, Any] = {"language": "de", "max_new_tokens": 30, "suppress_tokens": suppressed}
    [segment] = model.transcribe([sound], word_timestamps=True, return_timestamps=timestamps, **options)[0].segments
    tokens, prompt = list(segment.tokens), [2, 21, 23] if timestamps else [2, 21, 23, 29]
    assert len(tokens) == 30
    weights = model.cross_attention(features, tokens, heads=[(0, 1), (1, 0)], prompt_ids=prompt)
    skipped = int(timestamps)
    starts = plain_boundaries(weights[:, skipped:, : round(100 * seconds) // 2], 7)
    times = 0.02 * np.array([0] * skipped + starts + starts[-1:])
    likely = probabilities(model, features, tokens, prompt, [*suppressed, 30])
    text, assigned = [i for i, token in enumerate(tokens) if 3 <= token < 20], 0
    assert segment.words
    assert len(set(times)) > 1
    for word in segment.words:
        places = text[assigned : assigned + len(word.text)]
        assert word.text == "".join(CHARACTERS[tokens[i] - 3] for i in places)
        assert (word.start, word.end) == pytest.approx((times[places[0]], times[places[-1] + 1]))
        assert word.probability == pytest.approx(float(likely[places].mean()), rel=1e-4)
        assigned += len(word.text)
    assert assigned == len(text)


def probabilities(
    model: maskattn.Model, features: np.ndarray, tokens: list[int], prompt: list[int], suppressed: list[int]
) -> np.ndarray:
    """Of each token among those that are not suppressed."""
    found = []
    for i in range(len(tokens)):
        targets = [[*tokens[:i], token] for token in range(61)]
        scores = model.score_ids(np.repeat(features[None], 61, axis=0), targets, prompt_ids=prompt)
        values = np.exp([score[-1] for score in scores])
        values[suppressed] = 0
        found.append(values[tokens[i]] / values.sum())
    return np.array(found)


@pytest.mark.parametrize(("text", "spaced", "spaceless"), [
    ("Yes (well) -so.", ["Yes", " (well)", " -so."], ["Y", "e", "s", " (", "w", "e", "l", "l)", " -", "s", "o."]),
    ("a  b...", ["a", "  b..."], ["a", "  b..."]),
    ("“我们。”", ["“我们。”"], ["“", "我", "们。”"]),
    (" ดี ", [" ดี", " "], [" ดี", " "]),  # a consonant and its vowel
    (" a👍🏽🇩🇪🇫🇷", [" a👍🏽🇩🇪🇫🇷"], [" a", "👍🏽", "🇩🇪", "🇫🇷"]),
    ("", [], []),
])  # fmt: skip
def test_split(text: str, spaced: list[str], spaceless: list[str]) -> None:
    """Of tokens of one byte each."""
    written = [bytes([byte]) for byte in text.encode()]
    for spaces, words in ((True, spaced), (False, spaceless)):
        parts = split(written, spaces=spaces)
        assert [part.text for part in parts] == words
        assert [part.first for part in parts] + [len(written)] == [0, *(part.end for part in parts)]


def test_split_what_is_no_text() -> None:
    """Each part of a broken character is shown as such, and what stands behind it is not lost."""
    parts = split([b" a", b"\xe4\xb8", b"b", b" c", b"\xe4"], spaces=True)
    assert [(part.text, part.first, part.end) for part in parts] == [(" a\ufffdb", 0, 3), (" c\ufffd", 3, 5)]


def test_median_filter() -> None:
    np.testing.assert_array_equal(median_filter(np.array([[1.0, 9, 2, 3, 8]]), 3), [[9, 2, 3, 3, 3]])
    np.testing.assert_array_equal(median_filter(np.array([[5.0, 1, 7]]), 7), [[5, 1, 7]])  # too short


@pytest.mark.parametrize("length", [1, 40, 400, 700])
def test_hardly_any_sound(length: int, model: maskattn.Model) -> None:
    """Less than two positions of the encoder: there is no time to tell words apart."""
    options: dict[str, Any] = {"suppress_tokens": [*NO_TEXT, 0, 1, *range(31, 61)], "max_new_tokens": 30}
    found = words(model.transcribe([np.full(length, 0.1, np.float32)], word_timestamps=True, **options)[0])
    assert found
    assert all(word.start == word.end == 0 for word in found) == (length < 640)


def test_languages_without_spaces(tmp_path: Path) -> None:
    """Whether the language is told or detected, one word is one token, with its punctuation."""
    model = maskattn.load(save_with_characters(tmp_path, lang_to_id={"<|zh|>": 20, "<|yue|>": 21}))
    options: dict[str, Any] = {"suppress_tokens": [*NO_TEXT, 0, 1, *range(31, 61)], "max_new_tokens": 30}
    [detected] = model.transcribe(sounds(1), word_timestamps=True, **options)
    [told] = model.transcribe(sounds(1), word_timestamps=True, language=detected.language, **options)
    assert detected.segments == told.segments
    found = words(detected)
    assert len(found) > 5
    assert all(sum(character.isalpha() for character in word.text) <= 1 for word in found)


def test_silence_has_no_words(model: maskattn.Model) -> None:
    assert model.transcribe(sounds(2.5), word_timestamps=True, no_speech_threshold=0.0)[0].segments == ()


@pytest.mark.parametrize(("generation", "config", "message"), [
    ({"alignment_heads": [[2, 0]]}, {}, r"alignment_heads in generation_config.json\[0\] must name one of 2 layers"),
    ({"alignment_heads": []}, {}, "alignment_heads in generation_config.json must name at least one"),
    ({}, {"median_filter_width": 4}, "median_filter_width must be an odd number, got 4; correct config.json"),
    ({}, {"median_filter_width": "7"}, "median_filter_width must be an odd number, got '7'"),
])  # fmt: skip
def test_configs_that_lie(generation: Any, config: Any, message: str, tmp_path: Path) -> None:
    path = save_with_characters(tmp_path, **generation)
    (path / "config.json").write_text(json.dumps({**json.loads((path / "config.json").read_text()), **config}))
    model = maskattn.load(path)
    assert model.transcribe(sounds(0.5))[0].segments
    with pytest.raises(ValueError, match=message):
        model.transcribe(sounds(0.5), word_timestamps=True)


def test_bad_arguments(model: maskattn.Model, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="word_timestamps must be True, False or None, got 1"):
        model.transcribe(sounds(0.5), word_timestamps=1)  # type: ignore[arg-type]
    without = maskattn.load(save(tmp_path / "without", GENERATION))
    with pytest.raises(ValueError, match=r"must be in .*, got no such file; add it"):
        without.transcribe(sounds(0.5), word_timestamps=True)


def test_the_command(model: maskattn.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recordings = []
    for i, sound in enumerate(sounds(2.4, 0.7)):
        recordings.append(str(tmp_path / f"{i}.wav"))
        with wave.open(recordings[-1], "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((sound * 2**15).astype("<i2").tobytes())
    command = ["transcribe", "--model", str(tmp_path / "whisper"), "--task", "translate", "--condition-on-prev-tokens"]
    want = model.transcribe(recordings, task="translate", condition_on_prev_tokens=True, word_timestamps=True)
    assert main([*command, "--word-timestamps", "--json", *recordings]) == 0
    for line, result in zip(capsys.readouterr().out.splitlines(), want, strict=True):
        got = [word for segment in json.loads(line)["segments"] for word in segment["words"]]
        assert got == [asdict(word) for word in words(result)]
    assert main([*command, "--word-timestamps", recordings[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("] ")[1] if "] " in line else "" for line in lines] == [w.text.strip() for w in words(want[0])]
    assert all(re.match(r"\[00:0\d\.\d\d -> 00:0\d\.\d\d\]", line) for line in lines)
    assert want != model.transcribe(recordings, task="transcribe", word_timestamps=True)
