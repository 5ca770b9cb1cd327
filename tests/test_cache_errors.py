"""Errors of the KV cache: they say what was wrong, and nothing has happened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cache_model import made, state, tokens
from maskattn import KVCache

MAKING: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"layers": 0}, ValueError, r"^layers must be at least 1, got 0"),
    ({"batch": -1}, ValueError, r"^batch must be from 0 to .*got -1"),
    ({"kv_heads": 1.5}, TypeError, r"^kv_heads must be an integer, got float"),
    ({"capacity": 0}, ValueError, r"^capacity must be at least 1, got 0"),
    ({"head_dim": 0}, ValueError, r"^head_dim must be at least 1, got 0"),
    ({"v_head_dim": 0}, ValueError, r"^v_head_dim must be at least 1, got 0"),
    ({"window": 0}, ValueError, r"^window must be at least 1, got 0"),
    ({"page_size": 24}, ValueError, r"^page_size must be a multiple of 16, got 24; pass 32"),
    ({"page_size": 0}, ValueError, r"^page_size must be at least 1, got 0"),
    ({"dtype": np.int32}, TypeError, r"^dtype must be one of float32, .*, int8, got <class 'numpy.int32'>"),
    ({"dtype": ">f4"}, TypeError, r"^dtype must be one of .*got '>f4'"),
    ({"dtype": "nonsense"}, TypeError, r"^dtype must be one of .*got 'nonsense'"),
    ({"dtype": None}, TypeError, r"^dtype must be one of .*got None"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), MAKING, ids=str)
def test_bad_sizes(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    right = {"layers": 1, "batch": 2, "kv_heads": 2, "capacity": 100, "head_dim": 8}
    with pytest.raises(error, match=message):
        KVCache(**{**right, **wrong})


ONES = {"k": np.ones((2, 2, 3, 8), np.float32), "v": np.ones((2, 2, 3, 6), np.float32)}
INF = np.where(np.arange(3)[:, None] == 2, np.inf, ONES["v"])

APPENDING: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"k": [1.0]}, TypeError, r"^k must be a NumPy array, got list; pass np.asarray\(k\)"),
    ({"v": ONES["v"].astype(int)}, TypeError, r"^v must be an array of floats, got int64; pass v.astype\(np.float32\)"),
    ({"k": ONES["k"][0]}, ValueError, r"^k must have shape .* = \(2, 2, n, 8\), got \(2, 3, 8\)"),
    ({"k": ONES["k"][:1]}, ValueError, r"^k must have shape .* = \(2, 2, n, 8\), got \(1, 2, 3, 8\)"),
    ({"k": ONES["v"]}, ValueError, r"^k must have shape .* = \(2, 2, n, 8\), got \(2, 2, 3, 6\)"),
    ({"v": ONES["k"]}, ValueError, r"^v must have shape \(batch, kv_heads, n, v_head_dim\) = \(2, 2, n, 6\), got"),
    ({"v": ONES["v"][:, :, :2]}, ValueError, r"^v must have as many tokens as k, 3, got 2"),
    ({"lengths": 4}, ValueError, r"^lengths must be from 0 to the 3 tokens of k of sequence 0, got 4"),
    ({"lengths": [3, -1]}, ValueError, r"^lengths must be from 0 to the 3 tokens of k of sequence 1, got -1"),
    ({"lengths": [3]}, ValueError, r"^lengths must be one integer or one per sequence, shape \(2,\), got shape \(1,\)"),
    ({"lengths": 1.0}, TypeError, r"^lengths must be one integer or one per sequence, got float64"),
    ({"lengths": [True, False]}, TypeError, r"^lengths must be one integer or one per sequence, got bool"),
    ({"v": INF}, ValueError, r"^v must be finite in float32 to be stored as int8, got inf or nan; store it as floats"),
    ({"k": ONES["k"].astype(np.float64) * 1e39}, ValueError, r"^k must be finite in float32 to be stored as int8"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), APPENDING, ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 16}], ids=str)
def test_bad_appends_store_nothing(
    options: dict[str, Any], wrong: dict[str, Any], error: type[Exception], message: str, rng: np.random.Generator
) -> None:
    cache = made(dtype="int8", **options)
    cache[0].append(*tokens(rng, 48))
    before = state(cache)
    with pytest.raises(error, match=message):
        cache[0].append(**{**ONES, **wrong})
    assert state(cache) == before


@pytest.mark.parametrize("options", [{}, {"page_size": 16}, {"window": 16}], ids=str)
def test_a_full_cache_says_so(options: dict[str, Any], rng: np.random.Generator) -> None:
    cache = made(capacity=50, **options)
    cache[0].append(*tokens(rng, 50), [50, 49])
    before = state(cache)
    message = r"^capacity must be at least 51 to append these tokens to sequence 0, got 50; truncate the cache, or make"
    with pytest.raises(ValueError, match=message):
        cache[0].append(*tokens(rng, 1))
    assert state(cache) == before
    cache[0].append(*tokens(rng, 1), [0, 1])
    assert cache.lengths.tolist() == [50, 50]


def test_bad_truncates_reorders_and_commits(rng: np.random.Generator) -> None:
    cache = made()
    cache[0].append(*tokens(rng, 5), [5, 3])
    for n, error, message in [
        (4, ValueError, r"^n must be from 0 to the 3 tokens of sequence 1, got 4"),
        (-1, ValueError, r"^n must be from 0 to the 5 tokens of sequence 0, got -1"),
        ([1, 1, 1], ValueError, r"^n must be one integer or one per sequence, shape \(2,\), got shape \(3,\)"),
        (2.0, TypeError, r"^n must be one integer or one per sequence, got float64"),
    ]:
        with pytest.raises(error, match=message):
            cache.truncate(n)
    for beams, error, message in [
        ([0, 2], ValueError, r"^beams must be from 0 to batch - 1 = 1, got 2"),
        ([-1], ValueError, r"^beams must be from 0 to batch - 1 = 1, got -1"),
        (1, ValueError, r"^beams must have shape \(new batch,\), got \(\)"),
        ([0.0], TypeError, r"^beams must be integers, shape \(new batch,\), got float64"),
        ([True, False], TypeError, r"^beams must be integers, shape \(new batch,\), got bool"),
    ]:
        with pytest.raises(error, match=message):
            cache.reorder(beams)
    with cache.draft() as draft:
        cache[0].append(*tokens(rng, 2), [2, 1])
        with pytest.raises(ValueError, match=r"^n must be from 0 to the 1 drafted tokens of sequence 1, got 2"):
            draft.commit(2)
        draft.commit([2, 1])
    for branches, message in [
        ([1, 0], r"^branches must be at least 1, got 0 for sequence 1"),
        ([2], r"^branches must be one integer or one per sequence, shape \(2,\), got shape \(1,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            cache.draft(branches)
    with cache.draft([1, 2]) as draft:
        cache[0].append(*tokens(rng, 2, batch=3), [0, 1, 2])
        with pytest.raises(ValueError, match=r"^chosen must be from 0 to the 0 branches behind the first of seq"):
            draft.commit(0, 1)
        with pytest.raises(ValueError, match=r"^n must be from 0 to the 2 drafted tokens of sequence 1, got 3"):
            draft.commit([0, 3], [0, 1])
    assert cache.lengths.tolist() == [7, 4]
    with pytest.raises(ValueError, match=r"^error_bound must be asked of a cache with dtype int8, got float32"):
        cache.error_bound()


def test_a_ring_says_how_far_back_it_goes(rng: np.random.Generator) -> None:
    cache = made(window=20, page_size=16)
    for _ in range(100):
        cache[0].append(*tokens(rng, 1))
    before = state(cache)
    message = r"^n must leave the last 20 keys, .* sequence 1 before 64 are gone, got 83; append in a draft\(\)"
    with pytest.raises(ValueError, match=message):
        cache.truncate([100, 83])
    assert state(cache) == before
    cache.truncate([0, 84])
    assert cache[0].begins.tolist() == [0, 64]


@pytest.mark.parametrize("what", ["truncate", "fork", "reorder", "draft", "lengths"])
def test_layers_that_disagree(what: str, rng: np.random.Generator) -> None:
    cache = made(layers=3)
    for i in (0, 2):
        cache[i].append(*tokens(rng, 2))
    calls = {
        "truncate": lambda: cache.truncate(0),
        "fork": cache.fork,
        "reorder": lambda: cache.reorder([0]),
        "draft": cache.draft().__enter__,
        "lengths": lambda: cache.lengths,
    }
    message = rf"^layers must have the same lengths for {what}, \[2, 2\], got \[0, 0\] in layer 1; append to every"
    with pytest.raises(ValueError, match=message):
        calls[what]()
    cache[1].append(*tokens(rng, 2))
    calls[what]()


def test_conversions_that_fail_store_nothing(rng: np.random.Generator) -> None:
    cache = made(dtype=np.float16, window=16)
    cache[0].append(*tokens(rng, 40))
    before = state(cache)
    k, v = tokens(rng, 3)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        cache[0].append(k, v * 1e9)
    assert state(cache) == before
