"""The few calls that decide whether two masks are the same (docs/design.md, "Equal masks")."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maskattn.masks.edges import Constants, Edges

_MOST_KEYS = 2**31 - 1  # of any call
_FAR = 2**62  # beyond all positions
_CLOSE = 128  # rows that are cheaper than another plan
_CALL = 256  # what a plan costs besides its rows, in spans

_CONSTANTS = ("keys", "queries", "ahead", "keys_from_end", "queries_from_end")

_Array = npt.NDArray[np.int64]


class Box(NamedTuple):
    """A call, as the arguments of ``Mask.plan``."""

    q_len: int
    kv_len: int
    q_offset: int
    kv_lengths: int


def least(limits: Iterable[int | None]) -> int | None:
    """The smallest of those that are given."""
    return min((limit for limit in limits if limit is not None), default=None)


def joined(parts: Iterable[Edges]) -> Edges:
    """The edges of an expression, from those of its leaves."""
    parts = list(parts)
    keys, queries, ahead, keys_from_end, queries_from_end = (
        _union(*(getattr(part, name) for part in parts)) for name in _CONSTANTS
    )
    return Edges(
        keys,
        queries,
        ahead,
        keys_from_end,
        queries_from_end,
        period=math.lcm(*(part.period for part in parts)),
        spans=1 + sum(part.spans for part in parts),
        max_queries=least(part.max_queries for part in parts),
        max_keys=least(part.max_keys for part in parts),
        q_len=least(part.q_len for part in parts),
        kv_len=least(part.kv_len for part in parts),
    )


def size(edges: Edges) -> int:
    """Grows with the calls that a leaf asks for."""
    constants = sum(len(getattr(edges, name)) for name in _CONSTANTS)
    return (edges.period + constants) * edges.spans * (edges.q_len or 1)


def boxes(edges: Edges, work: int) -> list[Box] | None:
    """Calls over which masks with these edges agree if, and only if, they agree everywhere; docs/design.md says why.

    None where the rows of these calls have more than ``work`` spans in all.
    """
    positions = (len(edges.keys) + len(edges.keys_from_end) + 2) * len(edges.ahead) + len(edges.queries)
    if positions * (1 + len(edges.keys_from_end) + len(edges.queries_from_end)) > work:
        return None
    found = []
    for box in _boxes(edges):
        work -= box.q_len * edges.spans + _CALL
        if work < 0:
            return None
        found.append(box)
    return found


def _boxes(edges: Edges) -> Iterator[Box]:
    margin = 5 * edges.period - 2
    bound = edges.max_keys if edges.kv_len is None else edges.kv_len
    farthest = sum(max(abs(int(points[0])), abs(int(points[-1]))) for points in _constants(edges) if len(points))
    if bound is None and 2 * farthest + 4 * margin > _MOST_KEYS:
        bound = _MOST_KEYS
    keys, queries, ahead, keys_from_end, queries_from_end = _constants(edges)
    keys = _union(keys, [0], [] if bound is None else [bound])
    queries = _union(queries, [] if edges.max_queries is None else [edges.max_queries])
    if not len(keys_from_end) and not len(queries_from_end):
        windows = _windows(_union(queries, _minus(keys, ahead)), margin, edges.max_queries, close=_CLOSE)
        last = windows[-1][1] + int(ahead.max(initial=0))
        yield from _calls(edges, windows, max(int(keys[-1]), last) + margin if bound is None else bound)
        return
    keys_from_end = _union(keys_from_end, [0])
    lengths = _union(
        _minus(keys, keys_from_end),
        _minus(queries, queries_from_end),
        _minus(_minus(keys, ahead), queries_from_end),
        _minus(_minus(queries, -ahead), keys_from_end),
    )
    for low, high in _windows(lengths, margin, None if bound is None else bound + 1, low=0):
        for length in range(low, high):
            ends = _union(keys, keys_from_end + length)
            rows = _union(queries, queries_from_end + length, _minus(ends, ahead))
            yield from _calls(edges, _windows(rows, margin, edges.max_queries, close=_CLOSE), length)


def _calls(edges: Edges, windows: list[tuple[int, int]], length: int) -> Iterator[Box]:
    """Calls of ``length`` keys whose queries stand in the windows."""
    kv_len = length if edges.kv_len is None else edges.kv_len
    rows = edges.q_len
    if rows is None:
        yield from (Box(high - low, kv_len, low, length) for low, high in windows)
    elif not any(len(points) for points in (edges.queries, edges.ahead, edges.queries_from_end)):
        yield Box(rows, kv_len, 0, length)  # positions do not matter
    else:  # every row must stand at every position
        last = windows[-1][1] - 1 if edges.max_queries is None else edges.max_queries - rows
        for low, high in windows:
            yield from (Box(rows, kv_len, at, length) for at in range(low - rows + 1, min(high - 1, last) + 1))


def _constants(edges: Edges) -> list[_Array]:
    """Each kind, sorted."""
    return [_union(getattr(edges, name)) for name in _CONSTANTS]


def _union(*points: Constants) -> _Array:
    """All of them, sorted, each once."""
    some = [np.asarray(each, np.int64) for each in points if len(each)]
    if not some:
        return np.zeros(0, np.int64)
    both = np.sort(np.concatenate(some))  # np.unique takes seconds for a million
    return np.asarray(both[np.append(True, both[1:] != both[:-1])], np.int64)


def _minus(a: _Array, b: _Array) -> _Array:
    """Every difference of one of ``a`` and one of ``b``."""
    return np.asarray(np.subtract.outer(a, b).ravel(), np.int64)


def _windows(
    points: _Array, margin: int, high: int | None, *, low: int = -_FAR, close: int = 0
) -> list[tuple[int, int]]:
    """Half-open ranges of all that is at most ``margin`` from a point, within [low, high); of 0 if there are none.

    Ranges with at most ``close`` between them become one.
    """
    points = points if len(points) else np.zeros(1, np.int64)
    begins, ends = np.clip([points - margin, points + margin + 1], low, _FAR if high is None else high)
    cut = np.flatnonzero(begins[1:] > ends[:-1] + close)
    firsts, lasts = begins[np.append(0, cut + 1)], ends[np.append(cut, len(ends) - 1)]
    return [(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True) if first < last]
