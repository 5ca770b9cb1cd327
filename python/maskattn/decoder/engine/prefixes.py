"""Beginnings that have been read: a sequence that begins like another shares its pages, and reads the rest."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from maskattn.cache import KVCache
from maskattn.decoder.arrays import IntArray


class Prefixes:
    """Sequences that are or were written, with their keys and values; whoever asks for memory forgets the oldest.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self.most, self._next = most, 0
        self._kept: OrderedDict[int, tuple[IntArray, KVCache]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, ids: IntArray) -> KVCache | None:
        """A cache that holds what ``ids`` and a kept sequence begin with in common, in whole pages, but not all of it.

        The last token is left out, since it is to be read for what follows it.
        """
        shared = {number: _common(kept, ids[:-1]) for number, (kept, _) in self._kept.items()}
        best = max(shared, key=shared.__getitem__, default=None)
        if best is None:
            return None
        cache = self._kept[best][1]
        whole = shared[best] // cache[0].page_size * cache[0].page_size
        if not whole:
            return None
        self._kept.move_to_end(best)
        part = cache.fork()
        part.truncate(whole)
        return part

    def keep(self, ids: IntArray, cache: KVCache) -> None:
        """``cache`` holds the keys and values of ``ids``; sequences that are its beginning are superseded.

        Whole pages are kept: to a page that is not full its sequence goes on writing.
        """
        whole = len(ids) // cache[0].page_size * cache[0].page_size
        if not whole:
            return
        ids = ids[:whole]
        cache.truncate(whole)
        for number, (kept, _) in list(self._kept.items()):
            if _common(kept, ids) == len(kept):
                del self._kept[number]
        self._kept[self._next] = (ids, cache)
        self._next += 1
        if len(self._kept) > self.most:
            self.forget()

    def forget(self) -> bool:
        """Let go of the one that was least recently of use. Returns whether there was one."""
        if not self._kept:
            return False
        self._kept.popitem(last=False)
        return True


def _common(a: IntArray, b: IntArray) -> int:
    """How many tokens two sequences begin with in common."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n
