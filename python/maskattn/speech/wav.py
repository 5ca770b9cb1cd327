"""WAV files: chunks of a RIFF file, as numbers. (The standard library's ``wave`` knows no floats.)"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_DTYPES = {(_PCM, 8): "u1", (_PCM, 16): "<i2", (_PCM, 32): "<i4", (_FLOAT, 32): "<f4", (_FLOAT, 64): "<f8"}
#: Sizes that programs write into a pipe, where they cannot come back to write the true one.
_UNKNOWN_SIZES = (0x7FFFF000, 0xFFFFFFFF)


class Unknown(ValueError):
    """A WAV file in another coding than plain numbers; a library may know it."""


def decode(content: bytes) -> tuple[npt.NDArray[np.float32], int]:
    """The samples, shape (length, channels), in [-1, 1], and the sampling rate in Hz.

    Raises:
        Unknown: the samples are compressed.
        ValueError: the file is broken or truncated; the message says what was found.
    """
    layout = None
    for name, start, size in _chunks(content):
        if name == b"fmt ":
            layout = _layout(content[start : start + size])
        if name == b"data":
            if layout is None:
                raise ValueError("samples (chunk 'data') before their format (chunk 'fmt ')")
            kind, channels, rate, bits = layout
            if size in _UNKNOWN_SIZES:
                size = (len(content) - start) // (channels * bits // 8) * (channels * bits // 8)
            if size > len(content) - start:
                raise ValueError(f"{len(content) - start} of the {size} bytes of samples that it announces")
            if size % (channels * bits // 8):
                raise ValueError(f"{size} bytes of samples, which is no multiple of {channels} channels of {bits} bits")
            return _numbers(content[start : start + size], kind, bits).reshape(-1, channels), rate
    raise ValueError("no samples (chunk 'data')")


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and announced size of each chunk."""
    start = 12  # behind RIFF, a size, WAVE
    while start + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, start)
        yield name, start + 8, size
        start += 8 + size + size % 2


def _layout(chunk: bytes) -> tuple[int, int, int, int]:
    """Kind of number, channels, sampling rate, bits."""
    if len(chunk) < 16:
        raise ValueError(f"a format (chunk 'fmt ') of {len(chunk)} bytes, where 16 are the least")
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if kind == _EXTENSIBLE and len(chunk) >= 26:
        (kind,) = struct.unpack_from("<H", chunk, 24)  # the first two bytes of the subformat
    if (kind, bits) not in _DTYPES and (kind, bits) != (_PCM, 24):
        raise Unknown(f"WAV coding {kind} of {bits} bits")
    if not channels:
        raise ValueError("no channels")
    return kind, channels, rate, bits


def _numbers(content: bytes, kind: int, bits: int) -> npt.NDArray[np.float32]:
    if bits == 24:  # as the upper three of four bytes
        wide = np.zeros((len(content) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        samples = wide.reshape(-1).view("<i4").astype(np.float32)
        samples *= np.float32(2**-31)
        return samples
    samples = np.frombuffer(content, _DTYPES[kind, bits]).astype(np.float32)
    if bits == 8:  # the one unsigned kind
        samples -= np.float32(128)
    if kind == _PCM:
        samples *= np.float32(2.0 ** (1 - bits))
    return samples
