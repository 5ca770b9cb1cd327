"""A cache whose pages are on a device: the lists of tokens that any cache is, and attention over it."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_arrays import Interface, Lent, back, lent, on_device
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

import maskattn
from cache_model import LayerModel, check_layer, check_pages, state
from maskattn import ALiBi, KVCache, cuda, masks
from maskattn.cache import Layer
from maskattn.cuda import cache as module
from maskattn.cuda.places import PER_THREAD_STREAM, place_of
from strategies import Array, normal
from test_cache_attention import in_arrays, windowed
from test_cache_model import CacheMachine

DTYPES: list[Any] = [np.float32, np.float16, ml_dtypes.bfloat16]
STORAGES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "pages of 16": {"page_size": 16},
    "pages of 64": {"page_size": 64},
    "ring of 16": {"window": 60, "page_size": 16},
}
MADE: dict[str, Any] = {"layers": 1, "batch": 2, "kv_heads": 2, "capacity": 100, "head_dim": 8, "v_head_dim": 6}


class OnHost:
    """A layer whose pages are copied, for what runs on the host."""

    def __init__(self, layer: Layer) -> None:
        self._layer, arrays = layer, [back(each) for each in layer._pages.arrays]
        self.k_pool, self.v_pool, self.k_scales, self.v_scales = arrays if len(arrays) == 4 else (*arrays, None, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class DeviceMachine(CacheMachine):
    """The caches of that suite, on the device; attention there takes too long to emulate."""

    def put(self, array: Array) -> Any:
        return lent(array)

    def check_layer(self, layer: Layer, model: LayerModel) -> None:
        there: Any = OnHost(layer)
        check_layer(there, model)

    def check_pages(self, layers: list[Layer]) -> None:
        pages: Any = layers[0]._pages.arrays
        copies = [back(each) for each in pages]
        check_pages(layers, copies)
        for pool, copy in zip(pages, copies, strict=True):
            pool.copy_from(0, on_device(copy), 0, copy.size)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"page_size": 16},
        {"window": 33, "page_size": 16},
        {"page_size": 32, "dtype": np.float16},
        {"window": 20, "dtype": ml_dtypes.bfloat16},
        {"page_size": 16, "dtype": np.int8},
        {"window": 33, "page_size": 16, "dtype": np.int8},
    ],
    ids=str,
)
def test_a_cache_is_a_list_of_tokens(options: dict[str, Any]) -> None:
    steps = settings(stateful_step_count=15, max_examples=12)
    run_state_machine_as_test(lambda: DeviceMachine({**options, "device": "cuda"}), settings=steps)


def filled(rng: np.random.Generator, storage: str, dtype: Any, *appends: Any, head_dim: int = 24) -> KVCache:
    """A cache of one layer and two sequences after appends of so many tokens."""
    cache = KVCache(1, 2, 2, 700, head_dim, v_head_dim=16, dtype=dtype, device="cuda", **STORAGES[storage])
    for lengths in appends:
        n = int(np.max(lengths))
        cache[0].append(lent(normal(rng, 2, 2, n, head_dim)), lent(normal(rng, 2, 2, n, 16)), lengths)
    return cache


MASKS: list[Any] = [None, masks.Causal() & masks.SlidingWindow(left=40), masks.Documents(np.arange(3000) // 77)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("storage", STORAGES)
def test_a_layer_is_its_keys_and_values(storage: str, dtype: Any, kernels: None, rng: np.random.Generator) -> None:
    """Bit for bit where the same kernel reads both: those for pages read arrays, too, but one, which reads no pages."""
    cache = filled(rng, storage, dtype, 33, [3, 65], [50, 20], 30)
    layer, arrays = cache[0], in_arrays(cache)
    on = [lent(each.astype(dtype)) for each in arrays]
    for q_len, exact in ((1, True), (8, True), (20, False)):
        q = lent(normal(rng, 2, 4, q_len, 24, dtype=dtype))
        for mask in MASKS:
            options: dict[str, Any] = {"bias": ALiBi.for_heads(4), "sinks": np.ones(4), "return_lse": True}
            got, lse = maskattn.attention(q, layer, mask=mask, **options)
            seen = windowed(cache, mask)
            want, want_lse = maskattn.attention(q, *on, mask=seen, kv_lengths=layer.lengths, **options)
            atol = 0 if exact or dtype == np.float32 else 8 * float(ml_dtypes.finfo(dtype).eps)
            np.testing.assert_allclose(back(got).astype(float), back(want).astype(float), rtol=0, atol=atol)
            np.testing.assert_allclose(back(lse), back(want_lse), rtol=0, atol=atol)
            assert type(got) is Lent
    q = lent(normal(rng, 2, 4, 3, 24, dtype=dtype))
    for stage in ("scores", "softmax"):
        given = {"stage": stage, "rows": [-1, 0]}
        weights = maskattn.attention_weights(q, layer, mask=MASKS[1], **given)
        both: dict[str, Any] = {"mask": windowed(cache, MASKS[1]), "kv_lengths": layer.lengths, **given}
        wanted = back(maskattn.attention_weights(q, on[0], **both))
        lost = np.arange(layer.kv_len) < layer.begins[:, None]  # in arrays they have scores, of NaN
        wanted.swapaxes(1, 3)[lost] = back(weights).swapaxes(1, 3)[lost] if stage == "scores" else 0
        np.testing.assert_array_equal(back(weights), wanted)


@pytest.mark.parametrize("storage", STORAGES)
def test_decoding_into_a_cache_gives_the_rows_of_one_pass(storage: str, rng: np.random.Generator) -> None:
    length, mask = 180, masks.Causal() & masks.SlidingWindow(left=49)
    q, k, v = (normal(rng, 1, heads, length, 24) for heads in (4, 2, 2))
    whole = back(maskattn.attention(*map(lent, (q, k, v)), mask=mask))
    window = {"window": 50} if "ring" in storage else {}
    cache = KVCache(1, 1, 2, length, 24, device="cuda", **{**STORAGES[storage], **window})
    cache[0].append(lent(k[:, :, :150]), lent(v[:, :, :150]))
    for t in range(150, length):
        with cache.draft() as draft:  # a token that is taken back leaves no trace
            cache[0].append(lent(k[:, :, :1] + 9), lent(v[:, :, :1]))
            if t % 3 == 0:
                draft.commit(0)
        cache[0].append(lent(k[:, :, t : t + 1]), lent(v[:, :, t : t + 1]))
        got = back(maskattn.attention(lent(q[:, :, t : t + 1]), cache[0], mask=mask))
        np.testing.assert_allclose(got, whole[:, :, t : t + 1], rtol=0, atol=4e-6)


def test_beams_and_forks_share_pages(rng: np.random.Generator) -> None:
    cache = filled(rng, "pages of 16", np.float32, [40, 33])
    q = lent(normal(rng, 2, 4, 1, 24))
    before, held = back(maskattn.attention(q, cache[0])), cache.pages_in_use
    other = cache.fork()
    cache.reorder([1, 1])
    assert cache.pages_in_use == held
    for each in (cache, other):
        each[0].append(lent(normal(rng, 2, 2, 1, 24)), lent(normal(rng, 2, 2, 1, 16)))
    other.truncate([40, 33])
    np.testing.assert_array_equal(back(maskattn.attention(q, other[0])), before)
    cache.truncate(33)
    swapped = np.ascontiguousarray(back(q.ours)[[1, 1]])
    got = back(maskattn.attention(lent(swapped), cache[0]))
    np.testing.assert_array_equal(got, back(maskattn.attention(lent(swapped), other.fork([1, 1])[0])))


def test_a_cache_without_tokens(rng: np.random.Generator) -> None:
    cache = KVCache(**MADE, device="cuda")
    cache[0].append(*(lent(np.ones((2, 2, 0, dim), np.float32)) for dim in (8, 6)))
    for mask in (None, masks.Causal()):
        out, lse = maskattn.attention(lent(normal(rng, 2, 4, 1, 8)), cache[0], mask=mask, return_lse=True)
        assert back(out).shape == (2, 4, 1, 6)
        assert not back(out).any()
        assert np.isneginf(back(lse)).all()


def test_pages_that_run_out_are_more_then(rng: np.random.Generator) -> None:
    cache = KVCache(**MADE, page_size=16, device="cuda")
    for n in (90, 5):
        cache[0].append(lent(normal(rng, 2, 2, n, 8)), lent(normal(rng, 2, 2, n, 6)))
    pool, held = cache[0].k_pool, state(cache)
    forks = [cache.fork() for _ in range(3)]
    for fork in forks:
        fork.truncate(0)
        fork[0].append(lent(normal(rng, 2, 2, 96, 8)), lent(normal(rng, 2, 2, 96, 6)))
    assert cache[0].k_pool is not pool
    assert state(cache) == held


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_tokens_are_rounded_to_what_is_stored(stored: Any, given: Any, rng: np.random.Generator) -> None:
    cache = KVCache(**MADE, dtype=stored, device="cuda")
    k, v = normal(rng, 2, 2, 5, 8, dtype=given), normal(rng, 2, 5, 2, 6, dtype=np.float32)
    turned = Interface(on_device(v.swapaxes(1, 2)))
    cache[0].append(lent(k), turned, [5, 2])
    for got, want in zip(cache[0].arrays(), (k, v.swapaxes(1, 2)), strict=True):
        assert got.dtype == stored
        np.testing.assert_array_equal(got[0], want[0].astype(stored))
        np.testing.assert_array_equal(got[1, :, :2], want[1, :, :2].astype(stored))
        assert not got[1, :, 2:].any()


def test_plans_serve_layers_that_hold_what_they_see(rng: np.random.Generator) -> None:
    cache = filled(rng, "ring of 16", np.float32, 150, 100, 100)
    layer, q = cache[0], lent(normal(rng, 2, 2, 1, 24))
    assert layer.begins[0] > 0
    mask = masks.Causal() & masks.SlidingWindow(left=30)
    want = back(maskattn.attention(q, layer, mask=mask))
    np.testing.assert_array_equal(back(maskattn.attention(q, layer, mask=mask.plan(1, layer.kv_len))), want)
    with pytest.raises(ValueError, match=r"^mask must see only keys that the cache holds, from \[\d+, \d+\] on"):
        maskattn.attention(q, layer, mask=masks.Causal().plan(1, layer.kv_len))
    for bad in (cuda.plan(mask, 1, layer.kv_len), on_device(np.ones((1, layer.kv_len), bool))):
        with pytest.raises(ValueError, match=r"^mask must be one of the host where the cache has lost keys"):
            maskattn.attention(q, layer, mask=bad)
    whole = filled(rng, "pages of 16", np.float32, 250)
    want = back(maskattn.attention(q, whole[0], mask=mask))
    got = maskattn.attention(q, whole[0], mask=cuda.plan(mask, 1, 250))
    np.testing.assert_array_equal(back(got), want)


def test_numpy_queries_over_a_cache_of_the_device(rng: np.random.Generator) -> None:
    cache, q = filled(rng, "pages of 64", np.float32, [90, 30]), normal(rng, 2, 4, 1, 24)
    got = maskattn.attention(q, cache[0], mask=masks.Causal(), device="cuda")
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, back(maskattn.attention(lent(q), cache[0], mask=masks.Causal())))
    for options in ({}, {"mask": masks.Causal()}):
        with pytest.raises(
            TypeError, match=r"^q must be a CUDA array, as the keys of the cache are, got one of the host"
        ):
            maskattn.attention(q, cache[0], **options)


def test_appends_and_calls_on_another_stream(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    cache, q = filled(rng, "pages of 16", np.float32, 40), on_device(normal(rng, 2, 4, 1, 24))
    other = cache.fork()
    k, v = on_device(normal(rng, 2, 2, 3, 24)), on_device(normal(rng, 2, 2, 3, 16))
    cache[0].append(k, v)
    want = back(maskattn.attention(q, cache[0]))
    place = dataclasses.replace(place_of("k", k), stream=PER_THREAD_STREAM)
    monkeypatch.setattr(module, "place_of", lambda name, array: place)
    monkeypatch.setattr("maskattn.cuda.call.place_of", lambda name, array: place)
    other[0].append(k, v)
    got = maskattn.attention(q, other[0])
    assert got.stream == PER_THREAD_STREAM
    np.testing.assert_array_equal(back(got), want)


def test_sequences_join_and_leave(rng: np.random.Generator) -> None:
    cache = filled(rng, "pages of 16", np.float32, [40, 33])
    more = cache.empty(1)
    k, v = normal(rng, 1, 2, 20, 24), normal(rng, 1, 2, 20, 16)
    more[0].append(lent(k), lent(v))
    cache.take(more)
    assert cache.lengths.tolist() == [40, 33, 20]
    np.testing.assert_array_equal(cache[0].arrays()[0][2, :, :20], k[0])
    assert KVCache(**{**MADE, "batch": 0}, device="cuda")[0].kv_len == 0
    assert "dtype=float32" in repr(cache)
    with pytest.raises(ValueError, match=r"^error_bound must be asked of a cache with dtype int8, got float32"):
        cache.error_bound()
