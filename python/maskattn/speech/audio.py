"""Audio files: WAV in NumPy; other formats and other sampling rates by libraries of the extra ``speech``."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from maskattn.speech.wav import Unknown, decode

FloatArray = npt.NDArray[np.float32]

#: Sampling rates, in Hz, that recordings have. A header that says 1 Hz would ask for thousands of times its samples.
_LOWEST, _HIGHEST = 1_000, 768_000
_BLOCK = 1 << 20  # samples
_EXTRA = 'pip install "maskattn[speech]"'


def read_audio(path: str | os.PathLike[str], sampling_rate: int = 16000) -> FloatArray:
    """A recording as one channel.

    Args:
        path: a WAV file (PCM of 8 to 32 bits, or floats); or, with the extra ``speech``, what libsndfile reads: FLAC,
            Ogg, MP3, AIFF, ...
        sampling_rate: in Hz. A file of another rate is resampled by soxr (extra ``speech``).

    Returns:
        shape (length,), float32 in about [-1, 1]; several channels are averaged.

    Raises:
        FileNotFoundError, IsADirectoryError: ``path`` is no file.
        ImportError: the file needs a library that is not installed.
        TypeError, ValueError: an argument is not as above, or the file is broken, truncated, empty or of no known
            format; the message names it.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or a path, got {type(path).__name__}; give arrays to log_mel as they are")
    if not isinstance(sampling_rate, int) or isinstance(sampling_rate, bool):
        raise TypeError(f"sampling_rate must be an int, got {type(sampling_rate).__name__}; pass Hz, such as 16000")
    _check_rate("sampling_rate", sampling_rate, "pass Hz, such as 16000")
    path = Path(path)
    samples, rate = _read(path)
    _check_rate(f"the sampling rate of {path}", rate, "record it again")
    if not samples.size:
        raise ValueError(f"{path} must hold at least one sample, got an empty recording; record it again")
    if not np.isfinite([samples.min(), samples.max()]).all():  # the extremes of an array with a NaN are NaN
        raise ValueError(f"{path} must hold finite samples, got NaN or infinity; convert it again")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if rate != sampling_rate:
        mono = _optional("soxr", f"to resample {path} from {rate} to {sampling_rate} Hz").resample(
            mono, rate, sampling_rate
        )
        if not mono.size:
            raise ValueError(f"{path} must hold at least one sample at {sampling_rate} Hz, got none; record more")
    return np.ascontiguousarray(mono, np.float32)


def _read(path: Path) -> tuple[FloatArray, int]:
    """(length, channels) and the sampling rate."""
    problem = "it is no WAV file"
    try:
        with path.open("rb") as file:
            head = file.read(12)
            if head[:4] == b"RIFF" and head[8:] == b"WAVE":
                return decode(head + file.read())
    except Unknown as error:
        problem = f"it is in {error}"
    except ValueError as error:
        raise ValueError(f"{path} must be a whole WAV file, got {error}; record or download it again") from error
    if not head:
        raise ValueError(f"{path} must be an audio file, got an empty file; record or download it again")
    soundfile = _optional("soundfile", f"to read {path}: {problem}")
    try:
        with soundfile.SoundFile(path) as file:
            # How long an MP3 is need not stand anywhere in it: libsndfile may have guessed.
            announced = 0 if file.format == "MP3" else file.frames
            # By blocks: a header that lies about the length must not get the memory that it asks for.
            blocks = [file.read(_BLOCK, dtype="float32", always_2d=True)]
            while len(blocks[-1]):
                blocks.append(file.read(_BLOCK, dtype="float32", always_2d=True))
            samples = np.concatenate(blocks)
            rate: int = file.samplerate
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path} must be an audio file of a format that libsndfile reads, got {error}; download or convert it again"
        ) from error
    if len(samples) < announced:
        raise ValueError(
            f"{path} must be a whole audio file, got {len(samples)} of the {announced} samples that it announces; "
            "record or download it again"
        )
    return cast("FloatArray", samples), rate


def _check_rate(name: str, rate: int, remedy: str) -> None:
    if not _LOWEST <= rate <= _HIGHEST:
        raise ValueError(f"{name} must be in [{_LOWEST}, {_HIGHEST}] Hz, got {rate}; {remedy}")


def _optional(library: str, purpose: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise ImportError(f"{library} must be installed {purpose}, got no such library; {_EXTRA}") from None
