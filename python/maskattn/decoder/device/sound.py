"""Convolutions over sound on the device: products of each position with its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from maskattn.cuda.module import compiled
from maskattn.decoder.activations import gelu
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.core_layers import map_parts
from maskattn.decoder.device.uploading import Uploads, on_device
from maskattn.decoder.inputs import SoundEmbedding

_Apply = Callable[[Any, int, "compiled.DeviceArray"], "compiled.DeviceArray"]


class DeviceSound:
    """A :class:`SoundEmbedding` without positions, as rows on the device.

    Args:
        apply: the compiled module's product with a map and an activation.
    """

    def __init__(self, embed: SoundEmbedding, uploads: Uploads, apply: _Apply) -> None:
        self._device, self._apply = uploads.device, apply
        self._maps = [uploads(map_parts(part)) for part in (embed.first, embed.second)]

    def __call__(self, features: FloatArray) -> compiled.DeviceArray:
        """(batch, mels, frames) -> the compiled module's array (batch * ceil(frames / 2), width)."""
        batch, mels, frames = features.shape
        x = on_device(self._device, features.transpose(0, 2, 1).reshape(-1, mels))
        for parts, stride in zip(self._maps, (1, 2), strict=True):
            x = self._apply(parts, gelu.number, x.gathered(_neighbours(batch, frames, stride)))
        return x


def _neighbours(batch: int, length: int, stride: int) -> IntArray:
    """Rows of (batch * length) before, at and after every ``stride``-th of each sequence; -1 outside of it."""
    at = np.arange(0, length, stride)[:, None] + np.array([-1, 0, 1])
    rows = np.arange(batch)[:, None, None] * length + at
    return np.where((at >= 0) & (at < length), rows, -1).reshape(-1)
