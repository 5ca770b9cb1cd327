"""Everything that attention() takes, in combination, against the float64 oracle: dtypes, modifiers, masks, layouts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskattn
import oracle
from maskattn import ALiBi, RelativeBias, _core
from maskattn.bias import DistanceBias
from maskattn.masks import Causal, Documents, Mask, Padding
from strategies import Array, Geometry, expressions, geometries, normal, seeds

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALF_ULP = {
    np.dtype(np.float32): 2.0**-24,
    np.dtype(np.float64): 2.0**-53,
    np.dtype(np.float16): 2.0**-11,
    BFLOAT16: 2.0**-8,
}
DTYPES = list(HALF_ULP)


@dataclass(frozen=True)
class Call:
    """One attention call with everything that it may have."""

    geometry: Geometry
    mask: Mask
    q: Array
    k: Array
    v: Array
    bias: Array | DistanceBias | None
    options: dict[str, Any]  # scale, softcap, sinks

    def where(self) -> dict[str, Any]:
        return {"q_offset": self.geometry.q_offset, "kv_lengths": self.geometry.kv_lengths}

    def arguments(self) -> dict[str, Any]:
        return {"mask": self.mask, "bias": self.bias, **self.options, **self.where()}

    def seen(self) -> Array:
        return oracle.visible(self.mask, self.geometry.q_len, self.geometry.kv_len, **self.geometry.options())

    def bias_matrix(self) -> Array | None:
        if not isinstance(self.bias, DistanceBias):
            return self.bias
        g = self.geometry
        return oracle.distance_bias(self.bias, g.q_len, g.kv_len, batch=g.batch, **self.where())

    def expected(self) -> tuple[Array, Array, Array]:
        return oracle.attention(self.q, self.k, self.v, self.seen(), bias=self.bias_matrix(), **self.options)

    def tolerance(self, *arrays: Array) -> float:
        """Of sums over ``arrays`` (q, k, v); their error grows with a scale of 1 and with biases, as scores do."""
        in_double = any(array.dtype == np.float64 for array in arrays or (self.q, self.k, self.v))
        size = 1 if self.options["scale"] != 1 else self.q.shape[-1] ** 0.5
        bias = self.bias_matrix()
        largest = 0 if bias is None else np.abs(bias, where=np.isfinite(bias), out=np.zeros(bias.shape)).max(initial=0)
        return (1e-12 if in_double else 4e-6) * (1 + size + float(largest))


def laid_out(array: Array, layout: str) -> Array:
    """The same numbers at other strides."""
    if layout == "transposed":
        return np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2)
    if layout == "apart":
        wide = np.full((*array.shape[:3], array.shape[3] + 3), 7, array.dtype)
        wide[..., : array.shape[3]] = array
        return wide[..., : array.shape[3]]
    return array


@st.composite
def calls(draw: st.DrawFn, dtypes: tuple[Any, Any, Any] | None = None) -> Call:
    group, kv_heads = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    g = draw(geometries(batch=draw(st.integers(1, 2)), heads=group * kv_heads))
    head_dim, v_head_dim = (draw(st.one_of(st.integers(1, 20), st.sampled_from([32, 64, 65, 128]))) for _ in range(2))
    rng = np.random.default_rng(draw(seeds))
    each = dtypes or tuple(draw(st.sampled_from(DTYPES)) for _ in range(3))
    layout = st.sampled_from(["plain", "transposed", "apart"])
    shapes = [(g.heads, g.q_len, head_dim), (kv_heads, g.kv_len, head_dim), (kv_heads, g.kv_len, v_head_dim)]
    arrays = [
        laid_out(normal(rng, g.batch, *shape, dtype=dtype), draw(layout))
        for shape, dtype in zip(shapes, each, strict=True)
    ]
    kind = draw(st.sampled_from(["none", "array", "alibi", "relative"]))
    bias: Any = None
    if kind == "array":
        extents = [draw(st.sampled_from([1, n])) for n in (g.batch, g.heads, g.q_len, g.kv_len)]
        bias = normal(rng, *extents, dtype=draw(st.sampled_from(DTYPES)))
        bias[rng.random(extents) < draw(st.sampled_from([0, 0.3]))] = -np.inf
    elif kind == "alibi":
        bias = ALiBi(rng.random(g.heads) * 0.1)
    elif kind == "relative":
        bias = RelativeBias(normal(rng, 8, g.heads), draw(st.booleans()), draw(st.sampled_from([5, 20, 128])))
    options = {
        "scale": draw(st.sampled_from([None, 1, 0.3, -0.2])),
        "softcap": draw(st.sampled_from([0, 0.5, 5, 50])),
        "sinks": normal(rng, g.heads) if draw(st.booleans()) else None,
    }
    return Call(g, draw(expressions(g)), *arrays, bias, options)


def close(got: Array, want: Array, atol: Any) -> None:
    """Within ``atol`` and the rounding of the result to its dtype."""
    with np.errstate(invalid="ignore"):  # inf - inf, and 0 * inf
        allowed = atol + HALF_ULP[got.dtype] * np.abs(want) + (6e-8 if got.dtype == np.float16 else 0)
        error = np.abs(got.astype(np.float64) - want)
        # From 65520 on, float16 rounds to infinity. No other dtype ends where scores can come.
        overflows = (got == np.copysign(np.inf, want)) & (np.abs(want) + atol >= 65520) & (got.dtype == np.float16)
    assert ((got == want) | overflows | (error <= allowed)).all(), np.nanmax(error - allowed)


@given(calls())
def test_every_semantic_in_combination(isa: str, call: Call) -> None:
    got, lse = maskattn.attention(call.q, call.k, call.v, return_lse=True, **call.arguments())
    want, want_lse, weights = call.expected()
    assert got.dtype == call.q.dtype
    assert lse.dtype == (np.float64 if np.float64 in (call.q.dtype, call.k.dtype, call.v.dtype) else np.float32)
    coarse = oracle.rounding_of_weights(isa, weights, call.q, call.k, call.v)
    close(got, want, call.tolerance() + coarse)
    close(lse, want_lse, (4 if np.ndim(coarse) == 0 else 8) * call.tolerance())


@given(calls())
def test_weights_at_every_stage(isa: str, call: Call) -> None:
    exist = oracle.visible(None, call.geometry.q_len, call.geometry.kv_len, **call.geometry.options())
    scale, softcap = call.options["scale"], call.options["softcap"]
    scores = oracle.scores(call.q, call.k, scale=scale)
    capped = oracle.scores(call.q, call.k, scale=scale, softcap=softcap)
    biased = oracle.scores(call.q, call.k, scale=scale, softcap=softcap, bias=call.bias_matrix())
    want = {
        "scores": np.where(exist, scores, -np.inf),
        "softcap": np.where(exist, capped, -np.inf),
        "bias": np.where(call.seen(), biased, -np.inf),
        "softmax": call.expected()[2],
    }
    for stage, matrix in want.items():
        got = maskattn.attention_weights(call.q, call.k, stage=stage, **call.arguments())
        assert got.dtype == call.q.dtype
        tolerance = call.tolerance(call.q, call.k)
        tolerance = 4 * tolerance if np.float64 in (call.q.dtype, call.k.dtype) else max(1.6e-5, tolerance)
        close(got, matrix, tolerance * (1 if stage == "softmax" else 4))


@given(calls(dtypes=(np.dtype(np.float32),) * 3), st.data())
def test_parts_of_the_weights_are_those_of_the_matrix(isa: str, call: Call, data: st.DataObject) -> None:
    g = call.geometry
    weights = maskattn.attention_weights(call.q, call.k, **call.arguments())
    rows = data.draw(st.lists(st.integers(-g.q_len, g.q_len - 1), max_size=3) if g.q_len else st.just([]))
    picked = maskattn.attention_weights(call.q, call.k, rows=rows, **call.arguments())
    assert picked.tobytes() == np.ascontiguousarray(weights[:, :, rows]).tobytes()

    sums = maskattn.attention_key_sums(call.q, call.k, threads=data.draw(st.integers(1, 2)), **call.arguments())
    np.testing.assert_allclose(sums, weights.sum(axis=2, dtype=np.float64), rtol=1e-6, atol=1e-7)

    if g.kv_len == 0:
        return
    topk = data.draw(st.integers(1, min(g.kv_len, 9)))
    keys, values = maskattn.attention_topk(call.q, call.k, topk, rows=rows, **call.arguments())
    hidden = np.isneginf(maskattn.attention_weights(call.q, call.k, rows=rows, stage="bias", **call.arguments()))
    order = np.argsort(np.where(hidden, 1, -picked), axis=-1, kind="stable")[..., :topk]
    there = ~np.take_along_axis(hidden, order, axis=-1)
    np.testing.assert_array_equal(keys, np.where(there, order, -1))
    np.testing.assert_array_equal(values, np.where(there, np.take_along_axis(picked, order, axis=-1), 0))


# Storage: what an array's dtype can hold, it holds without changing a bit of the result.


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
@given(call=calls(dtypes=(np.dtype(np.float32),) * 3))
def test_storage_changes_no_bit(isa: str, dtype: Any, call: Call) -> None:
    k, v = call.k.astype(dtype), call.v.astype(dtype)
    got = maskattn.attention(call.q, k, v, **call.arguments())
    want = maskattn.attention(call.q, k.astype(np.float32), v.astype(np.float32), **call.arguments())
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_every_number_of_sixteen_bits_is_read_and_written(isa: str, dtype: Any) -> None:
    """One key that has all the weight: the output is its value, whatever it is. Matrix units drop subnormal numbers."""
    values = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(1, 1, 1, -1)
    zero = np.zeros((1, 1, 1, 1), dtype)
    got = maskattn.attention(zero, zero, values)
    with np.errstate(invalid="ignore"):  # signalling NaN
        nan = np.isnan(values)
        assert np.isnan(got[nan]).all()
    if isa in oracle.MATRIX_ISAS and dtype == BFLOAT16:
        values = np.where(np.abs(values.astype(np.float32)) < 2.0**-126, 0, values).astype(dtype)
    np.testing.assert_array_equal(got[~nan], values[~nan])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_results_are_rounded_to_nearest_even(isa: str, dtype: Any, rng: np.random.Generator) -> None:
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint32)
    ties = (bits & 0xFFFF0000) | np.uint32(0x8000) | (bits & 0x1000)  # bfloat16's ties, and half's
    floats = np.concatenate([bits, ties, np.array([0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001], np.uint32)])
    numbers = floats.view(np.float32)
    numbers = numbers[np.isfinite(numbers)].reshape(1, 1, 1, -1)
    if isa == "amx":  # the smaller pieces of smaller numbers would be subnormal, which the tiles drop
        numbers = np.where(np.abs(numbers) < 2.0**-102, np.float32(0), numbers)
    got = maskattn.attention(np.zeros((1, 1, 1, 1), dtype), np.zeros((1, 1, 1, 1), dtype), numbers)
    with np.errstate(over="ignore"):
        want = numbers.astype(dtype)
    np.testing.assert_array_equal(got, want)


# Modifiers, one by one where a reader can check them


def test_alibi_by_hand() -> None:
    q, k = np.zeros((1, 2, 2, 4), np.float32), np.zeros((1, 2, 3, 4), np.float32)
    got = maskattn.attention_weights(q, k, stage="bias", bias=ALiBi([1, 0.5]))
    assert got[0, 0].tolist() == [[-1, 0, -1], [-2, -1, 0]]
    assert got[0, 1].tolist() == [[-0.5, 0, -0.5], [-1, -0.5, 0]]
    top_left = maskattn.attention_weights(q, k, stage="bias", bias=ALiBi([1, 0.5]), q_offset=0)
    assert top_left[0, 0].tolist() == [[0, -1, -2], [-1, 0, -1]]


def test_a_softcap_bounds_scores_of_any_size(isa: str) -> None:
    q = np.array([[[[3e30], [-3e30], [1e-20], [0.0]]]], np.float32)
    k = np.ones((1, 1, 1, 1), np.float32)
    got = maskattn.attention_weights(q, k, stage="softcap", scale=1, softcap=30)
    np.testing.assert_allclose(got.ravel(), [30, -30, 1e-20, 0], rtol=1e-6)


def test_small_scores_keep_their_digits_under_a_softcap(isa: str) -> None:
    q = (10.0 ** np.arange(-12, 2, dtype=np.float32)).reshape(1, 1, -1, 1)
    got = maskattn.attention_weights(q, np.ones((1, 1, 1, 1), np.float32), stage="softcap", scale=1, softcap=50)
    np.testing.assert_allclose(got.ravel(), 50 * np.tanh(q.ravel().astype(np.float64) / 50), rtol=5e-7)


def test_sinks_take_probability_and_give_nothing(isa: str) -> None:
    q, k, v = (np.zeros((1, 2, 1, 4), np.float32) for _ in range(3))
    out, lse = maskattn.attention(q, k, v + 8, sinks=[0, np.log(3)], return_lse=True)
    np.testing.assert_allclose(out[0, :, 0, 0], [4, 2], rtol=1e-6)  # beside one key of score 0
    np.testing.assert_allclose(lse[0, :, 0], [np.log(2), np.log(4)], rtol=1e-6)
    none = maskattn.attention(q, k, v + 8, sinks=[-np.inf, -np.inf])
    assert none.tobytes() == maskattn.attention(q, k, v + 8).tobytes()


@pytest.mark.parametrize("sink", [-200.0, 0.0, 200.0])
def test_rows_that_see_nothing_have_zeros_and_minus_infinity_with_sinks_too(isa: str, sink: float) -> None:
    q = np.ones((1, 1, 3, 4), np.float32)
    out, lse = maskattn.attention(q, q, q, mask=Padding(0), sinks=[sink], return_lse=True)
    assert not out.any()
    assert np.isneginf(lse).all()
    assert not maskattn.attention_weights(q, q, mask=Padding(0), sinks=[sink]).any()


def test_a_sink_far_above_all_scores_leaves_zeros_not_nan(isa: str) -> None:
    q = np.ones((1, 1, 3, 4), np.float32)
    out, lse = maskattn.attention(q, q, q, sinks=[1e4], return_lse=True)
    assert not out.any()
    np.testing.assert_allclose(lse, 1e4)


@pytest.mark.parametrize(("group", "q_len", "kv_len"), [(1, 500, 700), (3, 150, 300), (7, 1, 600), (400, 2, 260)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["alibi", "relative", "reaches far"])
def test_a_bias_by_distance_has_the_bits_of_its_matrix(
    isa: str, group: int, q_len: int, kv_len: int, dtype: Any, kind: str, rng: np.random.Generator
) -> None:
    q, k, v = normal(rng, 2, 2 * group, q_len, 8, dtype=dtype), *normal(rng, 2, 2, 2, kv_len, 8, dtype=dtype)
    where: dict[str, Any] = {"q_offset": [kv_len - q_len, -3], "kv_lengths": [kv_len, kv_len - 5]}
    biases = {
        "alibi": ALiBi(rng.random(2 * group)),
        "relative": RelativeBias(normal(rng, 8, 2 * group), max_distance=20),
        "reaches far": RelativeBias(normal(rng, 32, 2 * group), max_distance=2000),
    }
    matrix = oracle.distance_bias(biases[kind], q_len, kv_len, batch=2, **where).astype(dtype)
    got = maskattn.attention(q, k, v, bias=biases[kind], **where)
    np.testing.assert_array_equal(got, maskattn.attention(q, k, v, bias=matrix, **where))
    rows = [-1, 0, -1]  # in no order
    some = maskattn.attention_weights(q, k, bias=biases[kind], rows=rows, **where)
    np.testing.assert_array_equal(some, maskattn.attention_weights(q, k, bias=matrix, rows=rows, **where))


@pytest.mark.parametrize("hidden", [0, 0.3])
def test_the_core_adds_biases_of_both_kinds(isa: str, hidden: float, rng: np.random.Generator) -> None:
    """As the C++ API may be asked to: an array, a table by distance, and slopes."""
    q, k, v = normal(rng, 2, 6, 40, 8), *normal(rng, 2, 2, 2, 300, 8)
    array, table, slopes = normal(rng, 6, 40, 300), normal(rng, 6, 2 * 20 + 1).astype(np.float64), rng.random(6) * 0.1
    array[rng.random(array.shape) < hidden] = -np.inf
    got = _core.attention(
        q, k, v, None, None, None, array, None, None, (0.0, None, table, slopes, None), False, None, 1
    )
    distance = np.arange(300) - np.arange(260, 300)[:, None]
    bias = array + table[:, distance.clip(-20, 20) + 20] - slopes[:, None, None] * np.abs(distance)
    np.testing.assert_allclose(got, oracle.attention(q, k, v, np.True_, bias=bias[None])[0], atol=2e-5)


# Varlen


def test_packed_sequences_take_every_modifier(isa: str, rng: np.random.Generator) -> None:
    lengths = [5, 70, 1]
    packed = [normal(rng, sum(lengths), 4, 16, dtype=np.float16) for _ in range(3)]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    for bias in (ALiBi.for_heads(4), RelativeBias(normal(rng, 8, 4), max_distance=20)):
        options: dict[str, Any] = {"bias": bias, "softcap": 5.0, "sinks": normal(rng, 4), "mask": Causal()}
        got = maskattn.attention_varlen(*packed, ends, ends, **options)
        for begin, end in pairwise(ends.tolist()):
            alone = [array[begin:end].swapaxes(0, 1)[None] for array in packed]
            want = maskattn.attention(*alone, **options)
            np.testing.assert_array_equal(got[begin:end], want[0].swapaxes(0, 1))


# merge_states


@given(calls(dtypes=(np.dtype(np.float32),) * 3), st.data())
def test_merged_parts_are_the_whole(call: Call, data: st.DataObject) -> None:
    kv_len = call.geometry.kv_len
    keys = data.draw(st.integers(0, kv_len))
    options = {**call.arguments(), "return_lse": True}
    whole, whole_lse = maskattn.attention(call.q, call.k, call.v, **options)
    parts = []
    for mine in (Padding(keys), ~Padding(keys)):
        options["mask"] = call.mask & mine
        parts.append(maskattn.attention(call.q, call.k, call.v, **options))
        options["sinks"] = None  # of one part only
    if call.options["sinks"] is not None:
        # The part with the sinks says nothing of them where it sees no key.
        keyless = np.isneginf(parts[0][1])
        if keyless.any():
            return
    out, lse = maskattn.merge_states(*parts[0], *parts[1])
    np.testing.assert_allclose(out, whole, atol=call.tolerance())
    np.testing.assert_allclose(lse, whole_lse, atol=4 * call.tolerance())


def test_empty_parts_are_neutral(rng: np.random.Generator) -> None:
    out, lse = normal(rng, 2, 3, 4), normal(rng, 2, 3)
    nothing = np.full((2, 3, 4), np.nan, np.float32), np.full((2, 3), -np.inf, np.float32)
    for merged in (maskattn.merge_states(out, lse, *nothing), maskattn.merge_states(*nothing, out, lse)):
        np.testing.assert_array_equal(merged[0], out)
        np.testing.assert_allclose(merged[1], lse, rtol=1e-6)
    both = maskattn.merge_states(*nothing, *nothing)
    assert not both[0].any()
    assert np.isneginf(both[1]).all()


def test_merging_is_associative_up_to_rounding(rng: np.random.Generator) -> None:
    a, b, c = ((normal(rng, 5, 4), 30 * normal(rng, 5)) for _ in range(3))
    left = maskattn.merge_states(*maskattn.merge_states(*a, *b), *c)
    right = maskattn.merge_states(*a, *maskattn.merge_states(*b, *c))
    for x, y in zip(left, right, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"lse_a": np.zeros((5, 1))}, ValueError, r"lse_a must have shape \(5,\).*got \(5, 1\)"),
        ({"out_b": np.zeros((5, 3))}, ValueError, r"out_b must have shape \(5, 4\).*got \(5, 3\)"),
        ({"out_a": np.zeros((5, 4), int)}, TypeError, "out_a must be a floating array, got int64"),
    ],
)
def test_states_that_do_not_belong_together(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"out_a": np.zeros((5, 4)), "lse_a": np.zeros(5), "out_b": np.zeros((5, 4)), "lse_b": np.zeros(5)}
    with pytest.raises(error, match=message):
        maskattn.merge_states(**{**good, **bad})


# Promise 3 with everything on


@given(calls())
def test_threads_and_query_chunks_change_no_bit(isa: str, call: Call) -> None:
    want = maskattn.attention(call.q, call.k, call.v, threads=1, **call.arguments())
    assert maskattn.attention(call.q, call.k, call.v, threads=2, **call.arguments()).tobytes() == want.tobytes()
    plan = call.mask.plan(call.geometry.q_len, call.geometry.kv_len, **call.geometry.options())
    options = {"bias": call.bias, **call.options}
    again = maskattn.attention(call.q, call.k, call.v, mask=plan, **options)
    assert again.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_decoded_row_is_the_row_of_a_prefill(isa: str, dtype: Any, rng: np.random.Generator) -> None:
    q, k, v = (normal(rng, 1, heads, 600, 32, dtype=dtype) for heads in (4, 2, 2))
    options: dict[str, Any] = {
        "bias": ALiBi.for_heads(4),
        "softcap": 20.0,
        "sinks": normal(rng, 4),
        "mask": Causal() & Documents(np.arange(600) // 331),
    }
    whole = maskattn.attention(q, k, v, **options)
    for t in (0, 1, 255, 256, 330, 331, 599):
        row = maskattn.attention(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], **options)
        np.testing.assert_array_equal(row, whole[:, :, t : t + 1])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_means_unread(isa: str, dtype: Any, poison: float, rng: np.random.Generator) -> None:
    q, k, v = (normal(rng, 2, heads, 90, 24, dtype=dtype) for heads in (4, 2, 2))
    options: dict[str, Any] = {
        "bias": RelativeBias(normal(rng, 8, 4), max_distance=50),
        "softcap": 9.0,
        "sinks": normal(rng, 4),
        "mask": Documents(np.arange(90) // 40) & ~Padding(3),
        "kv_lengths": [70, 85],
        "q_offset": 0,
    }
    want = maskattn.attention(q, k, v, **options)
    for array in (k, v):
        array[:, :, :3] = poison
        array[0, :, 70:] = poison
        array[1, :, 85:] = poison
    np.testing.assert_array_equal(maskattn.attention(q, k, v, **options), want)
