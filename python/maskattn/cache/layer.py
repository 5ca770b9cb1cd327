"""One layer of a cache: what is appended, taken back and shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.cache.int8 import HALF_STEP
from maskattn.cache.pages import Array, IntArray, Pages
from maskattn.cache.tables import BlockTables, Lengths, up_to


class Layer(BlockTables):
    """Keys and values of one layer; ``cache[i]``.

    The memory layout, which the core reads. The arrays are the cache's own: look, do not write.

    - ``k_pool``, ``v_pool``: shape (pages, kv_heads, page_size, head_dim or v_head_dim), of ``dtype``.
    - ``k_scales``, ``v_scales``: for int8, float32 (pages, kv_heads, page_size): a number is int8 * scale. Else None.
    - ``tables``: int32 (batch, pages_per_sequence). Position ``p`` of sequence ``b`` is slot ``p % page_size`` of page
      ``tables[b, p // page_size % pages_per_sequence]``. -1: no page.
    - ``lengths``: int64 (batch,), keys at or past it do not exist. ``begins``: int64 (batch,), keys before it no longer
      exist; 0 but in a ring.
    """

    def __init__(self, pages: Pages, batch: int, pages_per_sequence: int, capacity: int, window: int | None) -> None:
        super().__init__(pages, batch, pages_per_sequence, capacity, window)
        self._draft_start: IntArray | None = None

    @property
    def k_pool(self) -> Array:
        return self._pages.arrays[0]

    @property
    def v_pool(self) -> Array:
        return self._pages.arrays[1]

    @property
    def k_scales(self) -> npt.NDArray[np.float32] | None:
        return self._pages.arrays[2] if self.dtype == np.int8 else None

    @property
    def v_scales(self) -> npt.NDArray[np.float32] | None:
        return self._pages.arrays[3] if self.dtype == np.int8 else None

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._pages.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use, each counted once; a page that a fork shares counts in both."""
        return int(np.unique(self.tables[self.tables >= 0]).size) * self._pages.page_nbytes

    @property
    def pool_in_use(self) -> int:
        """Pages of the pool in use, by this layer or others."""
        return self._pages.in_use

    @property
    def drafting(self) -> bool:
        return self._draft_start is not None

    @property
    def drafted(self) -> IntArray:
        """Shape (batch,): how many tokens the open draft holds."""
        assert self._draft_start is not None
        return self.lengths - self._draft_start

    def append(self, k: Any, v: Any, lengths: npt.ArrayLike | None = None) -> None:
        """Store tokens behind those that each sequence has.

        Args:
            k: shape (batch, kv_heads, n, head_dim), any float dtype; converted to the cache's. n may be 0.
            v: shape (batch, kv_heads, n, v_head_dim), any float dtype.
            lengths: one integer or shape (batch,), from 0 to n: how many of the n tokens are a sequence's own, the
                first ones. The others are padding and are not read. Default n.

        Raises:
            TypeError, ValueError: an argument is not as above, a sequence would be longer than the capacity, or a
                token is not finite and to be stored as int8. Nothing is stored then.
        """
        n = self._check_tokens(k, v)
        if lengths is None and self._append_in_place(k, v, n):
            return
        steps = np.arange(n)
        kept: slice | npt.NDArray[np.bool_] = slice(None)
        ends = self.lengths + n
        if lengths is not None:
            counts = up_to("lengths", lengths, np.full(len(self.lengths), n), "tokens of k")
            kept = steps < counts[:, None]
            ends = self.lengths + counts
        self._check_capacity(ends)
        encoded = self._pages.encode(k.transpose(0, 2, 1, 3)[kept], v.transpose(0, 2, 1, 3)[kept])
        self._open(ends)
        pages, slots = self._locate(self.lengths[:, None] + steps)
        self._pages.write(pages[kept], slots[kept], encoded)
        self.lengths = ends

    def _open(self, ends: IntArray) -> None:
        """Pages for the tokens from ``lengths`` to ``ends``; a ring lets go of others first, but in a draft."""
        if not self.drafting:
            self._retire(self.lengths, ends)
        self._make_room(ends)

    def _append_in_place(self, k: Array, v: Array, n: int) -> bool:
        """The short way of most appends, a decoder's steps: a page per sequence, its own, and nothing to convert."""
        first, last = self.extremes
        if not k.dtype == v.dtype == self.dtype or not n:
            return False
        if last == 0 and self.has_own_page_each and n <= self.capacity:  # nobody has a page yet
            self.tables[:, 0] = self._pages.allocate(len(self.tables))
        elif not self._make_room_in_place(n):
            return False
        pages = self.tables[:, 0]
        if first == last:
            self._pages.write(pages, slice(first, first + n), [k, v])
        else:
            slots = self.lengths[:, None] + np.arange(n)
            self._pages.write(pages[:, None], slots, [k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)])
        self.filled = self.filled.grown(n)
        return True

    @property
    def has_own_page_each(self) -> bool:
        batch, pages = self.tables.shape
        return pages == 1 and batch > 0 and self.window is None

    def _make_room_in_place(self, n: int) -> bool:
        """Whether ``n`` tokens more of each sequence are nothing but rows behind its last one, in a page of its own.

        A page that others share is copied first, as for any append.
        """
        first, last = self.extremes
        if not self.has_own_page_each or first == 0 or last + n > self.capacity:
            return False
        if self._pages.sharing and self._pages.must_copy(self.tables[:, 0]).any():
            self._make_room(self.lengths + n)
        return True

    def make_room(self, counts: IntArray) -> None:
        """Pages of its own for so many tokens more of each sequence, shape (batch,); not in a ring.

        They are then written there by who asked, and :meth:`took` tells so.

        Raises:
            ValueError: a sequence would be longer than the capacity; nothing has changed then.
        """
        assert self.window is None
        ends = self.lengths + counts
        self._check_capacity(ends)
        if not (self._pages.sharing or (self.lengths % self.page_size == 0).any()) and (counts <= 1).all():
            return
        self._make_room(ends)

    def took(self, filled: Lengths) -> None:
        """All rows of these lengths have been written."""
        self.filled = filled
        self._pages.wrote_up_to(min(filled.extremes[1], self.page_size))

    @property
    def shares(self) -> bool:
        """Whether pages may be others' as well."""
        return self._pages.sharing

    def arrays(self) -> tuple[Array, Array]:
        """Copies of all keys and values, shape (batch, kv_heads, kv_len, dim), for tests and for debugging.

        Zeros where no key exists; of the cache's dtype, int8 as the float32 numbers that it stands for.
        """
        exists, pages, slots = self._existing(0)
        gathered = []
        for tokens in self._pages.read(pages, slots):
            array = np.zeros((*exists.shape, *tokens.shape[1:]), tokens.dtype)
            array[exists] = tokens
            gathered.append(np.ascontiguousarray(array.transpose(0, 2, 1, 3)))
        return gathered[0], gathered[1]

    def error_bound(self) -> tuple[float, float]:
        """What :meth:`KVCache.error_bound` says, of this layer: one bound for keys, one for values."""
        if self.dtype != np.int8:
            raise ValueError(f"error_bound must be asked of a cache with dtype int8, got {self.dtype}")
        _, pages, slots = self._existing(int(self.begins.min(initial=self.kv_len)))
        k_scale, v_scale = (scales.max(initial=0) for scales in self._pages.read_scales(pages, slots))
        return HALF_STEP * float(k_scale), HALF_STEP * float(v_scale)

    # What KVCache does to all its layers, once it has checked all of them.

    def check_held(self, lengths: IntArray) -> None:
        """A ring may go back to ``lengths`` only where the window before them is still there."""
        if self.window is None:
            return
        lost = (lengths > 0) & (self.begins > np.maximum(lengths - self.window, 0))
        if lost.any():
            b = int(lost.argmax())
            raise ValueError(
                f"n must leave the last {self.window} keys, which the window needs, but those of sequence {b} before "
                f"{self.begins[b]} are gone, got {lengths[b]}; append in a draft() what may have to be taken back"
            )

    def truncate(self, lengths: IntArray) -> None:
        """Keep the first ``lengths`` tokens."""
        first = np.maximum(-(-lengths // self.page_size), self.begins // self.page_size)
        self._release(first, -(-self.lengths // self.page_size))
        self.begins = np.where(lengths > 0, self.begins, 0)
        self.lengths = lengths

    def empty(self, batch: int) -> Layer:
        """A layer of ``batch`` sequences without tokens, over the same pages."""
        return type(self)(self._pages, batch, self.tables.shape[1], self.capacity, self.window)

    def fork(self, sequences: IntArray) -> Layer:
        """Another layer with the tokens of some sequences, in the same pages."""
        layer = self.empty(0)
        layer.tables, layer.lengths = self.tables[sequences], self.lengths[sequences]
        layer.begins = self.begins[sequences]
        self._pages.share(layer.tables[layer.tables >= 0])
        return layer

    def shares_pages(self, other: Layer) -> bool:
        """Whether both have their pages from one pool, in tables of one width."""
        return self._pages is other._pages and self.tables.shape[1] == other.tables.shape[1]

    def take(self, other: Layer) -> None:
        """The sequences of ``other`` behind those of this layer; ``other`` has none then."""
        self.tables = np.concatenate([self.tables, other.tables])
        self.begins = np.concatenate([self.begins, other.begins])
        self.lengths = np.concatenate([self.lengths, other.lengths])
        other.tables, other.begins, other.lengths = other.tables[:0], other.begins[:0], other.lengths[:0]

    def reorder(self, beams: IntArray) -> None:
        """Sequence ``i`` becomes what sequence ``beams[i]`` is, in the same pages."""
        old, self.tables = self.tables, self.tables[beams]
        if len(set(beams.tolist())) == beams.size:  # sequences leave, or change places, and none is repeated
            old = np.delete(old, beams, axis=0)
        else:
            self._pages.share(self.tables[self.tables >= 0])
        self._pages.release(old[old >= 0])
        self.lengths, self.begins = self.lengths[beams], self.begins[beams]

    def begin_draft(self) -> None:
        self._draft_start = self.lengths

    def end_draft(self, keep: IntArray, rows: IntArray | None = None) -> None:
        """Keep the first ``keep`` drafted tokens, as if they alone had been appended, at once.

        Args:
            rows: only these sequences stay, ascending; ``keep`` is theirs.
        """
        start = self._draft_start
        assert start is not None
        self._draft_start = None
        if rows is not None:
            self.reorder(rows)
            start = start[rows]
        self.truncate(start + keep)
        self._retire(start, self.lengths)

    def _check_tokens(self, k: Array, v: Array) -> int:
        batch, kv_heads = len(self.lengths), self.k_pool.shape[1]
        for name, array, dim_name, pool in (("k", k, "head_dim", self.k_pool), ("v", v, "v_head_dim", self.v_pool)):
            self._check_kind(name, array)
            shape = (batch, kv_heads, pool.shape[3])
            if array.ndim != 4 or (*array.shape[:2], array.shape[3]) != shape:
                raise ValueError(
                    f"{name} must have shape (batch, kv_heads, n, {dim_name}) = ({batch}, {kv_heads}, n, {shape[2]}), "
                    f"got {array.shape}"
                )
        if k.shape[2] != v.shape[2]:
            raise ValueError(f"v must have as many tokens as k, {k.shape[2]}, got {v.shape[2]}")
        return int(k.shape[2])

    def _check_kind(self, name: str, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}; pass np.asarray({name})")
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise TypeError(f"{name} must be an array of floats, got {array.dtype}; pass {name}.astype(np.float32)")

    def _check_capacity(self, ends: IntArray) -> None:
        if (longest := int(ends.max(initial=0))) > self.capacity:
            raise ValueError(
                f"capacity must be at least {longest} to append these tokens to sequence {int(ends.argmax())}, "
                f"got {self.capacity}; truncate the cache, or make it with a larger capacity"
            )

    def _existing(self, first: int) -> tuple[npt.NDArray[np.bool_], IntArray, IntArray]:
        """Which keys from ``first`` on exist, bool (batch, kv_len - first), and the page and slot of each of those."""
        positions = np.arange(first, self.kv_len) + np.zeros((len(self.lengths), 1), np.int64)
        exists = (positions >= self.begins[:, None]) & (positions < self.lengths[:, None])
        pages, slots = self._locate(positions)
        return exists, pages[exists], slots[exists]
