"""Where a mask can change, told by each kind: what == needs to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Constants = Sequence[int] | npt.NDArray[np.int64]


MOST_EDGES = 1 << 16  # of a leaf; one that would have more counts as an unknown set


class Edges(NamedTuple):
    """Where a leaf's answer about a query at q and a key at k can change, and which calls it has an answer for.

    The answer must be a Boolean combination of comparisons with the constants given here, and of q and k modulo
    ``period``. Chunks of a size that divides ``period`` may be compared too, if ``ahead`` has 0.

    Attributes:
        keys, queries: constants that k (q) is compared with; c stands for ``k >= c`` and ``k < c``.
        ahead: the same for k - q.
        keys_from_end, queries_from_end: the same for k - kv_length and q - kv_length.
        period: what q and k are taken modulo of.
        spans: runs of keys that a row has at most; what a row costs.
        max_queries, max_keys: query positions (keys) that the leaf covers, if it ends anywhere.
        q_len, kv_len: the only ones that will do, for a leaf that speaks of rows.
    """

    keys: Constants = ()
    queries: Constants = ()
    ahead: Constants = ()
    keys_from_end: Constants = ()
    queries_from_end: Constants = ()
    period: int = 1
    spans: int = 1
    max_queries: int | None = None
    max_keys: int | None = None
    q_len: int | None = None
    kv_len: int | None = None


def changes(array: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Where the last axis changes: 0 and the indices i with ``array[..., i - 1] != array[..., i]`` somewhere."""
    differs = (array[..., 1:] != array[..., :-1]).any(axis=tuple(range(array.ndim - 1)))
    return np.append(0, np.flatnonzero(differs) + 1)
