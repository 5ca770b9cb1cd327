"""The KV cache: what storages cost and share, windows, drafts, int8. The rest is in test_cache_model.py."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import maskattn
from cache_model import made, state, tokens
from maskattn import KVCache
from maskattn.cache import Layer
from maskattn.masks import Causal, SlidingWindow
from strategies import Array, normal

DOCS = Path(__file__).parent.parent / "docs" / "cache.md"

STORAGES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "paged": {"page_size": 16},
    "ring": {"window": 40},
    "contiguous int8": {"dtype": "int8"},
    "paged int8": {"page_size": 16, "dtype": "int8"},
    "ring int8": {"window": 40, "dtype": "int8"},
}
storages = pytest.mark.parametrize("options", STORAGES.values(), ids=STORAGES)


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


@pytest.mark.parametrize("window", [33, 40, 48])
def test_drafts_of_half_a_page_fit_into_what_a_ring_reserves(window: int, rng: np.random.Generator) -> None:
    cache = made(capacity=10_000, window=window, page_size=16)
    pool = cache[0].k_pool
    for _ in range(300):
        with cache.draft() as draft:
            cache[0].append(*tokens(rng, 8))
            draft.commit(rng.integers(0, 9, 2))
    assert cache[0].k_pool is pool


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
    cache.reorder([0] * 5)
    layer.append(*tokens(rng, 1, batch=5), [0, 0, 1, 0, 1])
    assert layer.nbytes == (2 + 3) * page  # who appends nothing goes on sharing


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
@example(x=np.full((2, 2, 3, 4), 0.75), exponents=[-150, -150, 0])  # zeros of float32
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


@pytest.mark.parametrize("exponent", [-149, -148, -145, -140, -133, -126, -120, -119, -118, -100])
def test_int8_keeps_its_bound_where_scales_would_be_subnormal(exponent: int, rng: np.random.Generator) -> None:
    for _ in range(20):
        k, v = (np.ldexp(x, exponent) for x in tokens(rng, 1))
        cache = made(dtype="int8")
        cache[0].append(k, v)
        for got, want, bound in zip(cache[0].arrays(), (k, v), cache.error_bound()[0], strict=True):
            assert np.abs(got.astype(np.float64) - want).max() <= bound


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


def test_the_bound_of_a_ring_forgets_what_the_ring_forgot(rng: np.random.Generator) -> None:
    cache = made(dtype="int8", window=16)
    (k, v), bound = tokens(rng, 1), []
    for size in (1000, 1):
        for _ in range(60):
            cache[0].append(size * k, v)
        bound.append(cache.error_bound()[0, 0])
    np.testing.assert_allclose(bound[0], 1000 * bound[1], rtol=1e-6)


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


def test_the_page_about_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    exec(example, {})
    assert f"# {capsys.readouterr().out}" in example


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
