"""The memory of one layer: pages of keys and values, and how many block tables name each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.cache.int8 import dequantize, quantize

Array = npt.NDArray[Any]
IntArray = npt.NDArray[np.integer[Any]]


class Pages:
    """Pages of ``page_size`` tokens, shared by the caches that were forked from one another.

    ``arrays``: keys (pages, kv_heads, page_size, head_dim), values (pages, kv_heads, page_size, v_head_dim), and for
    int8 the scales of both, float32 (pages, kv_heads, page_size). C-contiguous, and not initialised: a page that was
    never written costs address space, not memory.

    ``references``: shape (pages,), how many table entries name a page. It is written only while that is one.
    """

    def __init__(
        self, pages: int, kv_heads: int, page_size: int, head_dim: int, v_head_dim: int, dtype: np.dtype[Any]
    ) -> None:
        shape = (pages, kv_heads, page_size)
        self.arrays: list[Array] = [self._new((*shape, dim), dtype) for dim in (head_dim, v_head_dim)]
        if dtype == np.int8:
            self.arrays += [self._new(shape, np.dtype(np.float32)) for _ in range(2)]
        self.references = np.zeros(pages, np.int32)
        self._free: list[int] = []  # pages that were used before; used again first, their memory is there already
        self.sharing = False  # whether a page ever was shared
        self._unused = 0  # pages at or past this one never were
        self._written_slots = 0  # no page has been written at or past this slot

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.arrays[0].dtype

    @property
    def page_nbytes(self) -> int:
        return sum(array[:1].nbytes for array in self.arrays)

    @property
    def in_use(self) -> int:
        """How many pages have a reference."""
        return self._unused - len(self._free)

    def allocate(self, count: int) -> IntArray:
        """``count`` pages with one reference each."""
        again = min(count, len(self._free))
        new = count - again
        if self._unused + new > len(self.references):
            self._grow(self._unused + new)
        # One by one: a cache that dies meanwhile (garbage collection) puts its pages on this list.
        pages = np.array([self._free.pop() for _ in range(again)] + list(range(self._unused, self._unused + new)), int)
        self._unused += new
        self.references[pages] = 1
        return pages

    def share(self, pages: IntArray) -> None:
        """One more reference for each page, as often as it is named."""
        self.sharing = True
        np.add.at(self.references, pages, 1)

    def release(self, pages: IntArray) -> None:
        """One reference less for each page, as often as it is named; those without any are free."""
        np.subtract.at(self.references, pages, 1)
        # np.unique would import numpy.ma, which takes longer than a first token.
        self._free += sorted(set(pages[self.references[pages] == 0].tolist()))

    def must_copy(self, pages: IntArray) -> npt.NDArray[np.bool_]:
        """Which of the entries ``pages`` need a page of their own before all of them are written."""
        if not self.sharing:
            return np.zeros(pages.shape, np.bool_)
        copies: npt.NDArray[np.bool_] = self.references[pages] > 1
        named: dict[int, int] = {}
        for i in np.flatnonzero(copies):
            page = int(pages[i])
            named[page] = named.get(page, 0) + 1
            # Where nobody else has the page, the last of the entries may keep it.
            copies[i] = named[page] < self.references[page]
        return copies

    def copy(self, sources: IntArray, targets: IntArray, slots: int) -> None:
        """Copy the first ``slots`` tokens of pages to others."""
        for array in self.arrays:
            array[targets, :, :slots] = array[sources, :, :slots]

    def encode(self, k: Array, v: Array) -> list[Array]:
        """Tokens (..., kv_heads, dim) as ``arrays`` store them.

        Raises:
            ValueError: they are not finite and to be stored as int8.
        """
        if self.dtype == np.int8:
            (k, k_scales), (v, v_scales) = quantize("k", k), quantize("v", v)
            return [k, v, k_scales, v_scales]
        return [k.astype(self.dtype, copy=False), v.astype(self.dtype, copy=False)]

    def write(self, pages: IntArray, slots: IntArray | slice, encoded: Sequence[Array]) -> None:
        """Store what ``encode`` made; ``pages`` and ``slots`` have its leading axes.

        One run of slots in all pages: as a slice, and tokens as (pages, kv_heads, n, dim).
        """
        for array, tokens in zip(self.arrays, encoded, strict=True):
            array[pages, :, slots] = tokens
        self.wrote_up_to(slots.stop if isinstance(slots, slice) else int(slots.max(initial=-1)) + 1)

    def wrote_up_to(self, slot: int) -> None:
        """Some page has been written up to ``slot``, not included."""
        self._written_slots = max(self._written_slots, slot)

    def read(self, pages: IntArray, slots: IntArray) -> tuple[Array, Array]:
        """Copies of tokens, shape (..., kv_heads, dim); int8 as the float32 that it stands for."""
        k, v, *scales = (array[pages, :, slots] for array in self.arrays)
        return (dequantize(k, scales[0]), dequantize(v, scales[1])) if scales else (k, v)

    def read_scales(self, pages: IntArray, slots: IntArray) -> list[Array]:
        """Copies of the scales of tokens, (..., kv_heads), of keys and of values; none but for int8."""
        return [array[pages, :, slots] for array in self.arrays[2:]]

    def _grow(self, pages: int) -> None:
        # Doubling makes the copies of all growths together no more than one copy of the final size.
        pages = max(pages, 2 * len(self.references))
        used = self._unused
        arrays = [self._new((pages, *array.shape[1:]), array.dtype) for array in self.arrays]
        references = np.zeros(pages, np.int32)
        for old, new in zip(self.arrays, arrays, strict=True):
            self._moved(old, new)
        references[:used] = self.references[:used]
        self.arrays, self.references = arrays, references

    # Where the memory is; a device's is another.

    def _new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.empty(shape, dtype)

    def _moved(self, old: Array, new: Array) -> None:
        """``new`` has the pages in use of ``old``, which has fewer."""
        used, slots = self._unused, self._written_slots
        new[:used, :, :slots] = old[:used, :, :slots]
