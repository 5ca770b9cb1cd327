"""Layers of a cache on a device, for arrays that are there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.cache.layer import Layer
from maskattn.cache.tables import Lengths, up_to
from maskattn.cuda.module import compiled
from maskattn.cuda.pages import DevicePages
from maskattn.cuda.places import Place, named_place, place_of, to_host

_DTYPES = ("float32", "float16", "bfloat16", "int8")


def pages_on(device: str, *extents: Any) -> DevicePages:
    """Pages on the device that is called so, in the order of its default stream.

    Raises:
        TypeError, ValueError, RuntimeError, maskattn.cuda.NotBuilt: there is no such device, or it does not take the
            dtype, the last of ``extents``.
    """
    place, dtype = named_place(device), extents[-1]
    if dtype.name not in _DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(_DTYPES)} on CUDA, got {dtype}; keep the cache on the CPU")

    def new(shape: tuple[int, ...], dtype: np.dtype[Any]) -> compiled.Array:
        with place.current():
            return compiled.empty(shape, dtype.name, place.stream)

    return DevicePages(new, to_host, *extents)


class DeviceLayer(Layer):
    """A :class:`~maskattn.cache.Layer` whose pages are on a device.

    ``k_pool``, ``v_pool``, ``k_scales`` and ``v_scales`` are arrays there; tables, lengths and begins are the host's.
    """

    #: The tables as they were sent, and the device's copy.
    _sent: tuple[npt.NDArray[np.int32], compiled.Array] | None = None

    def append(self, k: Any, v: Any, lengths: npt.ArrayLike | None = None) -> None:
        """:meth:`Layer.append` of arrays of the device, float32, float16 or bfloat16; nothing waits for it.

        So nobody refuses what is not finite: as int8, such a token of a head is NaN for all who see it.
        """
        for name, array in (("k", k), ("v", v)):
            self._check_kind(name, array)
        place = self._place(k)
        with place.current():
            k, v = place.borrow("k", k), place.borrow("v", v)
            n = self._check_tokens(k, v)
            compiled.check_tokens(k, v)
            counts = np.full(len(self.lengths), n)
            if lengths is not None:
                counts = up_to("lengths", lengths, counts, "tokens of k")
            ends = self.lengths + counts
            self._check_capacity(ends)
            self._open(ends)
            if counts.any():
                k_pool, v_pool = (place.borrow("k", pool) for pool in self._pages.arrays[:2])
                table, k_scales, v_scales = self.device_pages(place)
                before = np.concatenate([self.lengths, counts])
                compiled.append_tokens(k_pool, v_pool, k_scales, v_scales, k, v, table, before, place.stream)
            self.took(Lengths.of(ends))

    def _place(self, k: Any) -> Place:
        pool: Any = self.k_pool
        place, here = place_of("k", k), pool.device
        if place.device != here:
            raise ValueError(
                f"k must be on cuda:{here}, where the cache is, got an array on cuda:{place.device}; move it there"
            )
        if compiled.is_capturing(place.stream):
            raise ValueError(
                "k must not be appended while a graph is captured, which would repeat the lengths of now, got a stream "
                "that is captured; append before the capture"
            )
        return place

    def device_pages(self, place: Place) -> tuple[compiled.Array, compiled.Array | None, compiled.Array | None]:
        """``device_tables`` and the scales, as the module takes them."""
        scales = [place.borrow("k", each) for each in self._pages.arrays[2:]]
        table = self.device_tables(place)
        return (table, scales[0], scales[1]) if scales else (table, None, None)

    def device_tables(self, place: Place) -> compiled.Array:
        """``tables`` as an int32 array of ours; entries without a page name one that nobody sees."""
        if self._sent is None or not np.array_equal(self._sent[0], self.tables):
            sent = self.tables.copy(), place.to_device(np.maximum(self.tables, 0))
            if not place.keeps():
                return sent[1]
            self._sent = sent
        return place.borrow("k", self._sent[1])

    def _check_kind(self, name: str, array: Any) -> None:
        if not _core.is_cuda(array):
            raise TypeError(
                f"{name} must be a CUDA array, as the keys of the cache are, got {type(array).__name__}; move it to "
                "the device"
            )
