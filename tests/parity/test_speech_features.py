"""Log-mel features against transformers' feature extractor; audio files against what other libraries write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")
soxr = pytest.importorskip("soxr")

from hypothesis import example, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from maskattn.speech import MelSettings, log_mel, read_audio  # noqa: E402

RATE, CHUNK = 16000, 480000


def voiced(length: int, seed: int) -> np.ndarray:
    """Harmonics that glide, come and go, over some noise: loud and quiet bands, as in speech."""
    rng = np.random.default_rng(seed)
    time = np.arange(length) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 60 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time)) / RATE
    sound = sum(np.sin(k * phase + rng.uniform(0, 6)) / k**1.5 for k in range(1, 20))
    loudness = np.clip(np.sin(2 * np.pi * rng.uniform(0.5, 3) * time) + 0.3, 0, 1)
    return (0.2 * sound * loudness + 1e-3 * rng.standard_normal(length)).astype(np.float32)


def reference(audio: np.ndarray, extractor: Any) -> np.ndarray:
    """The extractor's definition in NumPy, which computes in float64."""
    padded = np.pad(audio, (0, max(0, CHUNK - len(audio))))
    return np.asarray(extractor._np_extract_fbank_features([padded], "cpu")[0])


@pytest.mark.parametrize("mels", [80, 128])
@given(length=st.integers(1, 3 * RATE), seed=st.integers(0, 9))
@example(length=CHUNK, seed=0)
@example(length=CHUNK - 1, seed=1)
@example(length=CHUNK + 12345, seed=2)
def test_features(mels: int, length: int, seed: int) -> None:
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    audio = voiced(length, seed)
    got = log_mel(audio, mels, samples=CHUNK)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, reference(audio, extractor), rtol=0, atol=1e-5)
    # What it does where PyTorch is installed is in float32, and up to 5e-5 away from its own definition.
    by_torch = extractor(audio, sampling_rate=RATE, truncation=False, return_tensors="np").input_features[0]
    np.testing.assert_allclose(got, by_torch, rtol=0, atol=2e-4)
    assert np.abs(got - by_torch).mean() < 1e-6


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("kind", ["silence", "click", "tone", "noise", "loud"])
def test_other_sounds(kind: str, mels: int) -> None:
    audio = np.zeros(RATE)
    if kind == "click":
        audio[5000] = 1
    elif kind == "tone":
        audio = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    elif kind in ("noise", "loud"):
        audio = np.random.default_rng(0).standard_normal(RATE) * (0.1 if kind == "noise" else 1000)
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    for sound in (audio, audio.astype(np.float32)):
        want = reference(sound, extractor)
        np.testing.assert_allclose(log_mel(sound, mels, samples=CHUNK), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [dict(chunk_length=2), dict(n_fft=512, hop_length=128), dict(sampling_rate=22050, feature_size=40)]
)
def test_settings_of_the_extractor(settings: dict[str, int], tmp_path: Path) -> None:
    extractor = transformers.WhisperFeatureExtractor(**settings)
    ours = MelSettings.read(extractor.to_dict())
    assert (ours.chunk_samples, ours.chunk_frames) == (extractor.n_samples, extractor.nb_max_frames)
    np.testing.assert_allclose(ours.filters, extractor.mel_filters, rtol=1e-6, atol=1e-9)
    audio = voiced(30000, 0)
    want = extractor._np_extract_fbank_features([audio], "cpu")[0]
    np.testing.assert_allclose(log_mel(audio, ours), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 3])
def test_wav_as_libsndfile_writes_it(subtype: str, channels: int, tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.9, 0.9, (1001, channels))
    for kind in ("WAV", "WAVEX"):
        soundfile.write(tmp_path / "a.wav", sound, RATE, subtype=subtype, format=kind)
        want = soundfile.read(tmp_path / "a.wav", always_2d=True)[0].mean(axis=1)
        np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), want, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("kind", "subtype", "error"), [
    ("flac", "PCM_16", 2e-5), ("aiff", "PCM_24", 1e-6), ("wav", "ULAW", 0.03), ("ogg", "VORBIS", 0.2),
    ("mp3", None, 0.2),
])  # fmt: skip
def test_other_formats(kind: str, subtype: str | None, error: float, tmp_path: Path) -> None:
    sound = voiced(RATE, 0)
    soundfile.write(tmp_path / f"a.{kind}", sound, RATE, subtype=subtype)
    got = read_audio(tmp_path / f"a.{kind}")
    np.testing.assert_allclose(got[: len(sound)], sound[: len(got)], rtol=0, atol=error)
    assert np.corrcoef(got[: len(sound)], sound[: len(got)])[0, 1] > 0.99


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_a_tone(rate: int, tmp_path: Path) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "a.wav", tone, rate, subtype="FLOAT")
    got = read_audio(tmp_path / "a.wav")
    assert len(got) == RATE
    want = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(got[800:-800], want[800:-800], rtol=0, atol=1e-3)


def test_broken_files_of_other_formats(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.flac", voiced(RATE, 0), RATE)
    content = (tmp_path / "whole.flac").read_bytes()
    endless = content[:21] + bytes([content[21] | 15]) + b"\xff" * 4 + content[26:]  # 2^36 - 1 samples, says its header
    parts = {"half.flac": content[: len(content) // 2], "head.flac": content[:60], "endless.flac": endless}
    for name, part in {**parts, "text.mp3": b"no"}.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match=rf"{name} must be .*audio file.*, got "):
            read_audio(tmp_path / name)
