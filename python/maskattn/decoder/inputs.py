"""What a stack begins with, by the names that families use: embeddings of tokens, or convolutions over sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maskattn import _core
from maskattn._core import PackedWeight
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.norms import Norm
from maskattn.decoder.projection import Linear
from maskattn.decoder.settings import Settings

#: Inputs (batch, ...), the rows of their positions or None, and for tokens their segments -> (batch, len, width).
Embed = Callable[..., FloatArray]


class Reader(Protocol):
    """Gives the parts of a stack by our names."""

    def table(self, name: str, *shape: int) -> FloatArray: ...
    def embeddings(self) -> PackedWeight: ...
    def has(self, module: str) -> bool: ...
    def norm(self, module: str) -> Norm: ...
    def linear(self, module: str, out: int, width: int) -> Linear: ...
    def convolution(self, module: str, out: int, channels: int, taps: int) -> Linear: ...


@dataclass(frozen=True, eq=False)
class TokenEmbedding:
    """Rows of ``table`` times ``scale``, projected, plus rows of segments (token types) and positions, normalised."""

    table: PackedWeight
    scale: np.float32
    project: Linear | None
    segments: FloatArray | None
    norm: Norm | None

    def __call__(self, tokens: IntArray, positions: FloatArray | None, segments: IntArray | None = None) -> FloatArray:
        return self.finish(self.rows(tokens), positions, segments)

    def rows(self, tokens: IntArray) -> FloatArray:
        """(batch, len) -> (batch, len, width): where an encoder's output may stand in place of tokens."""
        x = self.table.rows(tokens.reshape(-1)).reshape(*tokens.shape, -1)
        x = x if self.scale == 1 else x * self.scale
        return x if self.project is None else self.project(x)

    def finish(self, x: FloatArray, positions: FloatArray | None, segments: IntArray | None = None) -> FloatArray:
        """What follows, for tokens and for what stands before them; all are of the first segment for None."""
        if self.segments is not None:
            x = x + (self.segments[0] if segments is None else self.segments[segments])
        if positions is not None:
            x = x + positions
        return x if self.norm is None else self.norm(x)


@dataclass(frozen=True, eq=False)
class SoundEmbedding:
    """Two convolutions of width 3 over log-mel frames, the second with stride 2 (arXiv:2212.04356, section 2.2)."""

    first: Linear
    second: Linear

    def __call__(self, features: FloatArray, positions: FloatArray | None) -> FloatArray:
        """(batch, mels, frames) -> (batch, ceil(frames / 2), width)."""
        x = self.first(neighbours(features.transpose(0, 2, 1)), "gelu")
        x = self.second(neighbours(x, 2), "gelu")
        if positions is not None:
            x += positions
        return x


def neighbours(x: FloatArray, stride: int = 1) -> FloatArray:
    """(batch, len, channels) -> (batch, ceil(len / stride), 3 * channels): each, or each ``stride``-th one, between the
    one before it and the one after, or zeros. Neighbours share memory.
    """
    batch, length, channels = x.shape
    padded = _core.empty(np.dtype(np.float32), (batch, length + 2, channels))
    padded[:, [0, -1]] = 0
    padded[:, 1:-1] = x
    shape, steps = (batch, -(-length // stride), 3 * channels), padded.strides
    return np.lib.stride_tricks.as_strided(padded, shape, (steps[0], stride * steps[1], steps[2]), writeable=False)


def _tokens(settings: Settings, reader: Reader) -> TokenEmbedding:
    sizes = settings.sizes
    narrow = sizes.embedding_width != sizes.width
    return TokenEmbedding(
        reader.embeddings(),
        np.float32(settings.embedding_scale),
        reader.linear("project_in", sizes.width, sizes.embedding_width) if narrow else None,
        _segments(settings, reader),
        reader.norm("embed.norm") if reader.has("embed.norm") else None,
    )


def _segments(settings: Settings, reader: Reader) -> FloatArray | None:
    if "segments" not in settings.stack.tensors:
        return None
    return reader.table("segments", settings.integer("type_vocab_size"), settings.sizes.width)


def _sound(settings: Settings, reader: Reader) -> SoundEmbedding:
    sizes = settings.sizes
    first = reader.convolution("conv.first", sizes.width, sizes.mels, 3)
    return SoundEmbedding(first, reader.convolution("conv.second", sizes.width, sizes.width, 3))


INPUTS: dict[str, Callable[[Settings, Reader], Embed]] = {"tokens": _tokens, "sound": _sound}
