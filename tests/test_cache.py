"""The KV cache: what storages cost and share, windows, drafts, int8, errors. The rest is in test_cache_model.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import maskattn
from maskattn import KVCache
from maskattn.cache import Layer
from maskattn.masks import Causal, SlidingWindow
from strategies import Array, normal

STORAGES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "paged": {"page_size": 16},
    "ring": {"window": 40},
    "contiguous int8": {"dtype": "int8"},
    "paged int8": {"page_size": 16, "dtype": "int8"},
    "ring int8": {"window": 40, "dtype": "int8"},
}
storages = pytest.mark.parametrize("options", STORAGES.values(), ids=STORAGES)


def made(layers: int = 1, batch: int = 2, capacity: int = 500, **options: Any) -> KVCache:
    return KVCache(layers, batch, 2, capacity, 8, v_head_dim=6, **options)


def tokens(rng: np.random.Generator, n: int, batch: int = 2) -> tuple[Array, Array]:
    return normal(rng, batch, 2, n, 8), normal(rng, batch, 2, n, 6)


def state(cache: KVCache) -> list[Any]:
    """What a cache holds, and in how many pages: which ones, and how wide a ring's table is, is its own business."""
    return [
        [x.tolist() for x in (*layer.arrays(), layer.lengths, layer.begins, (layer.tables >= 0).sum(axis=1))]
        for layer in cache
    ]


# Growth, and what is shared


@storages
def test_a_token_appended_moves_no_other(options: dict[str, Any], rng: np.random.Generator) -> None:
    cache = made(**options)
    layer = cache[0]
    pools = layer.k_pool, layer.v_pool
    for _ in range(500):
        before = layer.tables.copy()
        layer.append(*tokens(rng, 1))
        if layer.window is None:
            assert (layer.tables[before >= 0] == before[before >= 0]).all()
        assert (layer.k_pool, layer.v_pool)[0] is pools[0]
        assert layer.v_pool is pools[1]


def test_a_ring_keeps_little_more_than_its_window(rng: np.random.Generator) -> None:
    cache = made(capacity=2**31 - 1, window=40, page_size=16)
    for n in [1, 5, 16, 1] * 50:
        cache[0].append(*tokens(rng, n))
        assert (cache[0].lengths - cache[0].begins <= 40 + n + 16).all()
    assert len(cache[0].k_pool) * 16 <= 2 * 2 * (40 + 16 + 2 * 16)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("options", [{}, {"page_size": 16}], ids=str)
def test_capacity_costs_no_memory_until_it_is_used(options: dict[str, Any], rng: np.random.Generator) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    cache = KVCache(4, 1, 1, 500_000, 64, **options)  # 1 GB
    cache[0].append(normal(rng, 1, 1, 1, 64), normal(rng, 1, 1, 1, 64))
    assert resident() - before < 100e6


@pytest.mark.parametrize("page_size", [None, 16])
def test_beams_that_are_reordered_need_no_more_pages(page_size: int | None, rng: np.random.Generator) -> None:
    cache = made(batch=4, page_size=page_size)
    cache[0].append(*tokens(rng, 40, batch=4))
    pool = cache[0].k_pool
    for _ in range(60):
        cache.reorder(rng.integers(0, 4, 4))
        cache[0].append(*tokens(rng, 1, batch=4))
    assert cache[0].k_pool is pool


def test_forks_and_beams_share_full_pages(rng: np.random.Generator) -> None:
    cache = made(batch=1, page_size=16)
    layer = cache[0]
    layer.append(*tokens(rng, 40, batch=1))
    page = layer.nbytes // 3
    cache.reorder([0] * 5)
    assert layer.nbytes == 3 * page
    fork = cache.fork()
    layer.append(*tokens(rng, 1, batch=5))
    assert layer.nbytes == (2 + 5) * page  # the page that is not full, once for each
    assert (layer.tables[:, :2] == fork[0].tables[:, :2]).all()
    fork[0].append(*tokens(rng, 1, batch=5))
    assert fork[0].nbytes == (2 + 5) * page
    assert not set(fork[0].tables[:, 2]) & set(layer.tables[:, 2])


@storages
def test_a_fork_goes_its_own_way(options: dict[str, Any], rng: np.random.Generator) -> None:
    cache = made(**options)
    cache[0].append(*tokens(rng, 50))
    forks = [cache.fork() for _ in range(8)]  # their pages are more than were reserved
    before = state(cache)
    for fork in forks:
        fork[0].append(*tokens(rng, 30))
    seen = [state(fork) for fork in forks]
    assert state(cache) == before
    cache[0].append(*tokens(rng, 3))
    cache.truncate(15 if cache[0].window is None else 0)
    assert [state(fork) for fork in forks] == seen


@storages
def test_every_page_comes_back(options: dict[str, Any], rng: np.random.Generator) -> None:
    cache = made(**options)
    pages = cache[0]._pages
    cache[0].append(*tokens(rng, 50))
    fork = cache.fork()
    fork.reorder([1, 1, 0])
    with fork.draft():
        fork[0].append(*tokens(rng, 50, batch=3))
    fork[0].append(*tokens(rng, 50, batch=3))
    cache.truncate(0)
    assert pages.references.any()
    del cache, fork
    assert not pages.references.any()
    assert sorted(pages._free) == list(range(pages._unused))


# Windows and drafts


@pytest.mark.parametrize("chunks", [[1] * 130, [130], [50, 1, 1, 50, 1, 27], [7] * 18 + [4], [16, 100, 14]], ids=str)
@pytest.mark.parametrize("window", [1, 16, 33])
def test_every_query_finds_its_window_in_a_ring(chunks: list[int], window: int, rng: np.random.Generator) -> None:
    q, (k, v) = normal(rng, 2, 2, 130, 8), tokens(rng, 130)
    want = maskattn.attention(q, k, v, mask=Causal() & SlidingWindow(window - 1))
    cache, begin = made(window=window), 0
    for n in chunks:
        new = slice(begin, begin + n)
        cache[0].append(k[:, :, new], v[:, :, new])
        out = maskattn.attention(q[:, :, new], *cache[0].arrays(), mask=Causal() & SlidingWindow(window - 1))
        np.testing.assert_array_equal(out, want[:, :, new])
        begin += n


@storages
@pytest.mark.parametrize("drafted", [1, 17, 300])
def test_what_is_not_committed_never_was(options: dict[str, Any], drafted: int, rng: np.random.Generator) -> None:
    cache = made(layers=2, **options)
    for n in [70, 1, 1, 40, 1]:  # the ring has wrapped
        for layer in cache:
            layer.append(*tokens(rng, n), [n, n - 1])
    before = state(cache)
    with cache.draft():
        for layer in cache:
            layer.append(*tokens(rng, drafted))
    assert state(cache) == before
    for keep in ([1, 0], 1, [0, 1], 0):
        (k, v), (k1, v1) = tokens(rng, drafted), tokens(rng, drafted)
        want = cache.fork()
        want[0].append(k[:, :, :1], v[:, :, :1], keep)
        want[1].append(k1[:, :, :1], v1[:, :, :1], keep)
        with cache.draft() as draft:
            for i in range(drafted):  # token by token, as a draft model does
                cache[0].append(k[:, :, i : i + 1], v[:, :, i : i + 1])
                cache[1].append(k1[:, :, i : i + 1], v1[:, :, i : i + 1])
            draft.commit(keep)
        assert state(cache) == state(want)


@storages
def test_an_exception_rolls_back(options: dict[str, Any], rng: np.random.Generator) -> None:
    cache = made(layers=2, **options)
    for layer in cache:
        layer.append(*tokens(rng, 100))
    before = state(cache)

    def step() -> None:
        with cache.draft() as draft:
            cache[0].append(*tokens(rng, 3))
            draft.commit(2)

    with pytest.raises(ValueError, match=r"^layers must have the same lengths for commit, .* in layer 1; "):
        step()
    assert state(cache) == before


def test_after_the_commit_everything_is_as_usual(rng: np.random.Generator) -> None:
    cache = made()
    with cache.draft() as draft:
        cache[0].append(*tokens(rng, 5))
        draft.commit(3)
        cache[0].append(*tokens(rng, 2))
        with pytest.raises(ValueError, match=r"^commit must be called once"):
            draft.commit(1)
    assert cache.lengths.tolist() == [5, 5]
    with pytest.raises(ValueError, match=r"^commit must be called once, inside the block"):
        cache.draft().commit(0)
    with cache.draft() as draft:
        for refused in (cache.draft().__enter__, cache.fork, lambda: cache.truncate(0), lambda: cache.reorder([0])):
            with pytest.raises(ValueError, match=r"must not be called while a draft is open; commit the draft, or"):
                refused()


@pytest.mark.parametrize("n", [1, 15, 16, 40, 64, 100])
@pytest.mark.parametrize("length", [30, 64, 129, 200])
def test_the_last_append_to_a_ring_can_be_truncated(length: int, n: int, rng: np.random.Generator) -> None:
    cache = made(window=40)
    cache[0].append(*tokens(rng, length))
    arrays = cache[0].arrays()
    cache[0].append(*tokens(rng, n))
    cache.truncate(length)
    held = np.arange(length) >= max(0, length - 40)
    for old, new in zip(arrays, cache[0].arrays(), strict=True):
        np.testing.assert_array_equal(old[:, :, held], new[:, :, held])


# What is stored


@pytest.mark.parametrize("stored", [np.float32, "float64", np.float16, "bfloat16", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("given_as", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_any_float_is_converted(stored: Any, given_as: Any, rng: np.random.Generator) -> None:
    cache = made(dtype=stored)
    k, v = (x.astype(given_as) for x in tokens(rng, 7))
    cache[0].append(k.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3), np.flip(v, 2))
    assert cache[0].dtype == (ml_dtypes.bfloat16 if stored == "bfloat16" else stored)
    for got, want in zip(cache[0].arrays(), (k, np.flip(v, 2)), strict=True):
        assert got.dtype == cache[0].dtype
        np.testing.assert_array_equal(got, want.astype(got.dtype))


@given(
    x=arrays_of.arrays(
        st.sampled_from([np.float32, np.float64]),
        (2, 2, 3, 4),
        elements=st.floats(-1, 1, width=32),
        fill=st.nothing(),
    ),
    exponents=st.lists(st.integers(-150, 120), min_size=3, max_size=3),
)
def test_int8_keeps_its_bound(x: Array, exponents: list[int]) -> None:
    k = np.ldexp(x, np.array(exponents)[:, None].astype(np.int32))
    cache = KVCache(1, 2, 2, 10, 4, dtype="int8")
    cache[0].append(k, k / 3)
    bounds = cache.error_bound()
    assert bounds.shape == (1, 2)
    for got, want, bound in zip(cache[0].arrays(), (k, k / 3), bounds[0], strict=True):
        error = np.abs(got.astype(np.longdouble) - want.astype(np.longdouble))
        assert error.max() <= bound
        assert bound <= max(np.abs(want).max() / 127, np.finfo(np.float32).tiny) * 0.5001
    assert not cache[0].arrays()[0][k == 0].any()


def test_the_bound_is_of_the_tokens_held_and_bounds_the_scores(rng: np.random.Generator) -> None:
    cache = made(layers=2, dtype="int8")
    assert not cache.error_bound().any()
    k, v = tokens(rng, 20)
    for layer in cache:
        layer.append(k, v)
        layer.append(1000 * k, v)
    large = cache.error_bound()
    cache.truncate(20)
    small = cache.error_bound()
    np.testing.assert_allclose(large, small * [1000, 1], rtol=1e-6)
    q, kept = normal(rng, 2, 2, 5, 8), cache[0].arrays()[0]
    error = np.abs(
        maskattn.attention_weights(q, kept, stage="scores") - maskattn.attention_weights(q, k, stage="scores")
    )
    bound = 8**-0.5 * np.abs(q).sum(axis=-1, keepdims=True) * small[0, 0]
    assert (error <= bound + 1e-6).all()
    assert error.max() > bound.max() / 50  # and not by miles


def test_rows_of_zeros_have_scale_zero() -> None:
    cache = made(dtype="int8")
    cache[0].append(np.zeros((2, 2, 3, 8), np.float32), np.zeros((2, 2, 3, 6), np.float32))
    assert not cache.error_bound().any()
    assert not cache[0].arrays()[0].any()


@storages
def test_empty_batches_and_empty_appends(options: dict[str, Any], rng: np.random.Generator) -> None:
    cache = made(batch=0, **options)
    cache[0].append(*tokens(rng, 5, batch=0))
    with cache.draft() as draft:
        draft.commit([])
    cache.truncate(0)
    cache.reorder([])
    assert cache.fork()[0].arrays()[0].shape == (0, 2, 0, 8)
    cache = made(**options)
    cache[0].append(*tokens(rng, 0))
    assert cache[0].arrays()[1].shape == (2, 2, 0, 6)
    assert cache.nbytes == 0
    cache.reorder([])
    cache[0].append(*tokens(rng, 3, batch=0))
    assert cache.batch == 0


def test_layers_and_layout() -> None:
    cache = KVCache(3, 2, 4, 100, 8, v_head_dim=6, dtype="int8", page_size=32)
    assert len(cache) == len(list(cache)) == 3
    assert cache[-1] is cache[2]
    layer = cache[0]
    assert isinstance(layer, Layer)
    assert layer.k_pool.shape == (2 * 4, 4, 32, 8)
    assert layer.v_pool.shape == (2 * 4, 4, 32, 6)
    assert layer.k_scales is not None
    assert layer.k_scales.shape == (2 * 4, 4, 32)
    assert layer.tables.shape == (2, 4)
    assert (layer.tables.dtype, layer.lengths.dtype, layer.begins.dtype) == (np.int32, np.int64, np.int64)
    assert layer.k_pool.flags.c_contiguous
    assert repr(cache) == (
        "KVCache(layers=3, batch=2, kv_heads=4, capacity=100, head_dim=8, v_head_dim=6, dtype=int8, page_size=32)"
    )
    assert made(capacity=100)[0].page_size == 112
    assert made(capacity=100)[0].k_scales is None
    assert "page_size=48, window=40)" in repr(made(window=40))


# Errors

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
