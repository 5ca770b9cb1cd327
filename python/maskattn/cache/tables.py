"""Which page holds which token of a layer's sequences."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskattn.cache.pages import IntArray, Pages


class Lengths(NamedTuple):
    """How many tokens each sequence has, (batch,), the fewest and the most; layers written together share one."""

    each: npt.NDArray[np.int64]
    extremes: tuple[int, int]

    @classmethod
    def of(cls, each: IntArray) -> Lengths:
        return cls(each.astype(np.int64, copy=False), (int(each.min()), int(each.max())) if each.size else (0, 0))

    def grown(self, n: int) -> Lengths:
        """With ``n`` tokens more of each sequence."""
        return Lengths(self.each + n, (self.extremes[0] + n, self.extremes[1] + n))


class BlockTables:
    """The tables, lengths and begins that :class:`Layer` tells of, and the pages that they name."""

    def __init__(self, pages: Pages, batch: int, pages_per_sequence: int, capacity: int, window: int | None) -> None:
        self._pages = pages
        self.capacity, self.page_size = capacity, int(pages.arrays[0].shape[2])
        self.window = window
        self.tables = np.full((batch, pages_per_sequence), -1, np.int32)
        self.lengths = np.zeros(batch, np.int64)
        self.begins: IntArray = np.zeros(batch, np.int64)

    def __del__(self) -> None:
        if hasattr(self, "tables"):
            self._pages.release(self.tables[self.tables >= 0])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return self.filled.each

    @lengths.setter
    def lengths(self, lengths: IntArray) -> None:
        self.filled = Lengths.of(lengths)

    @property
    def extremes(self) -> tuple[int, int]:
        """The smallest and the largest of ``lengths``; zeros of no sequences."""
        return self.filled.extremes

    @property
    def kv_len(self) -> int:
        """The largest of ``lengths``."""
        return self.extremes[1]

    def _locate(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """Page and slot of positions (batch, n)."""
        index, slots = np.divmod(positions, self.page_size)
        return self.tables[np.arange(len(positions))[:, None], index % self.tables.shape[1]], slots

    def _entries(self, first: IntArray, end: IntArray) -> tuple[IntArray, IntArray]:
        """Rows and columns of the table entries of each sequence's pages ``first`` to ``end - 1``."""
        counts = end - first
        rows = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
        return rows, (first[rows] + within) % self.tables.shape[1]

    def _release(self, first: IntArray, end: IntArray) -> None:
        entries = self._entries(first, end)
        self._pages.release(self.tables[entries])
        self.tables[entries] = -1

    def _retire(self, starts: IntArray, ends: IntArray) -> None:
        """In a ring, let go of the pages before the window that tokens appended from ``starts`` to ``ends`` see.

        One key more stays than they see, so that the last ``window`` keys are there again once they are taken back.
        """
        if self.window is None:
            return
        first = self.begins // self.page_size
        kept = np.where(ends > starts, np.maximum(starts - self.window, self.begins) // self.page_size, first)
        if (kept > first).any():
            self._release(first, kept)
            self.begins = kept * self.page_size

    def _make_room(self, ends: IntArray) -> None:
        """Pages for the tokens from ``lengths`` to ``ends``, each page that is written to be named here alone."""
        size = self.page_size
        held, needed = -(-self.lengths // size), -(-ends // size)
        # Only a ring's table has fewer columns than the capacity has pages.
        if self.window and (span := int((needed - self.begins // size).max(initial=0))) > self.tables.shape[1]:
            self._widen(max(span, 2 * self.tables.shape[1]))
        partial = np.flatnonzero((self.lengths % size > 0) & (ends > self.lengths))
        last = (partial, self.lengths[partial] // size % self.tables.shape[1])
        old = self.tables[last]
        copies = self._pages.must_copy(old)
        has_all = (held == needed).all()
        if has_all and not copies.any():
            return
        fresh = (held[:0], held[:0]) if has_all else self._entries(held, needed)
        old, last = old[copies], (last[0][copies], last[1][copies])
        pages = self._pages.allocate(len(old) + len(fresh[0]))
        self._pages.copy(old, pages[: len(old)], int((self.lengths[last[0]] % size).max(initial=0)))
        self._pages.release(old)
        self.tables[last] = pages[: len(old)]
        self.tables[fresh] = pages[len(old) :]

    def _widen(self, columns: int) -> None:
        """More table columns for a ring; positions keep their slots, so no token moves."""
        first, end = self.begins // self.page_size, -(-self.lengths // self.page_size)
        pages = self.tables[self._entries(first, end)]
        self.tables = np.full((len(self.lengths), columns), -1, np.int32)
        self.tables[self._entries(first, end)] = pages


def up_to(name: str, value: npt.ArrayLike, most: IntArray, what: str) -> npt.NDArray[np.int64]:
    """``value``, one integer or one per sequence, as an array (batch,) with 0 <= value <= ``most``."""
    counts = per_sequence(name, value, len(most))
    if (wrong := (counts < 0) | (counts > most)).any():
        b = int(wrong.argmax())
        raise ValueError(f"{name} must be from 0 to the {most[b]} {what} of sequence {b}, got {counts[b]}")
    return counts


def per_sequence(name: str, value: npt.ArrayLike, batch: int) -> npt.NDArray[np.int64]:
    """``value``, one integer or one per sequence, as an array (batch,)."""
    array = np.asarray(value)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be one integer or one per sequence, got {array.dtype}")
    if array.shape not in ((), (batch,)):
        raise ValueError(f"{name} must be one integer or one per sequence, shape ({batch},), got shape {array.shape}")
    return np.broadcast_to(array, (batch,)).astype(np.int64)
