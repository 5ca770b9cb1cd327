"""Sequences of a cache that come and go: some of them forked, others taken in, all in one pool of pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskattn import KVCache

STORAGES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "paged": {"page_size": 16},
    "int8": {"page_size": 16, "dtype": "int8"},
}


def filled(rng: np.random.Generator, lengths: list[int], **options: Any) -> KVCache:
    cache = KVCache(2, len(lengths), 2, 100, 8, **options)
    longest = max(lengths)
    for layer in cache:
        k, v = (rng.standard_normal((len(lengths), 2, longest, 8), dtype=np.float32) for _ in range(2))
        layer.append(k, v, lengths)
    return cache


def rows(cache: KVCache) -> list[list[np.ndarray]]:
    """Per sequence the keys and values of all layers."""
    arrays = [array for layer in cache for array in layer.arrays()]
    return [[array[i, :, :n] for array in arrays] for i, n in enumerate(cache.lengths)]


def same(got: list[list[np.ndarray]], want: list[list[np.ndarray]]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("options", STORAGES.values(), ids=STORAGES)
def test_sequences_come_and_go(options: dict[str, Any], rng: np.random.Generator) -> None:
    cache = filled(rng, [5, 40, 17], **options)
    want, pages = rows(cache), cache.pages_in_use
    new = cache.empty(1)
    for layer in new:
        layer.append(*(rng.standard_normal((1, 2, 21, 8), dtype=np.float32) for _ in range(2)))
    want += rows(new)
    cache.take(new)
    assert (cache.batch, new.batch) == (4, 0)
    same(rows(cache), want)
    cache.reorder([3, 1])  # the last takes the place of one that leaves
    same(rows(cache), [want[3], want[1]])
    for layer in cache:
        layer.append(*(rng.standard_normal((2, 2, 3, 8), dtype=np.float32) for _ in range(2)))
    assert cache.lengths.tolist() == [24, 43]
    cache.reorder([])
    assert cache.pages_in_use == 0 < pages


@pytest.mark.parametrize("options", STORAGES.values(), ids=STORAGES)
def test_a_beginning_is_shared(options: dict[str, Any], rng: np.random.Generator) -> None:
    cache = filled(rng, [48, 20], **options)
    want, pages = rows(cache), cache.pages_in_use
    part = cache.fork([0])
    part.truncate(32)
    assert cache.pages_in_use == pages, "no page more"
    for layer in part:
        layer.append(*(rng.standard_normal((1, 2, 5, 8), dtype=np.float32) for _ in range(2)))
    assert cache.pages_in_use == pages + 1
    begun = rows(part)[0]
    same([[array[:, :32] for array in begun]], [[array[:, :32] for array in want[0]]])
    cache.take(part)
    same(rows(cache), [*want, begun])
    cache.reorder([2])
    same(rows(cache), [begun])
    same(rows(cache.fork([0, 0])), [begun, begun])


def test_what_is_refused(rng: np.random.Generator) -> None:
    cache = filled(rng, [5, 4])
    for other in (cache, filled(rng, [3])):
        with pytest.raises(ValueError, match=r"^other must be a cache that shares its pages .*; make it with empty"):
            cache.take(other)
    with pytest.raises(ValueError, match=r"^sequences must be from 0 to batch - 1 = 1, got 2"):
        cache.fork([2])
    with pytest.raises(TypeError, match=r"^sequences must be integers"):
        cache.fork([0.5])
    with pytest.raises(ValueError, match=r"^batch must be from 0"):
        cache.empty(-1)
    part = cache.empty(1)
    with cache.draft(), pytest.raises(ValueError, match=r"^take must not be called while a draft is open"):
        cache.take(part)
    part[0].append(*(np.ones((1, 2, 3, 8), np.float32) for _ in range(2)))
    with pytest.raises(ValueError, match=r"^layers must have the same lengths for take"):
        cache.take(part)
    assert cache.batch == 2
