"""Pages of a cache in a device's memory; who holds which is known on the host, as for any cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskattn.cache.int8 import dequantize
from maskattn.cache.pages import Array, IntArray, Pages


class DevicePages(Pages):
    """Pages whose ``arrays`` are a device's, of the same shapes.

    Args:
        new: makes an array of a shape and dtype, of three axes (scales) or four, which has ``nbytes``, ``shape``,
            ``copy_pages(sources, targets, slots)`` and ``copy_from(at, other, first, count)``.
        to_host: a NumPy copy of one.
        extents: as of any pages.
    """

    def __init__(
        self, new: Callable[[tuple[int, ...], np.dtype[Any]], Any], to_host: Callable[[Any], Array], *extents: Any
    ) -> None:
        self._make, self._to_host, self._stored = new, to_host, extents[-1]
        super().__init__(*extents)

    @property
    def dtype(self) -> np.dtype[Any]:
        stored: np.dtype[Any] = self._stored
        return stored

    @property
    def page_nbytes(self) -> int:
        return sum(array.nbytes // max(int(array.shape[0]), 1) for array in self.arrays)

    def copy(self, sources: IntArray, targets: IntArray, slots: int) -> None:
        for array in self.arrays:
            array.copy_pages(sources, targets, slots)  # type: ignore[attr-defined]

    def read(self, pages: IntArray, slots: IntArray) -> tuple[Array, Array]:
        keys, values, *scales = (self._to_host(array)[pages, :, slots] for array in self.arrays)
        return (dequantize(keys, scales[0]), dequantize(values, scales[1])) if scales else (keys, values)

    def read_scales(self, pages: IntArray, slots: IntArray) -> list[Array]:
        return [self._to_host(array)[pages, :, slots] for array in self.arrays[2:]]

    def write(self, pages: IntArray, slots: IntArray | slice, encoded: Sequence[Array]) -> None:
        raise NotImplementedError("keys and values on a device are stored by kernels; append arrays of the device")

    def _new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        # An array of a device may know the name of its dtype alone.
        made: Array = self._make(shape, self._stored if len(shape) == 4 else np.dtype(np.float32))
        return made

    def _moved(self, old: Array, new: Array) -> None:
        new.copy_from(0, old, 0, math.prod(old.shape))  # type: ignore[attr-defined]
