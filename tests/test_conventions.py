"""Masks as other libraries write them: what goes out comes back, what is wrong is refused, and the linter's findings.

That the libraries mean the same is tested in tests/parity/test_mask_conventions.py.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskattn
import oracle
from maskattn.masks import Causal, Dense, Documents, Full, KeyPadding, Mask, Padding, SlidingWindow
from maskattn.masks import conventions as c
from strategies import Geometry, expressions, geometries, normal

Array = Any
LOW = float(np.finfo(np.float32).min)
TRIL = np.tri(4, dtype=np.bool_)


def seen(mask: Mask, g: Geometry) -> Array:
    return np.broadcast_to(mask.to_bool(g.q_len, g.kv_len, **g.options()), (g.batch, g.heads, g.q_len, g.kv_len))


def rows_from_first_key(q_len: int, kv_len: int) -> Array:
    """key - row of every cell: what a "top-left" library looks at."""
    return np.arange(kv_len) - np.arange(q_len)[:, None]


@pytest.fixture
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


# What goes out comes back


@st.composite
def exported(draw: st.DrawFn) -> tuple[Geometry, Mask]:
    g = draw(geometries())
    return g, draw(expressions(g))


@given(exported())
def test_torch_sdpa_round_trip(problem: tuple[Geometry, Mask]) -> None:
    g, mask = problem
    array = c.to_torch_sdpa(mask, g.q_len, g.kv_len, **g.options())
    np.testing.assert_array_equal(seen(c.from_torch_sdpa(array), g), seen(mask, g))


@pytest.mark.usefixtures("quiet")
@given(exported())
def test_torch_mha_round_trip(problem: tuple[Geometry, Mask]) -> None:
    g, mask = problem
    options = g.options()
    heads = options.pop("heads")
    array = c.to_torch_mha(mask, g.q_len, g.kv_len, num_heads=heads, **options)
    assert array.shape in ((g.q_len, g.kv_len), (g.batch * heads, g.q_len, g.kv_len))
    np.testing.assert_array_equal(seen(c.from_torch_mha(array, num_heads=heads), g), seen(mask, g))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dtype", [np.bool_, np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("hidden", ["min", "-inf"])
@given(exported())
def test_hf_round_trip(dtype: Any, hidden: str, problem: tuple[Geometry, Mask]) -> None:
    g, mask = problem
    array = c.to_hf(mask, g.q_len, g.kv_len, dtype, hidden=hidden, **g.options())
    assert array.dtype == dtype
    assert dtype == np.bool_ or np.isneginf(array.astype(np.float64)).any() <= (hidden == "-inf")
    np.testing.assert_array_equal(seen(c.from_hf(array), g), seen(mask, g))


@given(geometries(heads=1).flatmap(lambda g: st.tuples(st.just(g), expressions(g))))
def test_keras_round_trip(problem: tuple[Geometry, Mask]) -> None:
    g, mask = problem
    options = g.options()
    del options["heads"]
    array = c.to_keras(mask, g.q_len, g.kv_len, **options)
    assert array.shape == (g.batch, g.q_len, g.kv_len)
    np.testing.assert_array_equal(seen(c.from_keras(array), g), seen(mask, g))


@pytest.mark.parametrize("dtype", [np.bool_, np.float16, np.float32, ml_dtypes.bfloat16])
@given(exported())
def test_onnx_round_trip(dtype: Any, problem: tuple[Geometry, Mask]) -> None:
    g, mask = problem
    array = c.to_onnx(mask, g.q_len, g.kv_len, dtype, **g.options())
    assert array.dtype == dtype
    np.testing.assert_array_equal(seen(c.from_onnx(array, q_len=g.q_len, kv_len=g.kv_len), g), seen(mask, g))


@given(exported())
def test_additive_round_trip(problem: tuple[Geometry, Mask]) -> None:
    g, mask = problem
    array = mask.to_additive(g.q_len, g.kv_len, **g.options())
    np.testing.assert_array_equal(seen(c.from_additive(array), g), seen(mask, g))


# Alignment: rows counted from the first key

sizes = st.tuples(st.integers(0, 12), st.integers(0, 12))


@given(sizes)
def test_top_left_causal(size: tuple[int, int]) -> None:
    want = rows_from_first_key(*size) <= 0
    where = {"q_len": size[0], "kv_len": size[1]}
    for mask in (
        c.from_torch_sdpa(None, True, **where),
        c.from_keras(None, True, **where),
        c.from_jax(is_causal=True, **where),
        c.from_onnx(is_causal=1, **where),
    ):
        np.testing.assert_array_equal(mask.to_bool(*size)[0, 0], want)
        np.testing.assert_array_equal(oracle.visible(mask, *size)[0, 0], want)


@given(sizes, st.integers(-1, 6), st.integers(-1, 6), st.booleans(), st.integers(0, 5))
def test_onnx_windows(size: tuple[int, int], left: int, right: int, causal: bool, past: int) -> None:
    ahead = rows_from_first_key(*size) - past
    want = np.ones(ahead.shape, np.bool_)
    want &= (ahead >= -left) | (left == -1)
    want &= (ahead <= right) | (right == -1)
    want &= (ahead <= 0) | (not causal)
    mask = c.from_onnx(
        None, int(causal), q_len=size[0], kv_len=size[1], past_len=past, left_window_size=left, right_window_size=right
    )
    np.testing.assert_array_equal(mask.to_bool(*size)[0, 0], want)


@given(sizes, st.integers(0, 6), st.integers(0, 6))
def test_jax_windows(size: tuple[int, int], left: int, right: int) -> None:
    ahead = rows_from_first_key(*size)
    mask = c.from_jax(local_window_size=(left, right), q_len=size[0], kv_len=size[1])
    np.testing.assert_array_equal(mask.to_bool(*size)[0, 0], (ahead >= -left) & (ahead <= right))


def test_where_the_lengths_agree_the_masks_are_the_structured_ones() -> None:
    same = {"q_len": 7, "kv_len": 7}
    assert c.from_jax(local_window_size=3, **same) == SlidingWindow(left=3) & SlidingWindow(right=3)
    for size in ((4, 9), (9, 4), (5, 5)):
        assert "Dense" not in repr(c.from_torch_sdpa(None, True, q_len=size[0], kv_len=size[1]))
    assert c.from_torch_sdpa() == c.from_torch_mha() == c.from_hf() == c.from_keras() == c.from_jax() == Full()
    assert isinstance(c.from_hf(np.ones((2, 3), np.int64)), KeyPadding)
    assert isinstance(c.from_keras(np.ones((2, 3), np.bool_)), KeyPadding)
    assert isinstance(c.from_torch_mha(key_padding_mask=np.zeros((2, 3), np.bool_)), KeyPadding)
    assert isinstance(c.from_torch_sdpa(np.ones((2, 3), np.bool_)), Dense)


@pytest.mark.parametrize(
    ("arguments", "mask"),
    [
        ({}, Full()),
        ({"causal": True}, Causal()),
        ({"window_size": (3, 0)}, SlidingWindow(3, 0)),
        ({"window_size": (-1, 2)}, SlidingWindow(None, 2)),
        ({"window_size": (None, None)}, Full()),
        ({"causal": True, "window_size": (3, 5)}, Causal() & SlidingWindow(3, 5)),
    ],
)
def test_flash_attn(arguments: dict[str, Any], mask: Mask) -> None:
    assert c.from_flash_attn(**arguments) == mask


# What the arguments mean


def test_torch_mha_means_ignore() -> None:
    np.testing.assert_array_equal(c.from_torch_mha(~TRIL).to_bool(4, 4)[0, 0], TRIL)
    padding = np.array([[False, False, True], [False, True, True]])
    np.testing.assert_array_equal(c.from_torch_mha(None, padding).to_bool(2, 3)[:, 0, 0], ~padding)
    np.testing.assert_array_equal(c.from_torch_mha(None, padding[0]).to_bool(2, 3)[0, 0, 0], ~padding[0])


def test_torch_mha_takes_an_axis_of_sequences_and_heads(rng: np.random.Generator) -> None:
    ignore = rng.random((6, 4, 5)) < 0.5
    got = c.from_torch_mha(ignore, num_heads=3).to_bool(4, 5)
    np.testing.assert_array_equal(got, ~ignore.reshape(2, 3, 4, 5))


def test_hf_layers() -> None:
    padding = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    keys = padding[:, None, None].astype(np.bool_)
    ahead = rows_from_first_key(5, 5)
    causal = c.from_hf(padding, layer_type="full_attention").to_bool(5, 5)
    np.testing.assert_array_equal(causal, keys & (ahead <= 0))
    window = c.from_hf(padding, layer_type="sliding_attention", sliding_window=2).to_bool(5, 5)
    np.testing.assert_array_equal(window, keys & (ahead <= 0) & (ahead > -2))
    both_sides = c.from_hf(None, layer_type="sliding_attention", sliding_window=2, is_causal=False).to_bool(5, 5)
    np.testing.assert_array_equal(both_sides[0, 0], np.abs(ahead) <= 2)
    assert c.from_hf(None, layer_type="full_attention", is_causal=False) == Full()


def test_hf_pads_a_short_mask() -> None:
    got = c.from_hf(np.array([[1, 1]]), kv_len=4).to_bool(1, 4)
    np.testing.assert_array_equal(got[0, 0, 0], [True, True, False, False])


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (1, 2, 1, 3)])
def test_onnx_hides_what_a_short_last_axis_leaves_out(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    keep = rng.random(shape) < 0.5
    got = c.from_onnx(keep, q_len=5, kv_len=6).to_bool(5, 6)
    assert not got[..., 3:].any()
    np.testing.assert_array_equal(got[..., :3], np.broadcast_to(keep, (*got.shape[:-1], 3)))


def test_onnx_last_axis_of_one_is_the_first_key() -> None:
    got = c.from_onnx(np.ones((2, 1), np.bool_), q_len=2, kv_len=3).to_bool(2, 3)
    assert got[0, 0].tolist() == [[True, False, False]] * 2


@pytest.mark.parametrize("real", [[2, 5, 6], [4, 4]])
def test_onnx_nonpad_kv_seqlen_aligns_each_sequence(real: list[int]) -> None:
    mask = c.from_onnx(None, 1, q_len=3, kv_len=6, nonpad_kv_seqlen=np.array(real))
    want = (Causal()).to_bool(3, 6, batch=len(real), kv_lengths=real)
    np.testing.assert_array_equal(mask.to_bool(3, 6), want)


def test_jax_lengths() -> None:
    mask = c.from_jax(query_seq_lengths=np.array([1, 3]), key_value_seq_lengths=np.array([2, 4]), q_len=3, kv_len=4)
    got = mask.to_bool(3, 4)[:, 0]
    assert got[0].astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert got[1].all()


@pytest.mark.parametrize("low", [-1e4, -1e9, LOW, -0.7 * 3.4e38])
def test_finite_numbers_hide_with_a_warning(low: float) -> None:
    array = np.where(TRIL, 0, low).astype(np.float32)
    array[2] = low
    with pytest.warns(UserWarning, match=r"rows of finfo.min are not -inf.*Such rows in array: 1$") as caught:
        mask = c.from_additive(array)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(mask.to_bool(4, 4)[0, 0], TRIL & (np.arange(4) != 2)[:, None])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_finite_numbers_in_half_precision(dtype: Any) -> None:
    for low in (-1e4, float(ml_dtypes.finfo(dtype).min)):
        with pytest.warns(UserWarning, match="finite numbers"):
            mask = c.from_additive(np.where(TRIL, 0, low).astype(dtype))
        np.testing.assert_array_equal(mask.to_bool(4, 4)[0, 0], TRIL)


def test_warnings_point_at_the_caller() -> None:
    low = np.where(TRIL, 0, LOW).astype(np.float32)
    for call in (
        lambda: c.from_torch_sdpa(low),
        lambda: c.from_torch_mha(low),
        lambda: c.from_hf(low[None, None]),
        lambda: c.from_onnx(low, q_len=4, kv_len=4),
    ):
        with pytest.warns(UserWarning, match="finfo.min") as caught:
            call()
        assert caught[0].filename == __file__


def test_exporters_warn_of_rows_that_see_nothing() -> None:
    mask = Dense(TRIL & (np.arange(4) != 1)[:, None])
    with pytest.warns(UserWarning, match="NaN") as caught:
        c.to_torch_mha(mask, 4, 4, num_heads=2)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="attend to everything") as caught:
        c.to_hf(mask, 4, 4)
    assert caught[0].filename == __file__
    c.to_hf(mask, 4, 4, hidden="-inf")
    c.to_hf(mask, 4, 4, np.bool_)


def test_an_imported_mask_is_one_of_ours(rng: np.random.Generator) -> None:
    q = normal(rng, 1, 2, 4, 8)
    want = maskattn.attention(q, q, q, mask=Causal() & SlidingWindow(left=1))
    got = maskattn.attention(q, q, q, mask=c.from_torch_mha(~TRIL) & c.from_flash_attn(window_size=(1, -1)))
    np.testing.assert_array_equal(got, want)


class Tensor:
    """Something with ``__array__``, as tensors are."""

    def __init__(self, array: Array, error: Exception | None = None) -> None:
        self.array, self.error = array, error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self.error:
            raise self.error
        return self.array


def test_tensors_are_taken() -> None:
    np.testing.assert_array_equal(c.from_torch_sdpa(Tensor(TRIL)).to_bool(4, 4)[0, 0], TRIL)
    with pytest.raises(TypeError, match=r"attn_mask must be convertible .* on the CPU"):
        c.from_torch_sdpa(Tensor(TRIL, TypeError("can't convert cuda:0 device type tensor")))


# Errors: name, wanted, got, remedy

BIAS = np.linspace(-3, 0, 16, dtype=np.float32).reshape(4, 4)
INTS = TRIL.astype(np.int64)
FLOATS = TRIL.astype(np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: c.from_additive([[0.0]]), TypeError, "array must be a NumPy array, got list; pass np.asarray"),
        (lambda: c.from_additive(TRIL), TypeError, "array must be floats .* got bool; .*from_ignore"),
        (lambda: c.from_additive(BIAS), ValueError, r"got -3.0, .* pass the array as bias= to attention"),
        (lambda: c.from_additive(FLOATS), ValueError, "got 0 and 1: these are flags.*; pass the array as bool"),
        (lambda: c.from_additive(BIAS * np.nan), ValueError, "got nan.*np.where"),
        (lambda: c.from_torch_sdpa(INTS), TypeError, r"attn_mask must be bool .* got int64; pass .*astype\(bool\)"),
        (lambda: c.from_torch_sdpa(TRIL[0]), ValueError, r"attn_mask must broadcast .* got shape \(4,\)"),
        (lambda: c.from_torch_sdpa(BIAS), ValueError, "attn_mask must be 0 .* as bias="),
        (lambda: c.from_torch_sdpa(None, True), TypeError, "q_len must be given with is_causal, .* top-left"),
        (lambda: c.from_torch_sdpa(None, True, q_len=3), TypeError, "kv_len must be given"),
        (lambda: c.from_torch_sdpa(None, True, q_len=-1, kv_len=3), ValueError, "q_len must be from 0"),
        (lambda: c.from_torch_mha(INTS), TypeError, r"attn_mask must be bool \(True = ignore\) .* attn_mask == 0"),
        (lambda: c.from_torch_mha(TRIL[0]), ValueError, r"attn_mask must have shape \(q_len, kv_len\) or"),
        (lambda: c.from_torch_mha(TRIL[None]), TypeError, "num_heads must be given where"),
        (lambda: c.from_torch_mha(TRIL[None], num_heads=2), ValueError, "num_heads must divide .* 1, got 2"),
        (lambda: c.from_torch_mha(None, TRIL[None]), ValueError, "key_padding_mask must have shape"),
        (lambda: c.from_torch_mha(None, INTS), TypeError, "key_padding_mask must be bool"),
        (lambda: c.from_hf(TRIL[0]), ValueError, r"attention_mask must have shape \(batch, kv_len\) or"),
        (lambda: c.from_hf(BIAS), ValueError, r"0 and 1 only \(1 = keep\), got float32 .*from_additive"),
        (lambda: c.from_hf(INTS[None, None]), TypeError, "attention_mask of rank 4 must be bool"),
        (lambda: c.from_hf(layer_type="chunk"), ValueError, "layer_type must be None or one of full_attention, slid"),
        (lambda: c.from_hf(layer_type="sliding_attention"), ValueError, "sliding_window must be given with"),
        (lambda: c.from_hf(layer_type="full_attention", sliding_window=3), ValueError, "sliding_window must be given"),
        (lambda: c.from_hf(layer_type="sliding_attention", sliding_window=0), ValueError, "must be at least 1"),
        (lambda: c.from_hf(TRIL[None, None], layer_type="full_attention"), ValueError, "layer_type must be None with"),
        (lambda: c.from_keras(np.where(TRIL, 0, -np.inf)), ValueError, r"mask must hold 0 and 1 only .*from_additive"),
        (lambda: c.from_keras(TRIL[0]), ValueError, r"mask must have shape \(batch, kv_len\) or"),
        (lambda: c.from_keras(None, True), TypeError, "q_len must be given with use_causal_mask"),
        (lambda: c.from_onnx(TRIL, q_len=4, kv_len=3), ValueError, r"kv_len=3\), its last axis may be shorter, got"),
        (lambda: c.from_onnx(INTS, q_len=4, kv_len=4), TypeError, "attn_mask must be bool"),
        (
            lambda: c.from_onnx(None, q_len=4, kv_len=4, left_window_size=-2),
            ValueError,
            "left_window_size must be from",
        ),
        (
            lambda: c.from_onnx(None, 1, q_len=1, kv_len=4, past_len=3, nonpad_kv_seqlen=np.array([4])),
            ValueError,
            "past_len must be 0 with nonpad_kv_seqlen",
        ),
        (lambda: c.from_flash_attn(window_size=3), TypeError, r"window_size must be a pair \(left, right\), got 3"),
        (lambda: c.from_flash_attn(window_size=(-3, 0)), ValueError, r"window_size\[0\] must be from 0 .* got -3"),
        (lambda: c.from_jax(INTS), TypeError, "mask must be bool .* bias="),
        (lambda: c.from_jax(local_window_size=1), TypeError, "q_len must be given with local_window_size"),
        (lambda: c.from_jax(local_window_size=(1,), q_len=2, kv_len=2), ValueError, "local_window_size must be an int"),
        (lambda: c.to_torch_sdpa(TRIL, 4, 4), TypeError, "mask must be a Mask, got ndarray; wrap"),
        (lambda: c.to_torch_mha(TRIL, 4, 4, num_heads=1), TypeError, "mask must be a Mask"),
        (lambda: c.to_keras(Dense(np.ones((1, 2, 4, 4), np.bool_)), 4, 4), ValueError, "the same for every head, got"),
        (lambda: c.to_hf(Causal(), 4, 4, hidden="max"), ValueError, "hidden must be one of min, -inf, got 'max'"),
        (lambda: c.to_hf(Causal(), 4, 4, np.int32), TypeError, "dtype must be a floating type"),
    ],
)
def test_errors_say_what_is_wrong(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", [name for name in c.__all__ if re.match("from_|to_", name)])
def test_the_first_line_of_a_docstring_states_polarity(name: str) -> None:
    line = getattr(c, name).__doc__.splitlines()[0]
    assert re.search(r"keep|IGNORE|window_size counts the keys", line), line


# The linter


def kinds(report: c.Report) -> set[str]:
    return {finding.kind for finding in report.findings}


def remedies(report: c.Report) -> str:
    return "\n".join(finding.remedy for finding in report.findings)


@pytest.mark.parametrize("size", [2, 3, 4, 9])
def test_check_tells_keep_from_ignore_by_causality(size: int) -> None:
    keep = np.tri(size, dtype=np.bool_)
    for array, polarity, importer in ((keep, "keep", "from_torch_sdpa"), (~keep, "ignore", "Dense.from_ignore")):
        report = c.check(array)
        assert (report.form, report.polarity, report.certainty) == ("flags", polarity, "certain")
        assert (report.causal, report.alignment, report.window) == (True, "square", None)
        assert importer in report.importer
        assert "masks.Causal()" in remedies(report)
        assert "empty-rows" not in kinds(report)
    assert (c.check(keep).empty_rows_if_keep, c.check(keep).empty_rows_if_ignore) == (0, 1)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("size", [(3, 7), (5, 6), (7, 3), (4, 9)])
@pytest.mark.parametrize("alignment", ["top-left", "bottom-right"])
def test_check_tells_alignments(keep: bool, size: tuple[int, int], alignment: str) -> None:
    shift = 0 if alignment == "top-left" else size[1] - size[0]
    array = rows_from_first_key(*size) <= shift
    report = c.check(array if keep else ~array, *size)
    assert (report.polarity, report.causal, report.alignment) == ("keep" if keep else "ignore", True, alignment)
    assert report.padded_side is None


@pytest.mark.parametrize("polarity", ["keep", "ignore"])
def test_check_sees_windows(polarity: str) -> None:
    ahead = rows_from_first_key(8, 8)
    for keep, window, causal in (
        ((ahead <= 0) & (ahead >= -2), (2, 0), True),
        (np.abs(ahead) <= 1, (1, 1), False),
        ((ahead <= 2) & (ahead >= -1), (1, 2), False),
    ):
        report = c.check(keep if polarity == "keep" else ~keep)
        assert (report.polarity, report.window, report.causal) == (polarity, window, causal)
        assert "masks.SlidingWindow(" in remedies(report)


def test_check_sees_an_inverted_causal_mask() -> None:
    report = c.check(TRIL.T)
    assert "inverted-causal" in kinds(report)
    assert not report.causal
    assert "masks.Causal()" in remedies(report)


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float32])
def test_check_reads_a_tokenizer_mask(dtype: Any) -> None:
    right = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], dtype)
    report = c.check(right)
    assert (report.polarity, report.padded_side, report.lengths) == ("keep", "right", (2, 4))
    assert "from_hf" in report.importer
    assert "masks.Padding([2, 4])" in remedies(report)
    report = c.check(right[:, ::-1])
    assert (report.polarity, report.padded_side, report.lengths) == ("keep", "left", (2, 4))
    assert 'masks.Padding([2, 4], side="left")' in remedies(report)


def test_check_reads_a_key_padding_mask_of_torch() -> None:
    report = c.check(np.array([[0, 0, 1, 1], [0, 0, 0, 0]], np.bool_))
    assert (report.polarity, report.padded_side, report.lengths) == ("ignore", "right", (2, 4))
    assert "key_padding_mask" in report.importer


def test_check_does_not_know_where_nobody_can() -> None:
    """Left padding with True = keep, or right padding with True = ignore."""
    report = c.check(np.array([[0, 0, 1, 1], [0, 1, 1, 1]], np.bool_))
    assert (report.polarity, report.certainty) == ("unknown", "undecided")
    assert "from_hf" in report.importer
    assert "key_padding_mask" in report.importer


def test_check_asks_for_the_lengths_of_an_ambiguous_array() -> None:
    array = np.array([[1, 1, 0], [1, 1, 1]], np.bool_)
    assert "ambiguous" in kinds(c.check(array))
    as_matrix, as_keys = c.check(array, 2, 3), c.check(array, 5, 3)
    assert not {"ambiguous"} & (kinds(as_matrix) | kinds(as_keys))
    assert as_matrix.alignment == "bottom-right"
    assert as_keys.lengths == (2, 3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("heads", [1, 3])
def test_check_sees_padding_under_a_causal_mask(side: str, heads: int) -> None:
    keys = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], np.bool_)[:, None, None]
    keep = np.tri(5, dtype=np.bool_) & (keys if side == "right" else keys[..., ::-1])
    report = c.check(np.repeat(keep, heads, axis=1))
    assert (report.polarity, report.causal, report.padded_side, report.lengths) == ("keep", True, side, (2, 4))
    assert ("empty-rows" in kinds(report)) == (side == "left")
    assert report.empty_rows_if_keep == (4 * heads if side == "left" else 0)


def test_check_sees_causality_among_other_things() -> None:
    keep = (Causal() & Documents(np.array([0, 0, 0, 1, 1]))).to_bool(5, 5)
    report = c.check(keep)
    assert (report.polarity, report.causal, report.window, report.padded_side) == ("keep", True, None, None)
    assert "more than that" in str(report)


def test_check_reads_additive_masks() -> None:
    report = c.check(np.where(TRIL, 0, -np.inf))
    assert (report.form, report.polarity, report.causal) == ("additive", "keep", True)
    assert "from_additive" in report.importer
    assert "finite-low" not in kinds(report)
    low = np.where(TRIL, 0, LOW).astype(np.float32)
    assert "finite-low" in kinds(c.check(low))
    mixed = low.copy()
    mixed[0, 3] = -np.inf
    assert {"finite-low", "mixed"} <= kinds(c.check(mixed))
    assert "inverted" in kinds(c.check(np.where(TRIL, -np.inf, 0)))
    assert "zeros" in kinds(c.check(np.zeros((3, 3), np.float32)))
    assert c.check(low.astype(ml_dtypes.bfloat16)).form == "additive"


def test_check_finds_flags_as_floats() -> None:
    report = c.check(FLOATS)
    assert "float-flags" in kinds(report)
    assert "array.astype(bool)" in remedies(report)
    assert (report.form, report.polarity) == ("flags", "keep")
    assert "numbers" in kinds(c.check(INTS))


def test_check_knows_what_is_no_mask() -> None:
    assert (c.check(BIAS).form, kinds(c.check(BIAS))) == ("bias", {"bias"})
    assert "bias=" in c.check(BIAS).importer
    assert kinds(c.check(np.array([0, 0, 1, 2]))) == {"ids"}
    assert kinds(c.check(BIAS * np.nan)) == {"not-finite"}
    assert kinds(c.check(np.array(["a"]))) == {"dtype"}
    assert kinds(c.check(np.zeros((1,) * 5))) == {"shape"}
    assert kinds(c.check(np.zeros((0, 3), np.bool_))) == {"shape"}
    with pytest.raises(TypeError, match="array must be a NumPy array, got list"):
        c.check([True])  # type: ignore[arg-type]


def test_check_compares_the_shape() -> None:
    short = c.check(TRIL, 4, 6)
    assert "short" in kinds(short)
    assert "from_onnx" in remedies(short)
    assert "transposed" in kinds(c.check(np.ones((5, 3), np.bool_), 3, 5))
    assert "long" in kinds(c.check(TRIL, 4, 3))
    assert "rows" in kinds(c.check(np.ones((1, 4, 4), np.bool_), 3, 4))


def test_check_counts_empty_rows() -> None:
    report = c.check(np.zeros((1, 2, 3, 3), np.bool_) | (np.eye(3, dtype=np.bool_) & (np.arange(3) != 1)))
    assert (report.empty_rows_if_keep, report.empty_rows_if_ignore) == (2, 0)


@given(exported())
def test_check_says_something_of_any_mask(problem: tuple[Geometry, Mask]) -> None:
    g, mask = problem
    array = mask.to_bool(g.q_len, g.kv_len, **g.options())
    text = str(c.check(array, g.q_len, g.kv_len))
    assert text.startswith(f"bool array of shape {array.shape}: ")


def test_report_reads_well() -> None:
    padded = Padding([2, 3]).to_bool(1, 3)
    assert str(c.check(padded)) == (
        "bool array of shape (2, 1, 1, 3): flags, True (1) = keep (likely)\n"
        "  polarity: True (1) means keep: read the other way, some rows would see nothing (1)"
        " -> masks.from_torch_sdpa\n"
        "  padding: keys are padding on the right; real keys: 2, 3 -> masks.Padding([2, 3])\n"
        "  bring it in with masks.from_torch_sdpa(array)"
    )
