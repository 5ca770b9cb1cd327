"""WAV files and features without any library but NumPy: what is read, and what is refused by name."""

from __future__ import annotations

import re
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskattn.speech import MelSettings, log_mel, read_audio
from maskattn.speech.wav import decode

RATE = 16000


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def layout(kind: int, bits: int, channels: int = 1, rate: int = RATE, more: bytes = b"") -> tuple[bytes, bytes]:
    block = channels * bits // 8
    return b"fmt ", struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits) + more


def pcm(values: np.ndarray, bits: int) -> bytes:
    """The definition: integers of ``bits`` bits, little endian; 8 bits are unsigned."""
    whole = np.round(values * 2 ** (bits - 1)).astype(np.int64) + (128 if bits == 8 else 0)
    return b"".join(int(v).to_bytes(bits // 8, "little", signed=bits != 8) for v in whole.ravel())


@pytest.fixture
def sound(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (301, 2))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_pcm(bits: int, channels: int, sound: np.ndarray, tmp_path: Path) -> None:
    sound = sound[:, :channels]
    (tmp_path / "a.wav").write_bytes(riff(layout(1, bits, channels), (b"data", pcm(sound * 0.9, bits))))
    got = read_audio(tmp_path / "a.wav")
    assert (got.shape, got.dtype) == ((301,), np.float32)
    np.testing.assert_allclose(got, (0.9 * sound).mean(axis=1), rtol=0, atol=2.0**-bits + 1e-7)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_floats(dtype: str, sound: np.ndarray, tmp_path: Path) -> None:
    bits = 8 * np.dtype(dtype).itemsize
    content = riff(layout(3, bits, 2), (b"LIST", b"odd"), (b"data", sound.astype(dtype).tobytes()))
    (tmp_path / "a.wav").write_bytes(content)
    np.testing.assert_allclose(read_audio(str(tmp_path / "a.wav")), sound.mean(axis=1), rtol=0, atol=1e-7)


def test_extensible(sound: np.ndarray, tmp_path: Path) -> None:
    guid = struct.pack("<HHIH", 22, 24, 3, 1) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    (tmp_path / "a.wav").write_bytes(riff(layout(0xFFFE, 24, 2, more=guid), (b"data", pcm(sound * 0.5, 24))))
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), sound.mean(axis=1) / 2, rtol=0, atol=2.0**-23)


def test_what_the_standard_library_writes(sound: np.ndarray, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm(sound * 0.5, 16))
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), sound.mean(axis=1) / 2, rtol=0, atol=2.0**-15)


@pytest.mark.parametrize("size", [0x7FFFF000, 0xFFFFFFFF])
def test_a_pipe_does_not_know_its_length(size: int, tmp_path: Path) -> None:
    content = bytearray(riff(layout(1, 16), (b"data", pcm(np.full(5, 0.5), 16))))
    content[40:44] = struct.pack("<I", size)
    (tmp_path / "a.wav").write_bytes(bytes(content) + b"\1")  # half a sample
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), np.full(5, 0.5, np.float32))


GOOD = riff(layout(1, 16, 2), (b"data", bytes(400)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be an audio file, got an empty file"),
        (GOOD[:100], "must be a whole WAV file, got 56 of the 400 bytes of samples that it announces"),
        (GOOD[:40], "must be a whole WAV file, got no samples"),
        (GOOD[:12], "got no samples"),
        (riff((b"data", bytes(8)), layout(1, 16)), "got samples .* before their format"),
        (riff((b"fmt ", bytes(10)), (b"data", bytes(8))), "got a format .* of 10 bytes"),
        (riff(layout(1, 16, 0), (b"data", bytes(8))), "got no channels"),
        (riff(layout(1, 16, 2), (b"data", bytes(6))), "got 6 bytes of samples, which is no multiple of 2 channels"),
        (riff(layout(1, 16), (b"data", b"")), "must hold at least one sample, got an empty recording"),
        (riff(layout(3, 32), (b"data", struct.pack("<2f", 0, float("nan")))), "must hold finite samples, got NaN"),
        (riff(layout(1, 16, rate=0), (b"data", bytes(8))), r"must be in \[1000, 768000\] Hz, got 0"),
        (riff(layout(1, 16, rate=2**31 - 1), (b"data", bytes(8))), "Hz, got 2147483647"),
    ],
)
def test_broken_files_are_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "broken.wav")) + ".*" + message):
        read_audio(tmp_path / "broken.wav")


@given(st.data())
def test_a_damaged_header_never_crashes(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(12, 43))] = data.draw(st.integers(0, 255))
    try:
        samples, rate = decode(bytes(content[: data.draw(st.integers(12, len(content)))]))
    except ValueError:
        return
    assert samples.dtype == np.float32
    assert samples.ndim == 2
    assert rate >= 0


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        read_audio(tmp_path / "missing.wav")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_audio(tmp_path)


@pytest.mark.parametrize(("path", "rate", "error", "message"), [
    (3, 16000, TypeError, "path must be a str or a path, got int"),
    ("a.wav", 16000.0, TypeError, "sampling_rate must be an int, got float"),
    ("a.wav", 10, ValueError, r"sampling_rate must be in \[1000, 768000\] Hz, got 10"),
])  # fmt: skip
def test_bad_arguments(path: Any, rate: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_audio(path, rate)


@pytest.mark.parametrize(("library", "content"), [
    ("soundfile", b"fLaC"),
    ("soundfile", riff(layout(2, 4), (b"data", bytes(8)))),
    ("soxr", riff(layout(1, 16, rate=22050), (b"data", bytes(8)))),
])  # fmt: skip
def test_a_missing_library_is_named_with_its_extra(
    library: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ImportError, match=rf'^{library} must be installed to .*a\.wav.*"maskattn\[speech\]"'):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize(("audio", "error", "message"), [
    ([0.0], TypeError, "audio must be a float array .* got list"),
    (np.zeros(400, np.int16), TypeError, "got array of int16; divide integers"),
    (np.zeros((2, 400)), ValueError, r"audio must have shape \(length,\).* got \(2, 400\); average the channels"),
    (np.zeros(0), ValueError, "at least one sample"),
    (np.full(400, np.inf), ValueError, "audio must be finite"),
    (np.zeros(159), ValueError, "audio must have at least hop_length=160 samples, got 159"),
])  # fmt: skip
def test_features_of_no_audio(audio: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        log_mel(audio)


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"dither": 0.1}, NotImplementedError, "dither must be 0.0 in preprocessor_config.json, got 0.1"),
    ({"do_normalize": True}, NotImplementedError, "do_normalize must be False"),
    ({"n_fft": 401}, ValueError, "n_fft must be even and at least hop_length=160, got 401"),
    ({"n_fft": 100}, ValueError, "at least hop_length=160, got 100"),
    ({"hop_length": 0}, ValueError, r"hop_length must be in \[1, 1000000\], got 0"),
    ({"feature_size": "80"}, TypeError, "feature_size must be an int, got '80'"),
])  # fmt: skip
def test_settings_that_are_none(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MelSettings.read(settings)


def test_silence_behind_the_sound_is_what_it_would_be_in_it(rng: np.random.Generator) -> None:
    """Frames that hold padding alone are not transformed."""
    sound = rng.standard_normal(5000).astype(np.float32)
    for length in (5001, 5199, 5200, 5201, 5400, 9000):
        padded = np.pad(sound, (0, length - len(sound)))
        np.testing.assert_allclose(log_mel(sound, samples=length), log_mel(padded), rtol=0, atol=1e-6)
