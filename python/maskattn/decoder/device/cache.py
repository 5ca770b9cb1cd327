"""A KV cache whose keys and values are on the device; who holds which page is known on the host, as for any cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskattn.cache import KVCache
from maskattn.cache.pages import Array, IntArray, Pages
from maskattn.cuda.module import compiled


class DevicePages(Pages):
    """Pages in a device's memory. ``arrays`` are the compiled module's, of the same shapes."""

    def __init__(self, device: compiled.DecoderDevice, *extents: Any) -> None:
        self._device = device
        super().__init__(*extents)

    @property
    def page_nbytes(self) -> int:
        return sum(array.nbytes // max(int(array.shape[0]), 1) for array in self.arrays)

    def copy(self, sources: IntArray, targets: IntArray, slots: int) -> None:
        for array in self.arrays:
            array.copy_pages(sources, targets, slots)  # type: ignore[attr-defined]

    def read(self, pages: IntArray, slots: IntArray) -> tuple[Array, Array]:
        keys, values = (array.numpy() for array in self.arrays)  # type: ignore[attr-defined]
        return keys[pages, :, slots], values[pages, :, slots]

    def write(self, pages: IntArray, slots: IntArray | slice, encoded: Sequence[Array]) -> None:
        raise NotImplementedError("keys and values on a device are stored by its layers; append to a cache on the host")

    def _new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        made: Any = compiled.DeviceArray(self._device, list(shape), dtype)
        return made  # type: ignore[no-any-return]

    def _moved(self, old: Array, new: Array) -> None:
        new.copy_from(0, old, 0, math.prod(old.shape))  # type: ignore[attr-defined]


class DeviceCache(KVCache):
    """A :class:`~maskattn.KVCache` that a device's layers fill and read; forks and beams copy pages there."""

    def __init__(self, device: compiled.DecoderDevice, *extents: Any, **options: Any) -> None:
        self._device = device
        super().__init__(*extents, **options)

    def _pages(self, *extents: Any) -> Pages:
        return DevicePages(self._device, *extents)
