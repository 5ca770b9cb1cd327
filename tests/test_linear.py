"""linear(): right, the same for a row whatever else is in the call, and clear about bad shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import maskattn
from maskattn._core import PackedWeight, best_outputs, packed_linear
from maskattn.linear import DTYPES, linear, pack


@pytest.mark.parametrize("rows", [0, 1, 6, 7, 193])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 65), (96, 288), (512, 63)])
def test_matches_float64(isa: str, rows: int, inputs: int, outputs: int, rng: np.random.Generator) -> None:
    x, w, b = (rng.standard_normal(s, dtype=np.float32) for s in ((rows, inputs), (outputs, inputs), (outputs,)))
    want = x.astype(np.float64) @ w.T.astype(np.float64)
    tolerance = 3e-6 * np.sqrt(inputs) + 1e-6
    np.testing.assert_allclose(linear(x, w), want, rtol=0, atol=tolerance)
    np.testing.assert_allclose(linear(x, w, b), want + b, rtol=0, atol=tolerance)


def test_a_row_does_not_depend_on_the_others(isa: str, rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((300, 77), dtype=np.float32), rng.standard_normal((130, 77), dtype=np.float32)
    whole = linear(x, w)
    for first, last in [(0, 1), (5, 6), (299, 300), (10, 17), (100, 299)]:
        np.testing.assert_array_equal(linear(x[first:last], w), whole[first:last])
    np.testing.assert_array_equal(linear(x.reshape(3, 100, 77), w), whole.reshape(3, 100, 130))
    threads = maskattn.num_threads()
    try:
        maskattn.set_num_threads(1)
        np.testing.assert_array_equal(linear(x, w), whole)
    finally:
        maskattn.set_num_threads(threads)


def test_views_come_in_as_they_are(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((9, 20), dtype=np.float32), rng.standard_normal((12, 40), dtype=np.float32)
    np.testing.assert_array_equal(linear(x[::2], w[1::3, 5:25]), linear(x[::2].copy(), w[1::3, 5:25].copy()))


def test_bad_shapes(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((9, 20), dtype=np.float32), rng.standard_normal((12, 20), dtype=np.float32)
    with pytest.raises(ValueError, match=r"weight must have shape .* got weight \(20, 12\)"):
        linear(x, w.T)
    with pytest.raises(ValueError, match=r"bias must have shape \(12,\), got \(20,\)"):
        linear(x, w, x[0])
    with pytest.raises(TypeError):
        linear(x.astype(np.float64), w)  # type: ignore[arg-type]


# Packed weights

ERRORS = {"float32": 3e-7, "bfloat16": 3e-3, "int8": 1.4e-2, "int4": 0.12, "uint4": 0.11}
#: What 8 bits may lose of a row of activations, and what 16 bits do.
OF_8_BITS, OF_16_BITS = 1.1e-2, 5e-4


def with_outliers(rng: np.random.Generator, rows: int, inputs: int) -> np.ndarray:
    """Rows of which every other one has an input so large that 8 bits leave too little of the others."""
    x = rng.standard_normal((rows, inputs), dtype=np.float32)
    x[::2, 7] = 1000
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (3, 5), (64, 32), (130, 77), (257, 512)])
def test_packed(isa: str, rng: np.random.Generator, dtype: str, outputs: int, inputs: int) -> None:
    """Against float64 of the weights before and after packing; a row alone has the bits that it has among others."""
    x, w, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((40, inputs), (outputs, inputs), (outputs,)))
    packed = pack(w, dtype)
    assert (packed.shape, packed.dtype) == ((outputs, inputs), dtype)
    got = linear(x, packed, b)
    kept = packed.rows(np.arange(outputs))
    # Of the weights as they are kept only what happens to activations is left.
    rounding = {"float32": 3e-7, "bfloat16": 3e-3 if isa in ("avx512_bf16", "amx") else 3e-7}.get(dtype, OF_8_BITS)
    for weight, tolerance in ((w, ERRORS[dtype]), (kept, rounding)):
        exact = x.astype(np.float64) @ weight.T.astype(np.float64)
        assert np.linalg.norm(got - (exact + b)) <= tolerance * np.linalg.norm(exact)
    for first, last in ((0, 1), (5, 8), (3, 40)):
        np.testing.assert_array_equal(linear(x[first:last], packed, b), got[first:last])
    if dtype == "float32":
        np.testing.assert_array_equal(got, linear(x, w, b))
        np.testing.assert_array_equal(kept, w)
    again = pack(kept, dtype).rows(np.arange(outputs))
    if dtype == "uint4":  # whose zero point is no integer
        np.testing.assert_allclose(again, kept, rtol=0, atol=2e-3)
    else:
        np.testing.assert_array_equal(again, kept)


@pytest.mark.parametrize(("group", "inputs"), [(32, 100), (64, 128), (128, 130), (1024, 1500)])
@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_groups_of_4_bits(isa: str, rng: np.random.Generator, dtype: str, group: int, inputs: int) -> None:
    """Ready-made integers, scales and zero points are multiplied as they are."""
    outputs, groups = 70, -(-inputs // group)
    q = rng.integers(0, 16, (outputs, inputs)).astype(np.uint8)
    scales = rng.standard_normal((outputs, groups)).astype(np.float16).astype(np.float32)
    zeros = rng.uniform(-20, 20, scales.shape).astype(np.float16).astype(np.float32)
    packed = PackedWeight(outputs, inputs, dtype, group)
    packed.fill_groups(0, q[:9], scales[:9], zeros[:9] if dtype == "uint4" else None)
    packed.fill_groups(9, q[9:], scales[9:], zeros[9:] if dtype == "uint4" else None)
    of_input = np.arange(inputs) // group
    zero = zeros[:, of_input] if dtype == "uint4" else 8
    weight = (q.astype(np.float64) - zero) * scales[:, of_input]
    np.testing.assert_allclose(packed.rows(np.arange(outputs)), weight, rtol=3e-7)
    x = with_outliers(rng, 60, inputs)
    got, exact = linear(x, packed), x @ weight.T
    for rows, rounding in ((slice(0, None, 2), OF_16_BITS), (slice(1, None, 2), OF_8_BITS)):
        assert np.linalg.norm(got[rows] - exact[rows]) <= rounding * np.linalg.norm(exact[rows])
    for row in range(60):
        np.testing.assert_array_equal(linear(x[row : row + 1], packed), got[row : row + 1])


def test_rows_of_8_and_16_bits(isa: str, rng: np.random.Generator) -> None:
    """A row's activations have 16 bits where 8 would lose too much, whatever rows stand beside it."""
    x, packed = with_outliers(rng, 80, 512), pack(rng.standard_normal((130, 512), dtype=np.float32), "int8")
    x[40:] = x[40 + np.argsort(np.arange(40) % 2, kind="stable")]  # twenty rows of a kind together
    x[3], x[5] = 0, 1e-30
    got, exact = linear(x, packed), x.astype(np.float64) @ packed.rows(np.arange(130)).T.astype(np.float64)
    error, size = np.linalg.norm(got - exact, axis=1), np.linalg.norm(exact, axis=1)
    outlier = x[:, 7] == 1000
    assert np.all(error[outlier] <= OF_16_BITS * size[outlier])
    assert np.linalg.norm(error[~outlier]) <= OF_8_BITS * np.linalg.norm(size[~outlier])
    for row in range(80):
        np.testing.assert_array_equal(linear(x[row : row + 1], packed), got[row : row + 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_bytes_make_the_weight_again(rng: np.random.Generator, dtype: str) -> None:
    x, w = rng.standard_normal((3, 77), dtype=np.float32), rng.standard_normal((130, 77), dtype=np.float32)
    packed = pack(w, dtype)
    memory = np.zeros(packed.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    memory[start : start + packed.nbytes] = packed.packed_bytes
    over = PackedWeight.over(130, 77, dtype, memory[start : start + packed.nbytes])
    want = linear(x, packed)
    del packed
    np.testing.assert_array_equal(linear(x, over), want)
    np.testing.assert_array_equal(linear(x, over[64:]), want[:, 64:])
    assert not over.packed_bytes.flags.writeable
    with pytest.raises(ValueError, match="read only"):
        over.fill(0, w)
    with pytest.raises(ValueError, match=r"packed bytes must be contiguous, uint8, of shape"):
        PackedWeight.over(130, 77, dtype, memory)
    with pytest.raises(ValueError, match="multiple of 64 bytes"):
        PackedWeight.over(130, 77, dtype, memory[start + 1 :][: over.nbytes])
    with pytest.raises(ValueError, match="some rows of one"):
        _ = over[:10].packed_bytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_show(rng: np.random.Generator, dtype: str) -> None:
    x, w = rng.standard_normal((200, 300), dtype=np.float32), rng.standard_normal((1500, 300), dtype=np.float32)
    packed = pack(w, dtype)
    for rows in (1, 30, 200):
        one, two = (packed_linear(packed, x[:rows], None, threads) for threads in (1, 2))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_share_the_memory(rng: np.random.Generator, dtype: str) -> None:
    x, w = rng.standard_normal((7, 77), dtype=np.float32), rng.standard_normal((300, 77), dtype=np.float32)
    packed = pack(w, dtype)
    whole = linear(x, packed)
    for start, stop in ((0, 300), (10, 20), (60, 70), (64, 128), (63, 300), (299, 300)):
        part = packed[start:stop]
        np.testing.assert_array_equal(linear(x, part), whole[:, start:stop])
        np.testing.assert_array_equal(part.rows(np.array([0])), packed.rows(np.array([start])))
    joined = PackedWeight.joined([packed[10:70], packed[70:200]])
    assert joined is not None
    np.testing.assert_array_equal(linear(x, joined), whole[:, 10:200])
    assert PackedWeight.joined([packed[10:70], packed[71:200]]) is None
    assert PackedWeight.joined([packed[10:70], pack(w, dtype)[70:200]]) is None


def test_int8_of_rows_that_are_zero_or_far_apart() -> None:
    w = np.zeros((3, 8), np.float32)
    w[1, 2], w[2] = 1e-30, 1e30
    x = np.zeros((2, 8), np.float32)
    x[1] = 2
    np.testing.assert_allclose(linear(x, pack(w, "int8")), x @ w.T, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_some_rows_as_they_are_packed(rng: np.random.Generator, dtype: str) -> None:
    w, x = rng.standard_normal((200, 77), dtype=np.float32), rng.standard_normal((3, 77), dtype=np.float32)
    packed, rows = pack(w, dtype)[5:], np.array([190, 3, 3, 64, 0, 63, *range(70)])
    taken = packed.take(rows)
    np.testing.assert_array_equal(taken.rows(np.arange(len(rows))), packed.rows(rows))
    np.testing.assert_array_equal(linear(x, taken), linear(x, packed)[:, rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_best_outputs(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """Of the bits that the product has; what is not a number is not among them, and shows in the logarithm."""
    w, x, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((300, 40), (9, 40), (300,)))
    packed = pack(w, dtype)[3:]
    b = b[3:].copy()
    for where in ((), (15,), (76, 78, 200)):
        b[list(where)] = np.nan
        scores = linear(x, packed, b)
        order = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), axis=1, kind="stable")[:, :7]
        for threads in (1, 2):
            values, outputs, logarithms = best_outputs(packed, x, b, 7, True, threads)
            np.testing.assert_array_equal(outputs, order)
            np.testing.assert_array_equal(values, np.take_along_axis(scores, order, axis=1))
            assert logarithms is not None
            with np.errstate(invalid="ignore"):
                np.testing.assert_allclose(logarithms, np.log(np.exp(scores.astype(np.float64)).sum(axis=1)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"bias must have shape \(297,\), got"):
        best_outputs(packed, x, b[1:], 1, False, 1)
    with pytest.raises(ValueError, match="count must be from 1 to the 297 outputs, got 298"):
        best_outputs(packed, x, None, 298, False, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(isa: str, dtype: str, wrong: float, rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((5, 70), dtype=np.float32), rng.standard_normal((9, 70), dtype=np.float32)
    packed = pack(w, dtype)
    want = linear(x, packed)
    x[3, 66] = wrong
    got = linear(x, packed)
    assert not np.isfinite(got[3]).any()
    np.testing.assert_array_equal(np.delete(got, 3, axis=0), np.delete(want, 3, axis=0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: pack(w, "int3"), ValueError, "dtype must be one of float32, .*, uint4, got 'int3'"),
        (lambda w: pack(w, "int4", 48), ValueError, "group must be a multiple of 32 up to 1024, got 48"),
        (lambda w: pack(w[0]), ValueError, r"weight must have shape \(out_features, in_features\), got \(5,\)"),
        (lambda w: pack(w.astype(np.float64)), TypeError, "weight must be a NumPy array of float32, got dtype float64"),
        (
            lambda w: pack(w, "int8").fill(0, np.zeros((), np.float32)),
            ValueError,
            "rows must have rows, got an array without axes",
        ),
        (lambda w: pack(w * np.nan, "int8"), ValueError, "weight must be finite"),
        (
            lambda w: pack(1e6 * w, "int4"),
            ValueError,
            "weight must be finite, and below 500,000 in 4 bits, got 1000000",
        ),
        (lambda w: pack(w, "int4", 3.0), TypeError, "group must be an int, got float"),
        (lambda w: PackedWeight(1, 1 << 17, "int8"), ValueError, "int8 must have at most 65536 inputs, got 131072"),
        (lambda w: PackedWeight.joined([]), ValueError, "parts must be packed weights, one at least, got none"),
        (lambda w: pack(w).take(np.array([3])), ValueError, "indices must be from 0 to 2, got 3"),
        (lambda w: linear(w.tolist(), pack(w)), TypeError, "x must be a NumPy array of float32, got list"),
        (lambda w: linear(w, w, w[0].astype(np.float64)), TypeError, "bias must be a NumPy array of float32"),
        (lambda w: pack(w).fill(2, w), ValueError, r"rows must fit a weight of shape \(3, 5\) from row 2 on"),
        (lambda w: pack(w).rows(np.array([3])), ValueError, "rows must be from 0 to 2, got 3"),
        (lambda w: pack(w)[::2], ValueError, "slice of step 1"),
        (lambda w: linear(w[:, :4], pack(w)), ValueError, r"got weight \(3, 5\) and x \(3, 4\)"),
    ],
)
def test_bad_packing(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(np.ones((3, 5), np.float32))
