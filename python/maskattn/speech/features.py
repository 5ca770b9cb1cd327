"""Log-mel features as Whisper takes them (arXiv:2212.04356, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn._core import PackedWeight
from maskattn.linear import linear, pack

FloatArray = npt.NDArray[np.float32]

#: Frames of one transform: their spectra stay in the cache until the filters have summed them.
_FRAMES = 256
_HIGHEST = 8000.0  # Hz: where the last mel filter ends, at any sampling rate.
#: What preprocessor_config.json may switch on that changes the features, with the value that switches it off.
_UNSUPPORTED = {"dither": 0.0, "do_normalize": False, "padding_value": 0.0, "padding_side": "right"}


@dataclass(frozen=True)
class MelSettings:
    """How features are made, under the names of preprocessor_config.json.

    ``feature_size``: mel filters. ``n_fft``: samples under the window. ``hop_length``: samples from frame to frame.
    ``chunk_length``: seconds that the model hears at a time. ``sampling_rate``: Hz.
    """

    feature_size: int = 80
    n_fft: int = 400
    hop_length: int = 160
    chunk_length: int = 30
    sampling_rate: int = 16000

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}; take it from the model's own configuration")
            if not 1 <= value <= 1_000_000:
                raise ValueError(f"{name} must be in [1, 1000000], got {value}; take it from the model's own files")
        if self.n_fft % 2 or self.hop_length > self.n_fft:
            raise ValueError(
                f"n_fft must be even and at least hop_length={self.hop_length}, got {self.n_fft}; "
                "take both from the model's own files"
            )

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> MelSettings:
        """From the contents of preprocessor_config.json.

        Raises:
            TypeError, ValueError: a number that is none, or is out of bounds.
            NotImplementedError: a setting is on that would change the features and is not implemented.
        """
        for name, off in _UNSUPPORTED.items():
            if settings.get(name) not in (None, off):
                raise NotImplementedError(
                    f"{name} must be {off!r} in preprocessor_config.json, got {settings[name]!r}; use the model's own "
                    "feature extractor and pass its features to generate_ids"
                )
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__ if name in settings})

    @property
    def chunk_samples(self) -> int:
        """Samples that the model hears at a time."""
        return self.chunk_length * self.sampling_rate

    @property
    def chunk_frames(self) -> int:
        """Frames that the model hears at a time."""
        return self.chunk_samples // self.hop_length

    @cached_property
    def filters(self) -> FloatArray:
        """Shape (n_fft / 2 + 1, feature_size): triangles of equal area, evenly spaced on Slaney's mel scale.

        A mel is 200/3 Hz below 1000 Hz; above, 27 mels are a factor of 6.4 (M. Slaney, Auditory Toolbox, 1998).
        """
        step = np.log(6.4) / 27
        mels = np.linspace(0, 15 + np.log(_HIGHEST / 1000) / step, self.feature_size + 2)
        hertz = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
        bins = np.linspace(0, self.sampling_rate // 2, self.n_fft // 2 + 1)[:, None]
        low, centre, high = hertz[:-2], hertz[1:-1], hertz[2:]
        triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
        filters: FloatArray = (np.maximum(triangles, 0) * 2 / (high - low)).astype(np.float32)
        return filters

    @cached_property
    def packed_filters(self) -> PackedWeight:
        """``filters`` for :func:`maskattn.linear.linear`, by which a frame does not depend on those beside it."""
        return pack(np.ascontiguousarray(self.filters.T))

    @cached_property
    def window(self) -> npt.NDArray[np.float64]:
        """Hann's window of ``n_fft`` samples, periodic."""
        return np.hanning(self.n_fft + 1)[:-1]


def log_mel(audio: npt.NDArray[Any], settings: MelSettings | int = 80, *, samples: int | None = None) -> FloatArray:
    """The features of ``transformers``' ``WhisperFeatureExtractor``.

    Powers of the short-time Fourier transform, centred and reflected at both ends, in float64; then mel filters, log10,
    at most 8 below the largest value, and scaled to about [-1, 1].

    Args:
        audio: shape (length,), float32 or float64 in [-1, 1], one channel at ``settings.sampling_rate``.
        settings: or only the number of mel filters: 80, or 128 for Whisper large-v3.
        samples: pad with silence to this length, as models want it (``settings.chunk_samples``). Longer audio stays as
            it is. Default: no padding.

    Returns:
        shape (feature_size, length // hop_length), float32.

    Raises:
        TypeError, ValueError: ``audio`` is not such an array, not finite, or shorter than a frame.
    """
    settings = MelSettings(feature_size=settings) if isinstance(settings, int) else settings
    check_audio("audio", audio)
    length = max(len(audio), samples or 0)
    frames, half = length // settings.hop_length, settings.n_fft // 2
    if not frames:
        raise ValueError(
            f"audio must have at least hop_length={settings.hop_length} samples, got {len(audio)}; pad it by samples="
        )
    silence = np.zeros(length - len(audio), audio.dtype)
    sound = np.pad(np.concatenate([audio, silence]) if len(silence) else audio, half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(sound, settings.n_fft)[:: settings.hop_length]
    # Frames behind the last sample hold the padding alone: their powers are the zeros that are there.
    heard = min(frames, -(-(len(audio) + half) // settings.hop_length))
    mel = np.zeros((frames, settings.feature_size), np.float32)
    for i in range(0, heard, _FRAMES):
        some = slice(i, min(i + _FRAMES, heard))
        mel[some] = linear(_powers(windows[some], settings.window), settings.packed_filters)
    logs = np.log10(np.maximum(mel, np.float32(1e-10)))
    np.maximum(logs, logs.max() - np.float32(8), out=logs)
    return np.ascontiguousarray((logs.T + np.float32(4)) / np.float32(4))


def _powers(frames: npt.NDArray[Any], window: npt.NDArray[np.float64]) -> FloatArray:
    """(n, n_fft) -> (n, n_fft / 2 + 1). In float64: float32 is 1e-5 off where a frame is loud in other places."""
    parts = np.fft.rfft(frames * window).view(np.float64)
    parts *= parts
    return (parts[:, ::2] + parts[:, 1::2]).astype(np.float32)


def check_audio(name: str, audio: object) -> None:
    """Raises TypeError or ValueError unless ``audio`` is a finite float array (length,), not empty."""
    if not isinstance(audio, np.ndarray) or audio.dtype.kind != "f":
        kind = f"array of {audio.dtype}" if isinstance(audio, np.ndarray) else type(audio).__name__
        raise TypeError(
            f"{name} must be a float array (length,) with values in [-1, 1], got {kind}; divide integers by their "
            "largest value, or read a file with maskattn.speech.read_audio"
        )
    if audio.ndim != 1 or not audio.size:
        raise ValueError(
            f"{name} must have shape (length,) with at least one sample, got {audio.shape}; average the channels"
        )
    if not np.isfinite([audio.min(), audio.max()]).all():  # the extremes of an array with a NaN are NaN
        raise ValueError(f"{name} must be finite, got NaN or infinity; repair the recording")
