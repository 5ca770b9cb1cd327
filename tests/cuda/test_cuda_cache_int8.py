"""Caches of int8 on a device: the bytes of the CPU's, and attention over them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_arrays import back, lent, on_device
from test_cuda_cache import DTYPES, MASKS, STORAGES

import maskattn
from maskattn import ALiBi, KVCache
from strategies import Array, normal
from test_cache_attention import in_arrays, windowed

Appends = tuple[Any, ...]


def filled_alike(
    rng: np.random.Generator,
    storage: str,
    *appends: Any,
    head_dim: int = 32,
    v_head_dim: int = 16,
    dtype: Any = np.float32,
) -> tuple[KVCache, KVCache]:
    """Caches of the device and of the CPU after the same appends."""
    options = {"v_head_dim": v_head_dim, "dtype": np.int8, **STORAGES[storage]}
    caches = [KVCache(1, 2, 2, 1400, head_dim, device=device, **options) for device in ("cuda", None)]
    for lengths in appends:
        n = int(np.max(lengths))
        k, v = normal(rng, 2, 2, n, head_dim, dtype=dtype), normal(rng, 2, 2, n, v_head_dim, dtype=dtype)
        caches[0][0].append(lent(k), lent(v), lengths)
        caches[1][0].append(k, v, lengths)
    return caches[0], caches[1]


def check_bytes(on_device: KVCache, on_host: KVCache) -> None:
    """Both hold the same bytes and scales."""
    layers = on_device[0], on_host[0]
    positions = [layer._existing(0)[1:] for layer in layers]
    for ours, theirs in zip(*(layer._pages.arrays for layer in layers), strict=True):
        (pages, slots), (their_pages, their_slots) = positions
        np.testing.assert_array_equal(back(ours)[pages, :, slots], theirs[their_pages, :, their_slots])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("storage", STORAGES)
def test_the_bytes_of_the_cpu(storage: str, dtype: Any, rng: np.random.Generator) -> None:
    ours, theirs = filled_alike(rng, storage, 33, [3, 65], [0, 7], 30, dtype=dtype, head_dim=70)
    check_bytes(ours, theirs)
    np.testing.assert_array_equal(ours.error_bound(), theirs.error_bound())
    for got, want in zip(ours[0].arrays(), theirs[0].arrays(), strict=True):
        np.testing.assert_array_equal(got, want)
    assert (ours.nbytes, ours.pages_in_use) == (theirs.nbytes, theirs.pages_in_use)


def test_rounding_of_every_size() -> None:
    """Halves, zeros, and numbers from the smallest to the largest, whose scales may not be subnormal."""
    rows = [
        np.array([127, 0.5, 1.5, 2.5, -0.5, -63.5, 126.5, 0]),
        np.zeros(8),
        *(np.linspace(-1, 1, 8) * 2.0**exponent for exponent in range(-149, 128, 3)),
        np.array([np.finfo(np.float32).max, -1, 0, 1e38, -1e38, 3, 2.7e36, -2.7e36]),
    ]
    k = np.array(rows, np.float32)[None, None]
    ours, theirs = (KVCache(1, 1, 1, 200, 8, dtype=np.int8, device=device) for device in ("cuda", None))
    ours[0].append(lent(k), lent(k))
    theirs[0].append(k, k)
    check_bytes(ours, theirs)


def test_forks_beams_and_what_is_taken_back(rng: np.random.Generator) -> None:
    ours, theirs = filled_alike(rng, "pages of 16", [40, 33])
    tokens = [normal(rng, 2, 2, 3, dim) for dim in (32, 16)]
    forks = []
    for cache, put in ((ours, lent), (theirs, lambda x: x)):
        fork = cache.fork()
        cache.reorder([1, 1])
        for each in (cache, fork):
            each[0].append(*map(put, tokens))
        fork.truncate([41, 20])
        with fork.draft():
            fork[0].append(*map(put, tokens))
        forks.append(fork)
    check_bytes(ours, theirs)
    check_bytes(*forks)


@pytest.mark.parametrize("head_dim", [32, 24, 160])
@pytest.mark.parametrize("storage", STORAGES)
def test_attention_is_that_of_the_numbers_stored(storage: str, head_dim: int, rng: np.random.Generator) -> None:
    cache, _ = filled_alike(rng, storage, 33, [3, 65], [150, 180], 30, head_dim=head_dim, v_head_dim=head_dim // 2)
    layer, arrays = cache[0], in_arrays(cache)
    for q_len in (1, 8, 40):
        q = normal(rng, 2, 4, q_len, head_dim)
        for mask in MASKS:
            options: dict[str, Any] = {"mask": mask, "return_lse": True}
            if q_len != 40:
                options |= {"bias": ALiBi.for_heads(4), "sinks": np.ones(4), "softcap": 20.0}
            want = maskattn.attention(q, *arrays, kv_lengths=layer.lengths, **options | {"mask": windowed(cache, mask)})
            for got, each in zip(maskattn.attention(lent(q), layer, **options), want, strict=True):
                np.testing.assert_allclose(back(got), each, rtol=4e-6, atol=8e-6)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: np.dtype(dtype).name)
def test_queries_of_sixteen_bits(dtype: Any, kernels: None, rng: np.random.Generator) -> None:
    ours, theirs = filled_alike(rng, "pages of 16", [90, 130], [20, 0])
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    for q_len in (1, 8, 40):
        q = normal(rng, 2, 4, q_len, 32, dtype=dtype)
        for mask in MASKS:
            got = back(maskattn.attention(lent(q), ours[0], mask=mask))
            assert got.dtype == dtype
            want = maskattn.attention(q.astype(np.float32), theirs[0], mask=mask)
            np.testing.assert_allclose(got.astype(np.float32), want, rtol=0, atol=6 * epsilon)


def test_numbers_that_sixteen_bits_cannot_hold(rng: np.random.Generator) -> None:
    """Values and keys beyond float16, of which queries of float16 see little."""
    ours, theirs = (KVCache(1, 1, 1, 200, 32, dtype=np.int8, device=device) for device in ("cuda", None))
    k, v = (normal(rng, 1, 1, 100, 32) for _ in range(2))
    k[..., 40, :], v[..., 40, :] = -1e6, 3e5
    ours[0].append(lent(k), lent(v))
    theirs[0].append(k, v)
    for q_len in (1, 30):
        q = np.abs(normal(rng, 1, 1, q_len, 32)).astype(np.float16)
        got = back(maskattn.attention(lent(q), ours[0])).astype(np.float32)
        np.testing.assert_allclose(got, maskattn.attention(q, theirs[0]).astype(np.float32), rtol=0, atol=4e-3)


def test_keys_that_round_to_minus_infinity_are_seen(rng: np.random.Generator) -> None:
    """Times small queries, keys beyond float16 have moderate scores."""
    ours, theirs = (KVCache(1, 1, 1, 200, 32, dtype=np.int8, device=device) for device in ("cuda", None))
    k, v = normal(rng, 1, 1, 100, 32), normal(rng, 1, 1, 100, 32)
    k[..., ::2, :] = -1e5
    ours[0].append(lent(k), lent(v))
    theirs[0].append(k, v)
    q = rng.uniform(2e-6, 4e-6, (1, 1, 30, 32)).astype(np.float16)
    for mask in (None, maskattn.masks.Causal()):
        got = back(maskattn.attention(lent(q), ours[0], mask=mask)).astype(np.float32)
        want = maskattn.attention(q, theirs[0], mask=mask).astype(np.float32)
        np.testing.assert_allclose(got, want, rtol=0, atol=4e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_what_is_not_finite_is_nan_to_those_who_see_it(dtype: Any, rng: np.random.Generator) -> None:
    """Nobody waits for appends, so nobody can refuse them, as the CPU does."""
    cache = KVCache(1, 1, 2, 200, 32, dtype=np.int8, page_size=16, device="cuda")
    k, v = (normal(rng, 1, 2, 100, 32, dtype=dtype) for _ in range(2))
    k[0, 0, 50, 3], v[0, 1, 60, 7] = np.inf, np.nan
    cache[0].append(lent(k), lent(v))
    for q_len in (1, 4, 60):
        q = lent(normal(rng, 1, 4, q_len, 32, dtype=dtype))
        out = back(maskattn.attention(q, cache[0], mask=maskattn.masks.Causal()))
        first = np.arange(100 - q_len, 100)
        for head, bad in ((0, 50), (1, 50), (2, 60), (3, 60)):
            np.testing.assert_array_equal(np.isnan(out[0, head].astype(float)).all(axis=-1), first >= bad)
            np.testing.assert_array_equal(np.isnan(out[0, head].astype(float)).any(axis=-1), first >= bad)


def test_weights_over_a_layer(rng: np.random.Generator) -> None:
    ours, theirs = filled_alike(rng, "ring of 16", [90, 130], [20, 3])
    q, mask = normal(rng, 2, 4, 3, 32), MASKS[1]
    for name, given in (("attention_weights", {"rows": [-1, 0]}), ("attention_key_sums", {})):
        function: Any = getattr(maskattn, name)
        got, want = function(lent(q), ours[0], mask=mask, **given), function(q, theirs[0], mask=mask, **given)
        np.testing.assert_allclose(back(got), want, rtol=4e-6, atol=4e-6)
    scores = back(maskattn.attention_weights(lent(q), ours[0], stage="bias", mask=mask))
    want = maskattn.attention_weights(q, theirs[0], stage="bias", mask=mask)
    np.testing.assert_allclose(scores, want, rtol=4e-6, atol=4e-6)
    keys, weights = map(back, maskattn.attention_topk(lent(q), ours[0], 4, mask=mask))
    wanted = maskattn.attention_topk(q, theirs[0], 4, mask=mask)
    np.testing.assert_array_equal(keys, wanted[0])
    np.testing.assert_allclose(weights, wanted[1], rtol=4e-6)


def test_keys_of_two_splits_and_of_many_rows(rng: np.random.Generator) -> None:
    """A decode's splits are added, and the result does not depend on what the pages are."""
    tokens = [normal(rng, 2, 2, 1300, dim) for dim in (64, 128)]
    results: list[Array] = []
    for storage in ("contiguous", "pages of 16", "pages of 64"):
        cache = KVCache(1, 2, 2, 1400, 64, v_head_dim=128, dtype=np.int8, device="cuda", **STORAGES[storage])
        cache[0].append(*map(lent, tokens), [1300, 600])
        q = normal(np.random.default_rng(0), 2, 12, 2, 64)
        results.append(back(maskattn.attention(on_device(q), cache[0], mask=maskattn.masks.Causal())))
    want = maskattn.attention(q, *cache[0].arrays(), mask=maskattn.masks.Causal(), kv_lengths=[1300, 600])
    np.testing.assert_allclose(results[0], want, rtol=4e-6, atol=4e-6)
    for each in results[1:]:
        np.testing.assert_array_equal(each, results[0])
