"""Recordings as features, and how far each has been transcribed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.checkpoint import read_json
from maskattn.decoder.transcription.results import Segment
from maskattn.speech import MelSettings, read_audio
from maskattn.speech.features import check_audio

Sound = str | os.PathLike[str] | FloatArray


def read_settings(directory: Path, mels: int, frames: int) -> MelSettings:
    """How a checkpoint wants its features: preprocessor_config.json, or its part of processor_config.json.

    Args:
        mels, frames: that the encoder reads.

    Raises:
        TypeError, ValueError, NotImplementedError: a setting is not as it must be, or says something else than
            config.json.
    """
    content: Mapping[str, Any] = {}
    names = [name for name in ("preprocessor_config.json", "processor_config.json") if (directory / name).is_file()]
    if names:
        content = read_json(directory, names[0])
        content = content.get("feature_extractor", content) or {}
    # Without a file the numbers are those of all of Whisper's models, for as much sound as the encoder has positions.
    seconds = -(-frames * MelSettings.hop_length // MelSettings.sampling_rate)
    settings = MelSettings.read({"feature_size": mels, "chunk_length": seconds, **content})
    if (settings.feature_size, settings.chunk_frames) != (mels, frames):
        raise ValueError(
            f"preprocessor_config.json must give {frames} frames of {mels} mel filters, as config.json says, got "
            f"{settings.chunk_frames} of {settings.feature_size}; take both files from the same model"
        )
    return settings


def read_sounds(sources: Sequence[Sound], sampling_rate: int) -> list[FloatArray]:
    """Files and arrays as arrays (length,).

    Raises:
        TypeError, ValueError: ``sources`` is no list of them.
        FileNotFoundError, ImportError, ValueError: see :func:`maskattn.speech.read_audio`.
    """
    if not isinstance(sources, Sequence) or isinstance(sources, str):
        raise TypeError(
            f"sources must be a list of paths and float arrays, got {type(sources).__name__}; pass [recording]"
        )
    sounds = []
    for i, source in enumerate(sources):
        if isinstance(source, str | os.PathLike):
            sounds.append(read_audio(source, sampling_rate))
        else:
            check_audio(f"sources[{i}]", source)
            sounds.append(np.asarray(source, np.float32))
    return sounds


@dataclass
class Recording:
    """One that is being transcribed.

    Attributes:
        number: its place among the sources.
        features: shape (mels, frames).
        sounding: how many of the frames are not padding.
        language: token; None while it is unknown, or if there is none.
        seek: the frame at which the next window begins.
        conditioned: whether the next window is told what was said before it.
    """

    number: int
    features: FloatArray
    sounding: int
    language: int | None
    conditioned: bool
    seek: int = 0
    language_probs: dict[str, float] | None = None
    segments: list[Segment] = field(default_factory=list)

    @property
    def frames(self) -> int:
        return int(self.features.shape[1])

    @property
    def done(self) -> bool:
        return self.seek >= self.frames

    def window(self, frames: int) -> FloatArray:
        """The next (mels, frames), zeros behind the end."""
        heard = self.features[:, self.seek : self.seek + frames]
        return np.pad(heard, ((0, 0), (0, frames - heard.shape[1])))
