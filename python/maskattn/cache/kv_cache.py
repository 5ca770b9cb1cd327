"""The cache of all layers of a model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.cache.draft import Draft
from maskattn.cache.layer import Layer
from maskattn.cache.pages import Pages
from maskattn.cache.tables import per_sequence, up_to
from maskattn.masks.parameters import count, size

_DTYPES = ("float32", "float64", "float16", "bfloat16", "int8")
_PAGE_MULTIPLE = 16  # so that no vector of keys straddles two pages
_RING_PAGE_SIZE = 64  # large enough for few table entries, small enough to keep little more than the window


class KVCache:
    """Keys and values of the tokens so far, for every layer of a model and every sequence of a batch.

    Three storages share one layout (:class:`Layer`), each with floats or int8:

    - contiguous, by default: a run of memory per sequence. It grows by touching memory, never by copying.
    - paged, with ``page_size``: pages of so many tokens, which forks and beams share until one of them writes.
    - ring, with ``window``: pages too, but those that no later query of a sliding window sees are used again. Besides
      what the last append or an open draft brought, it holds the ``window`` keys before: so every query appended finds
      its window, and what was appended can be taken back exactly, however often the ring has wrapped.

    ``append`` is a layer's, since a model appends layer by layer; what concerns tokens is the cache's, and wants all
    layers at the same lengths. Beams and forks cost table entries; a page is copied when a sequence that shares it
    writes to it. A cache and its forks are for one thread at a time.

    Args:
        layers: how many; ``cache[i]`` is layer i.
        batch: sequences; may be 0.
        kv_heads, head_dim: of ``k``, shape (batch, kv_heads, n, head_dim).
        capacity: the most tokens that a sequence may have. Address space is reserved for it (in a ring, for the
            window), and memory is used as tokens come.
        v_head_dim: of ``v``; default ``head_dim``.
        dtype: float32, float64, float16, bfloat16 or int8: what is stored, whatever float dtype is appended. int8 has
            a scale per token and head, and an :meth:`error_bound`.
        page_size: tokens per page, a multiple of 16. A ring has pages of at most 64 by default.
        window: how many keys a query sees at most, its own included: ``SlidingWindow(left=window - 1)``.
        device: "cuda" (or "cuda:1") keeps the pages there, in float32, float16, bfloat16 or int8: CUDA arrays are
            appended, and queries are CUDA arrays. The memory of its whole capacity (of a ring's window) is taken at
            once there.

    Raises:
        TypeError, ValueError: an argument is not as above.
        maskattn.cuda.NotBuilt, RuntimeError: there is no such device, or nothing was built for it.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        v_head_dim: int | None = None,
        dtype: npt.DTypeLike = np.float32,
        page_size: int | None = None,
        window: int | None = None,
        device: str | None = None,
    ) -> None:
        batch, capacity, kv_heads = count("batch", batch), size("capacity", capacity), size("kv_heads", kv_heads)
        head_dim = size("head_dim", head_dim)
        v_head_dim = head_dim if v_head_dim is None else size("v_head_dim", v_head_dim)
        stored = _stored_dtype(dtype)
        window = None if window is None else size("window", window)
        page_size = _page_size(page_size, capacity, window)
        per_sequence = -(-capacity // page_size)
        if window is not None:
            # A page more than the window, which may begin inside one; and one for drafts of up to half a page.
            per_sequence = min(per_sequence, -(-window // page_size) + 2)

        pages, kind = self._pages, Layer
        if device is not None:
            from maskattn.cuda.cache import DeviceLayer, pages_on

            pages, kind = partial(pages_on, device), DeviceLayer

        def layer() -> Layer:
            made = pages(batch * per_sequence, kv_heads, page_size, head_dim, v_head_dim, stored)
            return kind(made, batch, per_sequence, capacity, window)

        self._layers = [layer() for _ in range(size("layers", layers))]

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, layer: int) -> Layer:
        return self._layers[layer]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers)

    def __repr__(self) -> str:
        pool, layer = self[0].k_pool, self[0]
        ring = "" if layer.window is None else f", window={layer.window}"
        return (
            f"KVCache(layers={len(self)}, batch={self.batch}, kv_heads={pool.shape[1]}, capacity={layer.capacity}, "
            f"head_dim={pool.shape[3]}, v_head_dim={layer.v_pool.shape[3]}, dtype={layer.dtype}, "
            f"page_size={layer.page_size}{ring})"
        )

    @property
    def batch(self) -> int:
        return len(self[0].lengths)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (batch,): how many tokens each sequence has.

        Raises:
            ValueError: the layers do not agree.
        """
        return self._lengths("lengths")

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use. One that this cache uses several times counts once, one of a fork's in both.

        A page of contiguous storage is a whole sequence; of it the system provides what has been touched.
        """
        return sum(layer.nbytes for layer in self)

    def error_bound(self) -> npt.NDArray[np.float64]:
        """How far the stored numbers may be from those appended: float64 (layers, 2), for keys and for values.

        The maximum over the tokens held of half an int8 step, scale / 2, and 2**-15 of a step for the arithmetic. It
        holds for each number, so a score is off by at most ``attention_scale * sum(abs(q)) * bound[layer, 0]``, and
        with the weights given an output by at most ``bound[layer, 1]``.

        Raises:
            ValueError: the cache does not store int8.
        """
        return np.array([layer.error_bound() for layer in self])

    def truncate(self, n: npt.ArrayLike) -> None:
        """Keep the first ``n`` tokens, one integer or shape (batch,), and forget the others.

        Raises:
            TypeError, ValueError: ``n`` is not from 0 to what each sequence has; a ring no longer holds the ``window``
                keys before ``n``; layers disagree; a draft is open. Nothing is forgotten then.
        """
        self._refuse_while_drafting("truncate")
        lengths = up_to("n", n, self._lengths("truncate"), "tokens")
        for layer in self:
            layer.check_held(lengths)
        for layer in self:
            layer.truncate(lengths)

    def fork(self, sequences: npt.ArrayLike | None = None) -> KVCache:
        """An independent cache with the same tokens. Pages are shared until one of the two writes to them.

        Args:
            sequences: only these, integers of shape (n,), repeats allowed. Default all.

        Raises:
            TypeError, ValueError: ``sequences`` is not as above; layers disagree; a draft is open.
        """
        self._refuse_while_drafting("fork")
        self._lengths("fork")
        chosen = np.arange(self.batch) if sequences is None else self._sequences("sequences", sequences)
        return self._of([layer.fork(chosen) for layer in self])

    def empty(self, batch: int = 0) -> KVCache:
        """An independent cache of ``batch`` sequences without tokens, which has its pages from the same pool."""
        batch = count("batch", batch)
        return self._of([layer.empty(batch) for layer in self])

    def take(self, other: KVCache) -> None:
        """The sequences of ``other`` go on behind those of this cache, in the same pages; ``other`` has none then.

        Args:
            other: of this cache's :meth:`empty` or :meth:`fork`, or of one of theirs.

        Raises:
            ValueError: ``other`` is no such cache; layers disagree; a draft is open. Nothing has moved then.
        """
        for cache in (self, other):
            cache._refuse_while_drafting("take")
            cache._lengths("take")
        if other is self or not all(mine.shares_pages(theirs) for mine, theirs in zip(self, other, strict=False)):
            raise ValueError(
                "other must be a cache that shares its pages with this one, got a stranger; make it with empty() or "
                "fork(), and append to it"
            )
        for mine, theirs in zip(self, other, strict=True):
            mine.take(theirs)

    @property
    def pages_in_use(self) -> int:
        """How many pages of a layer are in use by this cache and all that share its pool; each counts once."""
        return self[0].pool_in_use

    def reorder(self, beams: npt.ArrayLike) -> None:
        """Sequence ``i`` continues what was sequence ``beams[i]``: shape (new batch,), repeats and omissions allowed.

        Raises:
            TypeError, ValueError: ``beams`` is not integers from 0 to batch - 1; layers disagree; a draft is open.
        """
        self._refuse_while_drafting("reorder")
        self._lengths("reorder")
        index = self._sequences("beams", beams)
        for layer in self:
            layer.reorder(index)

    def draft(self, branches: npt.ArrayLike | None = None) -> Draft:
        """A context manager: what is appended inside is a draft, of which :meth:`Draft.commit` keeps a part::

            with cache.draft() as draft:
                logits = model(tokens, cache)
                draft.commit(accepted(logits, tokens))

        Leaving without a commit, by an exception too, restores the cache exactly. Inside, ``truncate``, ``fork``,
        ``reorder`` and another draft are refused; after the commit, everything is as usual.

        Args:
            branches: a tree of drafts: how many continuations each sequence gets, one integer or shape (batch,), each
                at least 1. Inside, the cache has that many sequences instead of each, side by side, which share the
                pages of what was there before; ``commit`` keeps one of them. In contiguous storage a branch copies
                the sequence, so that trees are for pages.

        Raises:
            TypeError, ValueError: ``branches`` is not as above; on entering, layers disagree, or a draft is open.
        """
        counts = None if branches is None else per_sequence("branches", branches, self.batch)
        if counts is not None and (wrong := counts < 1).any():
            b = int(wrong.argmax())
            raise ValueError(f"branches must be at least 1, got {counts[b]} for sequence {b}")
        return Draft(self, counts)

    def _pages(self, *extents: Any) -> Pages:
        return Pages(*extents)

    @classmethod
    def _of(cls, layers: list[Layer]) -> KVCache:
        cache = object.__new__(cls)
        cache._layers = layers
        return cache

    def _sequences(self, name: str, value: npt.ArrayLike) -> npt.NDArray[np.int64]:
        index = np.asarray(value)
        if index.size and index.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, shape (new batch,), got {index.dtype}")
        if index.ndim != 1:
            raise ValueError(f"{name} must have shape (new batch,), got {index.shape}")
        if (wrong := (index < 0) | (index >= self.batch)).any():
            raise ValueError(f"{name} must be from 0 to batch - 1 = {self.batch - 1}, got {index[wrong.argmax()]}")
        return index.astype(np.int64)

    def _lengths(self, why: str) -> npt.NDArray[np.int64]:
        first = np.array(self[0].lengths, np.int64)
        if all(np.array_equal(layer.lengths, first) for layer in self):
            return first
        most = np.max([layer.lengths for layer in self], axis=0)
        late = next(i for i, layer in enumerate(self) if (layer.lengths < most).any())
        raise ValueError(
            f"layers must have the same lengths for {why}, {most.tolist()}, got {self[late].lengths.tolist()} in layer "
            f"{late}; append to every layer first"
        )

    def _refuse_while_drafting(self, what: str) -> None:
        if self[0].drafting:
            raise ValueError(f"{what} must not be called while a draft is open; commit the draft, or leave its block")


def _stored_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    if isinstance(dtype, str) and dtype == "bfloat16":  # NumPy does not know the name; the import is for those who do
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    try:
        stored = None if dtype is None else np.dtype(dtype)  # np.dtype(None) is float64
    except TypeError:
        stored = None
    if stored is None or stored.name not in _DTYPES or not stored.isnative:
        raise TypeError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    return stored


def _page_size(page_size: int | None, capacity: int, window: int | None) -> int:
    if page_size is None:  # contiguous storage is one page per sequence
        wanted = capacity if window is None else min(window, _RING_PAGE_SIZE)
        return -(-wanted // _PAGE_MULTIPLE) * _PAGE_MULTIPLE
    page_size = size("page_size", page_size)
    if page_size % _PAGE_MULTIPLE:
        raise ValueError(
            f"page_size must be a multiple of {_PAGE_MULTIPLE}, got {page_size}; "
            f"pass {-(-page_size // _PAGE_MULTIPLE) * _PAGE_MULTIPLE}"
        )
    return page_size
