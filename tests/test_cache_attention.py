"""attention() over a layer of a cache: what it would say of the same keys and values in arrays."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskattn
from maskattn import ALiBi, KVCache, masks
from strategies import Array, normal, seeds

STORAGES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "pages of 16": {"page_size": 16},
    "pages of 64": {"page_size": 64},
    "ring": {"window": 300},
    "ring of 16": {"window": 300, "page_size": 16},
}
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8]


def filled(
    rng: np.random.Generator,
    storage: str,
    dtype: Any,
    *appends: Any,
    batch: int = 2,
    kv_heads: int = 2,
    v_dim: int = 20,
) -> KVCache:
    """A cache of one layer after appends of so many tokens, all sequences alike or each its own number."""
    cache = KVCache(1, batch, kv_heads, 2000, 24, v_head_dim=v_dim, dtype=dtype, **STORAGES[storage])
    for lengths in appends:
        n = int(np.max(lengths))
        k, v = normal(rng, batch, kv_heads, n, 24), normal(rng, batch, kv_heads, n, v_dim)
        cache[0].append(k, v, lengths)
    return cache


def in_arrays(cache: KVCache) -> tuple[Array, Array]:
    """What the layer holds, as arrays; NaN where nothing is."""
    layer = cache[0]
    k, v = layer.arrays()
    for b in range(len(k)):
        for array in (k, v):
            array[b, :, : layer.begins[b]] = np.nan
            array[b, :, layer.lengths[b] :] = np.nan
    return k, v


def windowed(cache: KVCache, mask: masks.Mask | None) -> masks.Mask:
    """The mask, and no key that a ring has lost."""
    mask = masks.Full() if mask is None else mask
    return mask & masks.KeyPadding(np.arange(cache[0].kv_len) >= cache[0].begins[:, None]) if cache[0].kv_len else mask


MASKS: list[masks.Mask | None] = [
    None,
    masks.Causal(),
    masks.Causal() & masks.SlidingWindow(left=100),
    masks.Documents(np.arange(3000) // 77),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("storage", STORAGES)
@given(seed=seeds, data=st.data())
def test_a_layer_is_its_keys_and_values(isa: str, storage: str, dtype: Any, seed: int, data: st.DataObject) -> None:
    """Bit for bit, for every storage of the same numbers; promise 3 says that nothing else may show."""
    rng = np.random.default_rng(seed)
    count = st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 130, 257])
    appends = data.draw(st.lists(st.one_of(count, st.tuples(count, count).map(list)), min_size=1, max_size=6))
    cache = filled(rng, storage, dtype, *appends)
    layer, (k, v) = cache[0], in_arrays(cache)
    group, q_len = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 9, 70]))
    q = normal(rng, 2, 2 * group, q_len, 24, dtype=np.float64 if dtype == np.float64 else np.float32)
    options: dict[str, Any] = {
        "bias": data.draw(st.sampled_from([None, ALiBi(rng.random(2 * group))])),
        "softcap": data.draw(st.sampled_from([0, 5])),
        "sinks": normal(rng, 2 * group) if data.draw(st.booleans()) else None,
        "threads": data.draw(st.integers(1, 2)),
    }
    mask = data.draw(st.sampled_from(MASKS))
    got, lse = maskattn.attention(q, layer, mask=mask, return_lse=True, **options)
    want, want_lse = maskattn.attention(
        q, k, v, mask=windowed(cache, mask), kv_lengths=layer.lengths, return_lse=True, **options
    )
    assert got.tobytes() == want.tobytes()
    assert lse.tobytes() == want_lse.tobytes()
    weights = maskattn.attention_weights(q, layer, mask=mask, **options)
    both: dict[str, Any] = {"mask": windowed(cache, mask), "kv_lengths": layer.lengths, **options}
    assert weights.tobytes() == maskattn.attention_weights(q, k, **both).tobytes()
    sums = maskattn.attention_key_sums(q, layer, mask=mask, **options)
    assert sums.tobytes() == maskattn.attention_key_sums(q, k, **both).tobytes()
    if layer.kv_len:
        keys, _ = maskattn.attention_topk(q, layer, 1, mask=mask, **options)
        np.testing.assert_array_equal(keys, maskattn.attention_topk(q, k, 1, **both)[0])


@pytest.mark.parametrize("storage", STORAGES)
def test_decoding_into_a_cache_gives_the_rows_of_a_prefill(isa: str, storage: str, rng: np.random.Generator) -> None:
    length, mask = 400, masks.Causal() & masks.SlidingWindow(left=99)
    q, k, v = (normal(rng, 1, heads, length, 24) for heads in (4, 2, 2))
    whole = maskattn.attention(q, k, v, mask=mask)
    cache = KVCache(
        1, 1, 2, length, 24, **({**STORAGES[storage], "window": 100} if "ring" in storage else STORAGES[storage])
    )
    cache[0].append(k[:, :, :250], v[:, :, :250])
    np.testing.assert_array_equal(
        maskattn.attention(q[:, :, :250], cache[0], mask=mask)[:, :, 150:], whole[:, :, 150:250]
    )
    for t in range(250, length):
        with cache.draft() as draft:  # a token that is taken back leaves no trace
            cache[0].append(k[:, :, :1] + 9, v[:, :, :1])
            if t % 3 == 0:
                draft.commit(0)
        cache[0].append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        np.testing.assert_array_equal(
            maskattn.attention(q[:, :, t : t + 1], cache[0], mask=mask), whole[:, :, t : t + 1]
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_what_does_not_exist_is_not_read(isa: str, dtype: Any, rng: np.random.Generator) -> None:
    for storage in STORAGES:
        cache = filled(rng, storage, dtype, [100, 37], [3, 250], [70, 90])
        layer, q = cache[0], normal(rng, 2, 4, 5, 24)
        want = maskattn.attention(q, layer, mask=masks.Causal())
        positions = np.arange(layer.tables.shape[1] * layer.page_size * 4)
        exists = np.zeros((len(layer.k_pool), layer.page_size), bool)
        for b in range(2):
            mine = positions[(positions >= layer.begins[b]) & (positions < layer.lengths[b])]
            exists[layer.tables[b, mine // layer.page_size % layer.tables.shape[1]], mine % layer.page_size] = True
        for pool in (layer.k_pool, layer.v_pool):
            pool.swapaxes(1, 2)[~exists] = 127 if dtype == np.int8 else np.nan
        for scales in (layer.k_scales, layer.v_scales):
            if scales is not None:
                scales.swapaxes(1, 2)[~exists] = np.nan
        assert maskattn.attention(q, layer, mask=masks.Causal()).tobytes() == want.tobytes()


UNREADABLE = """
import ctypes, mmap, sys
import ml_dtypes
import numpy as np
import maskattn
from maskattn.masks import Causal

PAGE, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
rng, kept = np.random.default_rng(0), []

def in_pages(array):
    # The same shape and dtype, from the beginning of a page of the system on.
    m = mmap.mmap(-1, -(-array.nbytes // PAGE) * PAGE)
    kept.append(m)
    return np.frombuffer(m, array.dtype, array.size).reshape(array.shape)

def forbid_what_is_not_live(layer, pool):
    p = np.arange(layer.begins[0], layer.lengths[0])
    rows = layer.tables[0, p // layer.page_size % layer.tables.shape[1]] * layer.page_size + p % layer.page_size
    size = pool.shape[3] * pool.itemsize  # one key head: rows stand one behind the other
    live = set((rows * size // PAGE).tolist()) | set(((rows + 1) * size - 1) // PAGE)
    dead = set(range(-(-pool.nbytes // PAGE))) - live
    for page in dead:
        assert libc.mprotect(pool.ctypes.data + page * PAGE, PAGE, 0) == 0, ctypes.get_errno()
    return len(dead)

maskattn.set_isa(sys.argv[1])
for options in ({}, {"page_size": 16}, {"page_size": 64}, {"window": 100}):
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8):
        cache = maskattn.KVCache(1, 1, 1, 1000, 64, dtype=dtype, **options)
        layer = cache[0]
        layer._pages.arrays[:2] = [in_pages(a) for a in layer._pages.arrays[:2]]
        for n in (150, 40, 90):
            layer.append(*(rng.standard_normal((1, 1, n, 64)) for _ in range(2)))
        q = rng.standard_normal((1, 3, 7, 64), dtype=np.float32)
        want = maskattn.attention(q, layer, mask=Causal())
        dead = [forbid_what_is_not_live(layer, pool) for pool in (layer.k_pool, layer.v_pool)]
        # Of a small pool of int8, every page of the system may hold a live key.
        assert all(dead) or dtype == np.int8, (options, dtype)
        assert maskattn.attention(q, layer, mask=Causal()).tobytes() == want.tobytes(), (options, dtype)
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs mmap and mprotect")
def test_memory_without_a_live_key_may_be_unreadable(isa: str) -> None:
    done = subprocess.run([sys.executable, "-c", UNREADABLE, isa], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


def test_int8_is_within_the_bound_that_the_cache_reports(rng: np.random.Generator) -> None:
    exact, coarse = (filled(np.random.default_rng(1), "contiguous", dtype, 300) for dtype in (np.float32, np.int8))
    q = normal(rng, 2, 4, 1, 24)
    bound = coarse.error_bound()[0]
    scores = [maskattn.attention_weights(q, cache[0], stage="scores").astype(float) for cache in (exact, coarse)]
    allowed = 24**-0.5 * np.abs(q).sum(axis=-1)[..., None] * bound[0] + 1e-5
    assert (np.abs(scores[0] - scores[1]) <= allowed).all()
    weights = maskattn.attention_weights(q, coarse[0])
    values = np.repeat(exact[0].arrays()[1], 2, axis=1)
    np.testing.assert_allclose(maskattn.attention(q, coarse[0]), weights @ values, rtol=0, atol=bound[1] + 1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_plans_serve_layers_that_hold_what_they_see(batch: int, rng: np.random.Generator) -> None:
    cache = filled(rng, "ring", np.float32, 250, 200, 200, batch=batch)
    layer, q = cache[0], normal(rng, batch, 2, 1, 24)
    assert layer.begins[0] > 0
    window = (masks.Causal() & masks.SlidingWindow(left=100)).plan(1, layer.kv_len)
    want = maskattn.attention(q, layer, mask=masks.Causal() & masks.SlidingWindow(left=100))
    np.testing.assert_array_equal(maskattn.attention(q, layer, mask=window), want)
    with pytest.raises(ValueError, match=r"^mask must see only keys that the cache holds, from \[\d+.*\] on"):
        maskattn.attention(q, layer, mask=masks.Causal().plan(1, layer.kv_len))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"v": np.zeros((2, 2, 5, 20), np.float32)}, TypeError, "^v must be left out where k is a layer"),
        ({"kv_lengths": 3}, ValueError, "^kv_lengths must be left out where k is a layer"),
        ({"q": np.zeros((3, 4, 1, 24), np.float32)}, ValueError, "^q must have the cache's batch 2, got 3"),
        ({"q": np.zeros((2, 3, 1, 24), np.float32)}, ValueError, "^k must have a number of heads that divides q's 3"),
        ({"q": np.zeros((2, 4, 1, 23), np.float32)}, ValueError, "^k must have q's head_dim 23, got 24"),
        (
            {"mask": masks.Causal().plan(1, 5, kv_lengths=4)},
            ValueError,
            "^kv_lengths and q_offset must be those that the plan",
        ),
    ],
)
def test_arguments_that_do_not_fit_a_layer(
    bad: dict[str, Any], error: type[Exception], message: str, rng: np.random.Generator
) -> None:
    cache = filled(rng, "pages of 16", np.float32, 5)
    good: dict[str, Any] = {"q": np.zeros((2, 4, 1, 24), np.float32), "k": cache[0]}
    maskattn.attention(**good)
    with pytest.raises(error, match=message):
        maskattn.attention(**{**good, **bad})
