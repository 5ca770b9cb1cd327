"""From a spoken wav file to the right words: the tiny Whisper of examples/, which espeak-ng has taught the digits.

What it is asked here no training has heard: another voice, speed and pitch. It is trained once per session.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("soxr")
if not shutil.which("espeak-ng"):
    pytest.skip("needs espeak-ng: apt install espeak-ng", allow_module_level=True)

import maskattn  # noqa: E402
from maskattn.speech import log_mel, read_audio  # noqa: E402

RATE = 16000
Say = Callable[[str, Sequence[int], float], np.ndarray]


@pytest.fixture(scope="module")
def example() -> Iterator[Callable[[str], Any]]:
    """Modules of examples/ by name."""
    folder = str(Path(__file__).parents[2] / "examples")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def checkpoint(example: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, before = tmp_path_factory.mktemp("digits"), torch.get_num_threads()
    torch.set_num_threads(1)  # more do not help so small a model, and wait for each other on a busy machine
    example("tiny_whisper").main([str(path)])
    torch.set_num_threads(before)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> maskattn.Model:
    return maskattn.load(checkpoint)


@pytest.fixture(scope="module")
def say(example: Callable[[str], Any]) -> Say:
    """Digits in a voice that was not heard in training, with a pause behind each."""
    tiny, known = example("tiny_whisper"), dict[tuple[str, int], np.ndarray]()

    def spoken(language: str, digits: Sequence[int], pause: float) -> np.ndarray:
        parts = [np.zeros(1600, np.float32)]
        for digit in digits:
            if (language, digit) not in known:
                word, voice = tiny.WORDS[language][digit], f"{tiny.VOICES[language][0]}+m6"
                known[language, digit] = tiny.speak(word, voice, 157, 47)
            parts += [known[language, digit], np.zeros(int(pause * RATE), np.float32)]
        return np.concatenate(parts)

    return spoken


def write(path: Path, sound: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((sound * 2**15).astype("<i2").tobytes())
    return path


def distance(a: str, b: str) -> int:
    """Characters to insert, delete or replace."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def test_short_recordings(model: maskattn.Model, say: Say) -> None:
    rng = Random(1)
    asked = [(language, [rng.randrange(10) for _ in range(n)]) for language in ("en", "de") for n in [1, 2, 3] * 5]
    sounds = [say(language, digits, 0.15)[: 2 * RATE] for language, digits in asked]
    for timestamps in (False, True):
        heard = model.transcribe(sounds, return_timestamps=timestamps)
        assert sum(one.language == language for one, (language, _) in zip(heard, asked, strict=True)) >= 28
        right = sum(one.text == "".join(map(str, digits)) for one, (_, digits) in zip(heard, asked, strict=True))
        assert right >= 27, [(one.text, digits) for one, (_, digits) in zip(heard, asked, strict=True)]


@pytest.mark.parametrize("language", ["en", "de"])
def test_long_recordings(language: str, model: maskattn.Model, say: Say) -> None:
    rng = Random(2)
    digits = [rng.randrange(10) for _ in range(30)]
    sound = say(language, digits, 0.3)
    assert len(sound) > 15 * RATE
    [heard] = model.transcribe([sound])
    assert heard.language == language
    assert distance(heard.text or "", "".join(map(str, digits))) <= 3, (heard.text, digits)
    ends = [segment.end for segment in heard.segments]
    assert ends == sorted(ends)
    assert abs(ends[-1] - len(sound) / RATE) < 1


def test_the_same_as_transformers(checkpoint: Path, model: maskattn.Model, say: Say) -> None:
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(checkpoint)
    sounds = [say("en", [3, 1, 4, 1, 5, 9, 2, 6], 0.2), say("de", [2, 7, 1, 8], 0.3)]
    for sound, ours in zip(sounds, model.transcribe(sounds), strict=True):
        features = extractor(sound, sampling_rate=RATE, truncation=False, padding="longest", return_tensors="pt")
        want = theirs.generate(features.input_features, return_timestamps=True, task="transcribe")[0].tolist()
        assert list(ours.tokens) == want


def test_a_whole_file_as_it_was_spoken(model: maskattn.Model, tmp_path: Path) -> None:
    """At 22,050 Hz, as espeak-ng writes it, through the resampler."""
    command = ["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(tmp_path / "spoken.wav"), "four, seven"]
    subprocess.run(command, check=True, timeout=60)
    with wave.open(str(tmp_path / "spoken.wav")) as file:
        assert file.getframerate() == 22050
    [heard] = model.transcribe([tmp_path / "spoken.wav"])
    assert (heard.text, heard.language) == ("47", "en")
    # The path by hand.
    sound = read_audio(tmp_path / "spoken.wav")
    assert log_mel(sound).shape == (80, len(sound) // 160)


def test_the_example(
    example: Callable[[str], Any], checkpoint: Path, say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [
        str(write(tmp_path / "a.wav", say("en", [9, 1], 0.2))),
        str(write(tmp_path / "b.wav", say("de", [2, 7], 0.2))),
    ]
    run = example("transcribe").main
    run(["--model", str(checkpoint), "--json", *paths])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["recording"], one["text"], one["language"]) for one in records] == [
        (paths[0], "91", "en"),
        (paths[1], "27", "de"),
    ]
    run(["--model", str(checkpoint), "--timestamps", "--language", "english", paths[0]])
    first, *segments = capsys.readouterr().out.splitlines()
    assert first == f"{paths[0]} (en): 91"
    assert [line.split()[-1] for line in segments] == ["9", "1"]
    drawn = []
    for _ in range(2):  # what it draws, if it is not sure of the first attempt, depends on the seed
        run(
            ["--model", str(checkpoint), "--timestamps", "--fallback", "--seed", "3", "--language", "english", paths[0]]
        )
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith(f"{paths[0]} (en): ")
