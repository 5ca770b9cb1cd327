"""Drafts: tokens that may be taken back, in one or several continuations of each sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskattn.cache.pages import IntArray
from maskattn.cache.tables import up_to

if TYPE_CHECKING:
    from maskattn.cache.kv_cache import KVCache


class Draft:
    """Tokens appended inside ``with cache.draft() as draft``; see :meth:`KVCache.draft`."""

    def __init__(self, cache: KVCache, branches: IntArray | None) -> None:
        self._cache, self._branches = cache, branches
        self._open = False

    def __enter__(self) -> Draft:
        cache = self._cache
        cache._refuse_while_drafting("draft")
        cache._lengths("draft")
        if self._branches is not None:
            if len(self._branches) != cache.batch:
                raise ValueError(
                    f"branches must be of the {cache.batch} sequences that the cache has, got {len(self._branches)}; "
                    "make the draft anew"
                )
            sequences = np.arange(cache.batch).repeat(self._branches)
            for layer in cache:
                layer.reorder(sequences)
        for layer in cache:
            layer.begin_draft()
        self._open = True
        return self

    def commit(self, n: npt.ArrayLike, chosen: npt.ArrayLike = 0) -> None:
        """Keep the first ``n`` drafted tokens, one integer or shape (batch,), and end the draft.

        The cache is then what it would be if these tokens alone had been appended, in one append.

        Args:
            n: as above; of the chosen branch.
            chosen: which branch each sequence goes on as, from 0: one integer or shape (batch,).

        Raises:
            TypeError, ValueError: ``n`` is not from 0 to what was drafted, ``chosen`` no branch; layers disagree; the
                draft has ended. Nothing has changed then.
        """
        if not self._open:
            raise ValueError("commit must be called once, inside the block of its draft; open another with draft()")
        self._cache._lengths("commit")
        rows = self._rows(chosen)
        self._end(up_to("n", n, self._cache[0].drafted[rows], "drafted tokens"), rows)

    def __exit__(self, *exception: object) -> None:
        if self._open:
            rows = self._rows(0)
            self._end(np.zeros(len(rows), np.int64), rows)

    def _rows(self, chosen: npt.ArrayLike) -> IntArray:
        """The rows of the chosen branches among all sequences of the draft."""
        branches = np.ones(self._cache.batch, np.int64) if self._branches is None else self._branches
        rows: IntArray = (
            branches.cumsum() - branches + up_to("chosen", chosen, branches - 1, "branches behind the first")
        )
        return rows

    def _end(self, keep: IntArray, rows: IntArray) -> None:
        self._open = False
        for layer in self._cache:
            layer.end_draft(keep, None if self._branches is None else rows)
