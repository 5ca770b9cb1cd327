"""Masks: every way out of the core says what the definition in plain NumPy says."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import pkgutil
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskattn
import oracle
from maskattn import masks
from maskattn.masks import (
    Causal,
    Dense,
    Dilated,
    Documents,
    FirstTokens,
    Full,
    KeyPadding,
    Mask,
    Padding,
    PrefixLM,
    SlidingWindow,
)
from strategies import Geometry, geometries_and_masks, per_sequence

SCALAR_LEAVES: list[Mask] = [
    Full(),
    Causal(),
    SlidingWindow(),
    SlidingWindow(2, 0),
    SlidingWindow(None, 3),
    Padding(3),
    Padding([2, 5]),
    PrefixLM(2),
    PrefixLM((0, 4)),
]
FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def rows(mask: Mask, q_len: int, kv_len: int, **options: Any) -> list[str]:
    """The one (q_len, kv_len) matrix of a mask as text, "x" where a query attends."""
    seen = mask.to_bool(q_len, kv_len, **options)
    assert seen.shape[:2] == (1, 1)
    return ["".join("x" if s else "." for s in row) for row in seen[0, 0]]


# Each leaf, by examples that a reader can check


@pytest.mark.parametrize(
    ("mask", "want"),
    [
        (Full(), ["xxxx", "xxxx", "xxxx", "xxxx"]),
        (Causal(), ["x...", "xx..", "xxx.", "xxxx"]),
        (SlidingWindow(1, 0), ["x...", "xx..", ".xx.", "..xx"]),
        (SlidingWindow(0, 0), ["x...", ".x..", "..x.", "...x"]),
        (SlidingWindow(1, 1), ["xx..", "xxx.", ".xxx", "..xx"]),
        (SlidingWindow(None, 1), ["xx..", "xxx.", "xxxx", "xxxx"]),
        (SlidingWindow(1, None), ["xxxx", "xxxx", ".xxx", "..xx"]),
        (SlidingWindow(), ["xxxx", "xxxx", "xxxx", "xxxx"]),
        (Padding(3), ["xxx.", "xxx.", "xxx.", "xxx."]),
        (Padding(0), ["....", "....", "....", "...."]),
        (Padding(9), ["xxxx", "xxxx", "xxxx", "xxxx"]),
        (PrefixLM(2), ["xx..", "xx..", "xxx.", "xxxx"]),
        (PrefixLM(0), ["x...", "xx..", "xxx.", "xxxx"]),
        (KeyPadding(np.array([True, False, False, True])), ["x..x", "x..x", "x..x", "x..x"]),
        (KeyPadding(np.array([False, True, True, True, True])), [".xxx", ".xxx", ".xxx", ".xxx"]),
        (Documents([5, 5, 9, 5]), ["xx.x", "xx.x", "..x.", "xx.x"]),
        (Documents([0, 1, 2, 3], [3, 3, 1, 0]), ["...x", "..x.", "....", "xx.."]),
        (Dense(np.eye(4, dtype=bool)), ["x...", ".x..", "..x.", "...x"]),
        (Dense(np.array([True, False, True, False])), ["x.x.", "x.x.", "x.x.", "x.x."]),
        (Dense(np.array([[True], [False], [False], [True]])), ["xxxx", "....", "....", "xxxx"]),
        (Dense.from_ignore(np.eye(4, dtype=bool)), [".xxx", "x.xx", "xx.x", "xxx."]),
        (Causal() & SlidingWindow(left=1), ["x...", "xx..", ".xx.", "..xx"]),
        (Causal() & ~Padding(1), ["....", ".x..", ".xx.", ".xxx"]),
        (~Causal() | Padding(1), ["xxxx", "x.xx", "x..x", "x..."]),
        (~~Causal(), ["x...", "xx..", "xxx.", "xxxx"]),
    ],
    ids=repr,
)
def test_by_example(mask: Mask, want: list[str]) -> None:
    assert rows(mask, 4, 4) == want


def test_one_parameter_per_sequence() -> None:
    for mask in (Padding([1, 3]), Padding(np.array([1, 3])), KeyPadding(np.array([[True, False, False], [True] * 3]))):
        assert mask.to_bool(1, 3).tolist() == [[[[True, False, False]]], [[[True, True, True]]]]


# Memory. That lowering and definition agree is test_mask_properties.py's.


REGULAR = [
    Causal(),
    Causal() & SlidingWindow(left=100),
    PrefixLM(50) & ~Padding(20),
    Causal() & Documents(np.arange(100_000) // 333),
    (Causal() & SlidingWindow(left=64)) | Padding(4),
]


@pytest.mark.parametrize("mask", REGULAR, ids=range(len(REGULAR)))
def test_regular_masks_take_memory_by_rows_not_by_keys(mask: Mask) -> None:
    for q_len, kv_len in [(1000, 1000), (1000, 100_000), (8000, 8000)]:
        assert mask.plan(q_len, kv_len).nbytes <= 64 * q_len + 4096


def test_noise_takes_a_bit_a_key(rng: np.random.Generator) -> None:
    plan = Dense(rng.random((512, 4096)) < 0.5).plan(512, 4096)
    assert 512 * 4096 / 8 <= plan.nbytes <= 512 * 4096 / 8 + 64 * 512


def test_a_plan_outside_its_rows_is_an_index_error() -> None:
    plan = Causal().plan(2, 3)
    for row in [(1, 0, 0), (0, 1, 0), (0, 0, 2), (0, 0, -1)]:
        with pytest.raises(IndexError, match="row"):
            plan.spans(*row)


# Algebra


@pytest.mark.parametrize("mask", [~Full(), ~Causal(), ~Padding(1), ~Dense(np.zeros((3, 8), bool)), ~~Full()], ids=repr)
def test_not_never_shows_keys_that_do_not_exist(mask: Mask) -> None:
    seen = mask.to_bool(3, 8, kv_lengths=[0, 5, 8], batch=3)
    assert not seen[0].any()
    assert not seen[1, ..., 5:].any()
    assert mask.to_ignore(3, 8, kv_lengths=[0, 5, 8], batch=3)[1, ..., 5:].all()


@pytest.mark.parametrize("other", [True, None, 3, "causal", np.ones((2, 2), bool)], ids=repr)
def test_masks_combine_with_masks_only(other: Any) -> None:
    with pytest.raises(TypeError):
        Causal() & other
    with pytest.raises(TypeError):
        Causal() | other


def test_masks_that_are_combined_agree_in_batch_and_heads() -> None:
    with pytest.raises(ValueError, match=r"batch.* 2 and 3"):
        (Padding([1, 2]) & PrefixLM([1, 2, 3])).to_bool(2, 2)
    two, three = Dense(np.ones((1, 2, 1, 1), bool)), Dense(np.ones((1, 3, 1, 1), bool))
    with pytest.raises(ValueError, match=r"head.* 2 and 3"):
        (two | three).to_bool(2, 2)


# Geometry


def test_default_alignment_is_bottom_right() -> None:
    assert rows(Causal(), 2, 4) == ["xxx.", "xxxx"]
    assert rows(Causal(), 2, 4, q_offset=2) == ["xxx.", "xxxx"]
    assert rows(Causal(), 4, 2) == ["..", "..", "x.", "xx"]  # the first two stand before the first key


def test_offset_zero_is_top_left() -> None:
    assert rows(Causal(), 2, 4, q_offset=0) == ["x...", "xx.."]
    assert rows(Causal(), 4, 2, q_offset=0) == ["x.", "xx", "xx", "xx"]


def test_negative_and_far_offsets() -> None:
    assert rows(Causal(), 3, 3, q_offset=-2) == ["...", "...", "x.."]
    assert rows(SlidingWindow(1, 1), 2, 3, q_offset=-1) == ["x..", "xx."]
    assert rows(Causal(), 1, 3, q_offset=2**40) == ["xxx"]
    assert rows(SlidingWindow(1, 1), 1, 3, q_offset=2**40) == ["..."]
    assert rows(Causal(), 1, 3, q_offset=-(2**40)) == ["..."]
    assert rows(Documents([1, 1, 1]), 2, 3, q_offset=-1) == ["...", "xxx"]  # before the start is in no document


def test_lengths_move_the_queries_and_end_the_keys() -> None:
    seen = Causal().to_bool(2, 4, batch=2, kv_lengths=[2, 3])
    assert seen[:, 0].astype(int).tolist() == [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 0, 0], [1, 1, 1, 0]]]
    seen = Causal().to_bool(2, 4, batch=2, kv_lengths=[2, 3], q_offset=[0, 2])
    assert seen[:, 0].astype(int).tolist() == [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 0]]]


@given(geometries_and_masks())
def test_one_offset_and_length_for_all_is_the_same_as_one_each(drawn: tuple[Geometry, Mask]) -> None:
    g, mask = drawn
    one = {
        "kv_lengths": g.kv_len if g.kv_lengths is None else int(np.ravel(g.kv_lengths)[0]),
        "q_offset": None if g.q_offset is None else int(np.ravel(g.q_offset)[0]),
    }
    want = mask.to_bool(g.q_len, g.kv_len, batch=g.batch, heads=g.heads, **one)
    for kind in (list, np.array, lambda x: np.array(x, np.int32)):
        each = {name: None if x is None else kind([x] * g.batch) for name, x in one.items()}
        np.testing.assert_array_equal(mask.to_bool(g.q_len, g.kv_len, batch=g.batch, heads=g.heads, **each), want)


def test_a_mask_without_parameters_per_sequence_serves_any_batch() -> None:
    assert Causal().to_bool(2, 2, batch=3, heads=5).shape == (3, 5, 2, 2)
    assert Padding([1, 2]).to_bool(2, 2).shape == (2, 1, 2, 2)
    assert Dense(np.ones((2, 3, 1, 1), bool)).to_bool(2, 2).shape == (2, 3, 2, 2)


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("mask", [*SCALAR_LEAVES, ~Causal(), Causal() & Dense(np.array(True)[None])], ids=repr)
def test_empty_lengths(mask: Mask, q_len: int, kv_len: int) -> None:
    assert mask.to_bool(q_len, kv_len).shape[2:] == (q_len, kv_len)


def test_masks_of_no_keys() -> None:
    none = np.zeros(0, int)
    for mask in (KeyPadding(none == 1), KeyPadding(none[None] == 1), Documents(np.zeros(3, int), none)):
        assert mask.to_bool(3, 0).shape == (1, 1, 3, 0)
    assert Documents(none).to_bool(0, 0).shape == (1, 1, 0, 0)


def test_an_empty_batch() -> None:
    assert Causal().to_bool(2, 3, batch=0).shape == (0, 1, 2, 3)
    assert Causal().to_bool(2, 3, heads=0).shape == (1, 0, 2, 3)


# out=


@pytest.mark.parametrize(
    ("export", "dtype"),
    [("to_bool", np.bool_), ("to_ignore", np.bool_), *(("to_additive", dtype) for dtype in FLOATS)],
)
def test_out_is_filled_and_returned(export: str, dtype: Any) -> None:
    mask, arguments = Causal() | Padding(2), (5, 70) if dtype is np.bool_ else (5, 70, dtype)
    out = np.ones((2, 3, 5, 70), dtype)
    assert getattr(mask, export)(*arguments, batch=2, heads=3, out=out) is out
    assert out.tobytes() == getattr(mask, export)(*arguments, batch=2, heads=3).tobytes()


def unaligned(shape: tuple[int, ...], dtype: Any, offset: int) -> tuple[Any, bytearray]:
    """An array that begins ``offset`` bytes inside a buffer of ones, and the buffer, which ends 99 bytes after it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = bytearray(b"\1" * (offset + size + 99))
    return np.frombuffer(buffer, np.uint8, size, offset).view(dtype).reshape(shape), buffer


NOISE = np.random.default_rng(5).random((1, 1, 1, 4099)) < 0.5
MATERIALISED: dict[str, Mask] = {
    "causal": Causal(),
    "window": Causal() & SlidingWindow(60),
    "documents": Documents(np.arange(1 << 20) // 37) & Causal(),
    "prefix": PrefixLM(1001),
    "full": Full(),
    "none": ~Full(),
    "comb": Dilated(5, 7) | FirstTokens(3),
    "noise": Dense(NOISE) & Causal(),
    "noise and gaps": Dense(NOISE) & ~Padding(70) & (Causal() | Padding(1000)),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("large", [False, True], ids=["in the caches", "past them"])
@pytest.mark.parametrize("name", MATERIALISED)
def test_every_byte_of_out_and_no_other_is_written(name: str, large: bool, threads: int) -> None:
    mask, kv_len, before = MATERIALISED[name], 4099, maskattn.num_threads()
    maskattn.set_num_threads(threads)
    try:
        for at, dtype in enumerate([np.bool_, *FLOATS]):
            q_len = (9 << 20) // (kv_len * np.dtype(dtype).itemsize) if large else 40
            offset = [0, 1, 3, 16, 61][(at + threads + len(name)) % 5]
            out, buffer = unaligned((1, 1, q_len, kv_len), dtype, offset)
            want = oracle.visible(mask, q_len, kv_len)
            if dtype is np.bool_:
                mask.to_bool(q_len, kv_len, out=out)
                np.testing.assert_array_equal(out, want)
                mask.to_ignore(q_len, kv_len, out=out)
                np.testing.assert_array_equal(out, ~want)
            else:
                mask.to_additive(q_len, kv_len, dtype, out=out)
                assert out.tobytes() == np.where(want, 0, -np.inf).astype(dtype).tobytes()
            assert set(buffer[:offset]) <= {1}
            assert set(buffer[-99:]) == {1}
    finally:
        maskattn.set_num_threads(before)


@given(geometries_and_masks())
def test_bits_are_the_packed_bools(drawn: tuple[Geometry, Mask]) -> None:
    g, mask = drawn
    got = mask.to_bits(g.q_len, g.kv_len, **g.options())
    assert got.dtype == np.uint8
    want = np.packbits(mask.to_bool(g.q_len, g.kv_len, **g.options()), axis=-1, bitorder="little")
    np.testing.assert_array_equal(got, want)
    out, buffer = unaligned(want.shape, np.uint8, 3)
    assert mask.to_bits(g.q_len, g.kv_len, **g.options(), out=out) is out
    np.testing.assert_array_equal(out, want)
    assert set(buffer[:3] + buffer[-99:]) == {1}


def test_bits_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^out must be a writeable C-contiguous array of shape \(1, 1, 2, 2\), got"):
        Causal().to_bits(2, 9, out=np.zeros((1, 1, 2, 9), np.uint8))
    with pytest.raises(TypeError, match=r"^out must be a uint8 array, got bool"):
        Causal().to_bits(2, 9, out=np.zeros((1, 1, 2, 2), bool))  # type: ignore[arg-type]


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "error", "got"),
    [
        (np.ones((1, 1, 2, 3), np.float32), TypeError, "float32"),
        ([[True]], TypeError, "list"),
        (np.ones((1, 1, 3, 2), bool), ValueError, r"\(1, 1, 3, 2\)"),
        (np.ones((2, 3), bool), ValueError, r"\(2, 3\)"),
        (np.ones((1, 1, 2, 6), bool)[..., ::2], ValueError, "contiguous"),
        (read_only(np.ones((1, 1, 2, 3), bool)), ValueError, "writeable"),
    ],
)
def test_out_that_does_not_fit(out: Any, error: type[Exception], got: str) -> None:
    with pytest.raises(error, match=f"out.*{got}"):
        Causal().to_bool(2, 3, out=out)
    assert np.all(out)


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.int8, np.complex64, "S4", np.longdouble])
def test_additive_needs_a_type_with_minus_infinity(dtype: Any) -> None:
    with pytest.raises(TypeError, match="dtype"):
        Causal().to_additive(2, 2, dtype)


# Objects: text, equality, immutability


@pytest.mark.parametrize("mask", SCALAR_LEAVES, ids=repr)
def test_repr_of_a_leaf_rebuilds_it(mask: Mask) -> None:
    again = eval(repr(mask), {name: getattr(masks, name) for name in masks.__all__})
    assert again == mask
    assert hash(again) == hash(mask)
    assert type(again) is type(mask)


@st.composite
def scalar_expressions(draw: st.DrawFn) -> Mask:
    leaf = st.one_of(
        st.sampled_from([Full(), Causal(), SlidingWindow(1, 2)]),
        st.builds(Padding, per_sequence(2, 0, 6)),
        st.builds(PrefixLM, per_sequence(2, 0, 6)),
    )
    return draw(st.recursive(leaf, lambda m: (st.tuples(m, m).map(lambda p: p[0] & p[1])
                                              | st.tuples(m, m).map(lambda p: p[0] | p[1])
                                              | m.map(lambda p: ~p)), max_leaves=6))  # fmt: skip


@given(scalar_expressions())
def test_repr_of_an_expression_rebuilds_it(mask: Mask) -> None:
    again = eval(repr(mask), {name: getattr(masks, name) for name in masks.__all__})
    assert repr(again) == repr(mask)
    np.testing.assert_array_equal(again.to_bool(5, 6, batch=2), mask.to_bool(5, 6, batch=2))


def test_repr_reads_as_written() -> None:
    assert repr(~(Causal() | Padding(2)) & Full()) == "~(Causal() | Padding(lengths=2, side='right')) & Full()"
    assert repr(Causal() & (Full() | ~Causal())) == "Causal() & (Full() | ~Causal())"


@pytest.mark.parametrize("mask", [*SCALAR_LEAVES, Causal() & Full(), ~Causal(), KeyPadding(np.array([True]))], ids=repr)
def test_fields_cannot_be_set(mask: Mask) -> None:
    for field in dataclasses.fields(mask):  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(mask, field.name, 0)


def test_arrays_given_to_a_mask_may_change_afterwards() -> None:
    keep, ids, lengths, pairs = np.ones(4, bool), np.zeros(4, np.int64), np.array([3, 4]), np.ones((4, 4), bool)
    all_masks = [KeyPadding(keep), Documents(ids), Padding(lengths), Dense(pairs)]
    before = [mask.to_bool(4, 4) for mask in all_masks]
    keep[:], ids[:], lengths[:], pairs[:] = False, np.arange(4), 0, False
    for mask, want in zip(all_masks, before, strict=True):
        np.testing.assert_array_equal(mask.to_bool(4, 4), want)
    for array in (all_masks[0].keep, all_masks[1].ids):  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


@pytest.mark.parametrize("stride", [1, 2, -1])
def test_dense_takes_any_strides(stride: int, rng: np.random.Generator) -> None:
    keep = (rng.random((6, 2 * 70)) < 0.5)[::stride, ::stride][:3, :70]
    np.testing.assert_array_equal(Dense(keep).to_bool(3, 70)[0, 0], keep)
    np.testing.assert_array_equal(Dense(keep.T).to_bool(70, 3)[0, 0], keep.T)
    wide = np.broadcast_to(keep[:1], (9, 70))
    np.testing.assert_array_equal(Dense(wide).to_bool(9, 70)[0, 0], wide)


# Bad parameters


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: SlidingWindow(-1), ValueError, "left.*-1"),
        (lambda: SlidingWindow(0, -2), ValueError, "right.*-2"),
        (lambda: SlidingWindow(1.5), TypeError, "left.*float"),
        (lambda: SlidingWindow(2**31), ValueError, "left.*2147483648"),
        (lambda: Padding(-1), ValueError, "lengths.*-1"),
        (lambda: Padding([1, -2]), ValueError, "lengths.*-2"),
        (lambda: Padding([]), ValueError, r"lengths.*\(0,\)"),
        (lambda: Padding([1.0, 2.0]), ValueError, "lengths.*float64"),
        (lambda: Padding(2.0), TypeError, "lengths.*float"),
        (lambda: Padding([[1, 2]]), ValueError, r"lengths.*\(1, 2\)"),
        (lambda: PrefixLM(None), TypeError, "lengths.*NoneType"),
        (lambda: KeyPadding(np.ones(3)), TypeError, "keep.*float64"),
        (lambda: KeyPadding(np.ones((1, 2, 3), bool)), ValueError, r"keep.*\(1, 2, 3\)"),
        (lambda: KeyPadding(np.ones((0, 3), bool)), ValueError, r"keep.*\(0, 3\)"),
        (lambda: Documents([0.5, 1.0]), TypeError, "ids.*float64"),
        (lambda: Documents([1], [0.5]), TypeError, "kv_ids.*float64"),
        (lambda: Documents([[1], [2]], [[1], [2], [3]]), ValueError, "kv_ids.*2.*3"),
        (lambda: Documents(np.zeros((1, 1, 1), int)), ValueError, r"ids.*\(1, 1, 1\)"),
        (lambda: Dense(np.ones((2, 2))), TypeError, "mask.*float64"),
        (lambda: Dense(np.ones((2, 2), np.uint8)), TypeError, "mask.*uint8"),
        (lambda: Dense(np.array(True)), ValueError, r"mask.*\(\)"),
        (lambda: Dense(np.ones((1, 1, 1, 2, 2), bool)), ValueError, r"mask.*\(1, 1, 1, 2, 2\)"),
        (lambda: Dense.from_ignore(np.ones((2, 2))), TypeError, "ignore.*float64"),
    ],
)
def test_bad_parameters(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


# Docstrings


@pytest.mark.parametrize("name", [name for _, name, _ in pkgutil.iter_modules(masks.__path__)])
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"maskattn.masks.{name}")).failed == 0


@pytest.mark.parametrize("kind", sorted(set(masks.__all__) - {"All", "Any", "Mask", "Not"}))
def test_every_mask_has_an_example(kind: str) -> None:
    assert ">>> " in (getattr(masks, kind).__doc__ or "")


# What a plan tells without being materialised


def test_tiles_of_a_size_below_one() -> None:
    with pytest.raises(ValueError, match=r"^q_size and kv_size must be at least 1, got \(0, 64\)"):
        Causal().plan(3, 3).tiles(0)


def test_a_regular_plan_of_a_million_tokens_is_small() -> None:
    n = 1 << 20
    mask = Causal() & SlidingWindow(4095) & Documents(np.arange(n) // 512)
    assert mask.plan(n, n).nbytes < 64 << 20


def test_plans_of_other_extents() -> None:
    a, b = Causal().plan(3, 4), Causal().plan(3, 5)
    assert a != b
    assert a != "a plan"
    assert Causal().plan(3, 4) == SlidingWindow(right=0).plan(3, 4)
    assert Causal().plan(3, 4, q_offset=9) == Full().plan(3, 4)  # what is seen counts, not from where
    with pytest.raises(ValueError, match=r"^other must be a plan of the same batch"):
        a.is_subset(b)
