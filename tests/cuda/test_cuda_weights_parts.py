"""attention_topk() and attention_key_sums() on a device: parts of the matrix there, and the CPU's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device_arrays import Interface, Lent, back, lent, on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_attention import DTYPES

import maskattn
from maskattn import ALiBi, RelativeBias, cuda
from maskattn.masks import Causal, Function, Padding, SlidingWindow
from strategies import Array, Problem, normal, problems, qkv


def largest(weights: Array, hidden: Array, count: int) -> tuple[Array, Array]:
    """By a stable sort of the matrix of weights, with the hidden keys behind."""
    order = np.argsort(np.where(hidden, 1, -weights), axis=-1, kind="stable")[..., :count]
    there = ~np.take_along_axis(hidden, order, axis=-1)
    return np.where(there, order, -1), np.where(there, np.take_along_axis(weights, order, axis=-1), 0)


@settings(max_examples=25)
@given(problem=problems(), scale=st.sampled_from([None, 1 / 16, -9.0]), data=st.data())
def test_parts_of_the_matrix(problem: Problem, scale: float | None, data: st.DataObject) -> None:
    p = problem
    options: dict[str, Any] = {"mask": p.mask, "scale": scale, **p.where()}
    if p.bias is not None:
        options["bias"] = lent(p.bias.astype(np.float32))
    q, k = (lent(each.astype(np.float32)) for each in (p.q, p.k))
    q_len, kv_len = p.q.shape[2], p.k.shape[2]
    weights = back(maskattn.attention_weights(q, k, **options))
    sums = back(maskattn.attention_key_sums(q, k, **options))
    assert sums.dtype == np.float32
    np.testing.assert_allclose(sums, weights.sum(axis=2, dtype=np.float64), rtol=1e-7, atol=0)
    if kv_len == 0:
        return
    rows = data.draw(st.none() | st.lists(st.integers(-q_len, q_len - 1), max_size=3) if q_len else st.none())
    count = data.draw(st.integers(1, kv_len))
    hidden = np.isneginf(back(maskattn.attention_weights(q, k, stage="bias", **options)))
    chosen = slice(None) if rows is None else rows
    got = maskattn.attention_topk(q, k, count, rows=rows, **options)
    for each, want in zip(got, largest(weights[:, :, chosen], hidden[:, :, chosen], count), strict=True):
        np.testing.assert_array_equal(back(each), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_numbers_of_the_cpu(dtype: Any, rng: np.random.Generator) -> None:
    q, k, _ = qkv(rng, 2, 4, 2, 5, 300, 40, dtype=dtype)
    hidden = normal(rng, 4, 1, 300, dtype=dtype)
    hidden[rng.random(hidden.shape) < 0.3] = -np.inf
    cases: list[dict[str, Any]] = [
        {"mask": Causal() & ~Padding(3), "softcap": 3.0, "kv_lengths": [300, 120], "sinks": rng.standard_normal(4)},
        {"bias": hidden, "scale": 0.7},
        {"bias": ALiBi.for_heads(4), "mask": Causal(), "q_offset": [100, 7]},
        {"bias": RelativeBias(rng.standard_normal((8, 4)), max_distance=20), "kv_lengths": np.array([70, 300])},
        {"mask": Function(lambda b, h, q, k: (q + h + 2 * k) % 5 < 2, per_sequence=False)},
        {"mask": Causal() & SlidingWindow(20), "kv_lengths": [0, 300]},
    ]
    for options in cases:
        ours = options | {"bias": lent(hidden) if options.get("bias") is hidden else options.get("bias")}
        sums = maskattn.attention_key_sums(lent(q), lent(k), **ours)
        assert type(sums) is Lent
        np.testing.assert_allclose(back(sums), maskattn.attention_key_sums(q, k, **options), rtol=4e-6, atol=4e-6)
        for count, rows in ((1, None), (7, [-1, 0, 3, 3]), (300, None), (40, [])):
            keys, weights = maskattn.attention_topk(lent(q), lent(k), count, rows=rows, **ours)
            assert type(keys) is type(weights) is Lent
            want = maskattn.attention_topk(q, k, count, rows=rows, **options)
            assert (back(keys).dtype, back(weights).dtype) == (want[0].dtype, want[1].dtype)
            np.testing.assert_allclose(back(weights), want[1], rtol=4e-6, atol=4e-6)
            # Where weights are close, rounding may turn them round: so one by one, where neighbours are far.
            far = np.abs(np.diff(want[1], axis=-1, prepend=2, append=-2)) > 1e-5
            clear = far[..., 1:] & far[..., :-1]
            np.testing.assert_array_equal(back(keys)[clear], want[0][clear])


def test_equal_weights_are_in_the_order_of_keys(rng: np.random.Generator) -> None:
    """As on the CPU: keys of few kinds, many of which weigh nothing in float32."""
    q, k = np.ones((1, 1, 3, 4), np.float32), rng.choice([-50, 0, 0.5], (1, 1, 500, 1)).astype(np.float32)
    k = np.broadcast_to(k, (1, 1, 500, 4)).copy()
    for count in (1, 2, 100, 333, 500):
        options: dict[str, Any] = {"mask": Padding(400) & Causal(), "q_offset": 350}
        want = maskattn.attention_topk(q, k, count, **options)
        got = maskattn.attention_topk(lent(q), lent(k), count, **options)
        np.testing.assert_array_equal(back(got[0]), want[0])
        np.testing.assert_allclose(back(got[1]), want[1], rtol=1e-6)


def test_keys_that_weigh_nothing_are_seen(rng: np.random.Generator) -> None:
    """Scores of minus infinity are not those of hidden keys: as on the CPU."""
    q, k = np.ones((1, 1, 3, 4), np.float32), normal(rng, 1, 1, 70, 4)
    k[:, :, 20], k[:, :, 66, 2:] = -np.inf, -3e38
    for count in (1, 68, 70):
        want = maskattn.attention_topk(q, k, count, mask=Causal())
        got = maskattn.attention_topk(lent(q), lent(k), count, mask=Causal())
        np.testing.assert_array_equal(back(got[0]), want[0])
        np.testing.assert_allclose(back(got[1]), want[1], rtol=1e-6)


def test_errors_before_any_work(rng: np.random.Generator) -> None:
    """No mask has become a plan by then."""
    q, k = on_device(normal(rng, 1, 2, 3, 8)), on_device(normal(rng, 1, 2, 5, 8))
    asked: list[bool] = []
    mask = Function(lambda b, h, q, k: bool(asked.append(True)) or q >= k, per_sequence=False)
    for rows, topk, error in (([3], 2, IndexError), (None, 6, ValueError), (None, "2", TypeError)):
        with pytest.raises(error):
            maskattn.attention_topk(q, k, topk, rows=rows, mask=mask)  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        maskattn.attention_weights(q, k, rows=[3], mask=mask)
    assert not asked
    maskattn.attention_topk(q, k, 2, mask=mask)
    assert asked


def test_layers_of_a_cache(rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 2, 4, 2, 3, 90, 16)
    cache = maskattn.KVCache(1, 2, 2, 100, 16, page_size=16, device="cuda")
    cache[0].append(lent(k), lent(v), lengths=[90, 33])
    plain: dict[str, Any] = {"mask": Causal(), "kv_lengths": [90, 33]}
    for function, options in ((maskattn.attention_topk, {"topk": 5}), (maskattn.attention_key_sums, {})):
        got = function(lent(q), cache[0], mask=Causal(), **options)
        want = function(lent(q), lent(k), **plain, **options)
        for each, other in zip(*((g if isinstance(g, tuple) else (g,)) for g in (got, want)), strict=True):
            np.testing.assert_array_equal(back(each), back(other))


def test_kinds_of_arrays(rng: np.random.Generator) -> None:
    q, k, _ = qkv(rng, 2, 4, 2, 5, 70)
    lengths = lent(np.array([70, 30], np.int32))
    want = maskattn.attention_topk(q, k, 3, kv_lengths=[70, 30])
    got = maskattn.attention_topk(Interface(on_device(q)), on_device(k), 3, kv_lengths=lengths)
    assert all(isinstance(each, cuda.Array) for each in got)
    np.testing.assert_array_equal(back(got[0]), want[0])
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        batch, q_len, kv_len = shape
        q, k, _ = qkv(rng, batch, 2, 2, q_len, kv_len)
        sums = back(maskattn.attention_key_sums(lent(q), lent(k)))
        assert sums.shape == (batch, 2, kv_len)
        assert not sums.any() or q_len
        if kv_len:
            assert [back(each).shape for each in maskattn.attention_topk(lent(q), lent(k), 2)] == [
                (batch, 2, q_len, 2)
            ] * 2


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"topk": 0}, ValueError, "^topk must be from 1 to kv_len = 5, got 0"),
    ({"topk": 6}, ValueError, "^topk must be from 1 to kv_len = 5, got 6"),
    ({"topk": 1.5}, TypeError, "^topk must be an integer, got float"),
    ({"topk": None}, TypeError, "^topk must be an integer, got NoneType"),
    ({"rows": [3]}, IndexError, "^rows must be from -3 to 2, got 3"),
    ({"k": np.ones((2, 2, 5, 8), np.float32)}, TypeError, "^k must be a CUDA array, as q is, got ndarray"),
    ({"sinks": np.ones(3)}, ValueError, "^sinks must have one entry per query head, 4, got 3"),
]


@pytest.mark.parametrize(("bad", "error", "message"), ERRORS, ids=[case[2] for case in ERRORS])
def test_errors(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    q, k = (on_device(np.ones(shape, np.float32)) for shape in ((2, 4, 3, 8), (2, 2, 5, 8)))
    with pytest.raises(error, match=message):
        maskattn.attention_topk(**({"q": q, "k": k, "topk": 2} | bad))
    if not bad.keys() & {"topk", "rows"}:
        with pytest.raises(error, match=message):
            maskattn.attention_key_sums(**({"q": q, "k": k} | bad))
