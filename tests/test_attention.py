"""attention() and attention_weights() against the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskattn
import oracle
from maskattn.masks import Causal, Dense, Documents, Full, KeyPadding, Mask, Padding, PrefixLM, SlidingWindow
from strategies import Array, Problem, normal, problems, qkv

# Absolute errors on standard normal inputs.
TOLERANCE = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 1e-12}
DTYPES = [np.float32, np.float64]

MASKS: list[Mask | None] = [
    None,
    Causal(),
    Causal() & SlidingWindow(left=17),
    SlidingWindow(3, 70),
    Causal() & Documents(np.arange(3000) // 37),
    PrefixLM(33) & ~Padding(2),
    Padding([0, 90]),
    KeyPadding(np.arange(3000) % 3 != 0) & Causal(),
    Dense(np.arange(3000).reshape(1, 1, 1, -1)[..., :90] % 7 == 0) | ~Causal(),
    ~Full(),
]


def visible(q: Array, k: Array, mask: Any, where: dict[str, Any]) -> Any:
    if isinstance(mask, np.ndarray):
        mask = Dense(mask)
    return oracle.visible(mask, q.shape[2], k.shape[2], batch=q.shape[0], heads=q.shape[1], **where)


def check(
    q: Array, k: Array, v: Array, *, mask: Any = None, bias: Any = None, scale: float | None = None, **options: Any
) -> Array:
    """attention() gives the oracle's output and LSE; options are q_offset, kv_lengths, threads and out."""
    where = {name: options[name] for name in ("q_offset", "kv_lengths") if name in options}
    want, want_lse, _ = oracle.attention(q, k, v, visible(q, k, mask, where), bias=bias, scale=scale)
    got, lse = maskattn.attention(q, k, v, mask=mask, bias=bias, scale=scale, return_lse=True, **options)
    assert got.dtype == lse.dtype == q.dtype
    atol = TOLERANCE[q.dtype]
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)
    np.testing.assert_allclose(lse, want_lse, rtol=0, atol=atol)
    return got


# Shapes


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_head_dim_up_to_256(isa: str, dtype: Any, rng: np.random.Generator) -> None:
    for head_dim in range(1, 257):
        check(*qkv(rng, 1, 2, 1, 5, 67, head_dim, dtype=dtype), mask=Causal())


@pytest.mark.parametrize("v_head_dim", [0, 1, 3, 15, 16, 17, 31, 40, 64, 65, 130, 256, 300])
def test_values_may_have_another_dimension(isa: str, v_head_dim: int, rng: np.random.Generator) -> None:
    for dtype in DTYPES:
        check(*qkv(rng, 1, 2, 2, 9, 70, 12, v_head_dim, dtype), mask=Causal())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_len", [0, 1, 2, 7, 33, 200])
@pytest.mark.parametrize("kv_len", [0, 1, 2, 63, 64, 65, 255, 256, 257, 513])
def test_lengths(isa: str, dtype: Any, q_len: int, kv_len: int, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 2, 2, 1, q_len, kv_len, 8, dtype=dtype)
    check(*arrays)
    check(*arrays, mask=Causal())


@pytest.mark.parametrize("group", range(1, 9))
def test_query_heads_that_share_a_key_head(isa: str, group: int, rng: np.random.Generator) -> None:
    for q_len in (1, 30):
        check(*qkv(rng, 2, 3 * group, 3, q_len, 130), mask=Causal())


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_past_4096_keys(isa: str, dtype: Any, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 1, 4, 2, 1, 4133, 64, dtype=dtype)
    for threads in (1, 2):
        check(*arrays, threads=threads)
        check(*arrays, mask=SlidingWindow(left=1000), threads=threads)


def test_prefill_past_4096_keys(isa: str, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 1, 1, 1, 4133, 4133, 8)
    for mask in (Causal(), Causal() & SlidingWindow(left=256)):
        got, lse = maskattn.attention(q, k, v, mask=mask, return_lse=True)
        for i in (0, 1, 255, 256, 2000, 4095, 4096, 4132):
            seen = oracle.visible(mask, 1, 4133, q_offset=i)
            want, want_lse, _ = oracle.attention(q[:, :, i : i + 1], k, v, seen)
            np.testing.assert_allclose(got[:, :, i : i + 1], want, rtol=0, atol=4e-6)
            np.testing.assert_allclose(lse[:, :, i : i + 1], want_lse, rtol=0, atol=4e-6)


@pytest.mark.parametrize(
    "shape", [(0, 2, 2, 3, 4), (2, 2, 2, 0, 4), (2, 2, 2, 3, 0), (2, 2, 2, 0, 0)], ids=["batch", "q", "kv", "q-and-kv"]
)
def test_nothing_at_all(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    arrays = qkv(rng, *shape)
    for mask in (None, Causal(), ~Causal()):
        assert check(*arrays, mask=mask).shape == (shape[0], 2, shape[3], 16)
        assert maskattn.attention_weights(*arrays[:2], mask=mask).shape == (shape[0], 2, shape[3], shape[4])


# Masks, lengths, offsets


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
def test_masks(isa: str, dtype: Any, mask: Mask | None, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 2, 4, 2, 40, 90, 24, dtype=dtype)
    check(*arrays, mask=mask)
    check(*arrays, mask=mask, kv_lengths=[90, 31])
    check(*arrays, mask=mask, q_offset=0)
    check(*arrays, mask=mask, q_offset=[-20, 60], kv_lengths=np.array([0, 80], np.int32))


@pytest.mark.parametrize(
    "shape", [(70,), (1,), (5, 70), (5, 1), (4, 1, 70), (2, 1, 5, 70), (2, 4, 5, 70), (1, 1, 1, 1)]
)
def test_bool_arrays_are_masks(isa: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    keep = rng.random(shape) < 0.6
    check(*qkv(rng, 2, 4, 2, 5, 70), mask=keep)
    check(*qkv(rng, 2, 4, 2, 5, 70), mask=~keep, kv_lengths=[3, 66])


def test_a_plan_serves_many_calls(isa: str, rng: np.random.Generator) -> None:
    mask = Causal() & SlidingWindow(left=20) | Padding(3)
    plan = mask.plan(30, 90, kv_lengths=80)
    for _ in range(3):  # layers
        q, k, v = qkv(rng, 2, 4, 2, 30, 90)
        want = check(q, k, v, mask=mask, kv_lengths=80)
        for where in ({}, {"kv_lengths": 80}, {"q_offset": 50}, {"kv_lengths": 80, "q_offset": 50}):
            assert maskattn.attention(q, k, v, mask=plan, **where).tobytes() == want.tobytes()
        weights = maskattn.attention_weights(q, k, mask=mask, kv_lengths=80)
        assert maskattn.attention_weights(q, k, mask=plan).tobytes() == weights.tobytes()


def test_a_plan_per_sequence_and_head(isa: str, rng: np.random.Generator) -> None:
    mask = Padding([9, 60]) & Dense(rng.random((1, 4, 5, 70)) < 0.5)
    plan = mask.plan(5, 70, kv_lengths=[70, 50])
    assert (plan.batch, plan.heads) == (2, 4)
    q, k, v = qkv(rng, 2, 4, 2, 5, 70)
    want = check(q, k, v, mask=mask, kv_lengths=[70, 50])
    assert maskattn.attention(q, k, v, mask=plan).tobytes() == want.tobytes()


# Scale and bias


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 0.5, -0.3, 0, 0.0, 1e-60, np.float32(0.25)])
def test_scale(isa: str, dtype: Any, scale: float, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 1, 2, 1, 20, 75, 8, dtype=dtype)
    for mask in (None, Causal(), Causal() & ~Padding(3)):
        check(*arrays, scale=scale, mask=mask)
        check(*arrays, scale=scale, mask=mask, bias=normal(rng, 75, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(70,), (1,), (), (5, 70), (5, 1), (4, 1, 70), (4, 1, 1), (2, 1, 1, 70), (2, 4, 5, 70), (1, 1, 1, 1)]
)
def test_bias_of_every_shape_that_broadcasts(
    isa: str, dtype: Any, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    arrays = qkv(rng, 2, 4, 2, 5, 70, dtype=dtype)
    bias = normal(rng, *shape, dtype=dtype)
    check(*arrays, bias=bias)
    check(*arrays, bias=bias, mask=Causal(), kv_lengths=[70, 66])
    bias[rng.random(shape) < 0.5] = -np.inf
    check(*arrays, bias=bias)
    check(*arrays, bias=bias, mask=Causal(), kv_lengths=[70, 3])


def test_bias_of_any_strides(isa: str, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 2, 4, 2, 5, 70)
    wide = normal(rng, 70, 5, 4, 2)
    for bias in (wide.T, wide.T[::-1, ::-1, ::-1, ::-1], np.repeat(wide.T, 2, axis=3)[..., ::2]):
        check(*arrays, bias=bias, mask=Causal())
    check(*arrays, bias=np.broadcast_to(wide.T[:1, :1], (2, 4, 5, 70)))


def test_rows_that_the_bias_hides(isa: str, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 1, 2, 2, 4, 300)
    bias = np.zeros((4, 300), np.float32)
    bias[1] = -np.inf
    got, lse = maskattn.attention(q, k, v, bias=bias, return_lse=True)
    assert not got[:, :, 1].any()
    assert np.isneginf(lse[:, :, 1]).all()
    check(q, k, v, bias=bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("low", [-1e4, -1e9, -1e20, -1e30])
def test_large_negative_numbers_hide_as_additive_masks_elsewhere_do(
    isa: str, dtype: Any, low: float, rng: np.random.Generator
) -> None:
    arrays = qkv(rng, 1, 2, 1, 6, 80, dtype=dtype)
    bias = Causal().to_additive(6, 80, dtype)
    bias[np.isneginf(bias)] = low
    check(*arrays, bias=bias)
    np.testing.assert_allclose(
        maskattn.attention(*arrays, bias=bias),
        maskattn.attention(*arrays, mask=Causal()),
        rtol=0,
        atol=TOLERANCE[np.dtype(dtype)],
    )


@pytest.mark.parametrize("low", [-1e9, -1e20, -1e30])
def test_a_row_of_large_biases_is_not_a_hidden_row(isa: str, low: float, rng: np.random.Generator) -> None:
    """Finite numbers hide nothing: beside them the scores vanish, and what is left is the mean over the largest."""
    q, k, v = qkv(rng, 1, 2, 2, 3, 80)
    bias = np.full(80, low, np.float32)
    bias[:40] *= 2
    got = maskattn.attention(q, k, v, bias=bias)
    want = np.broadcast_to(v[:, :, 40:].mean(axis=2, keepdims=True), got.shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-6)


def test_large_scores(isa: str, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 1, 1, 1, 7, 300, 16)
    q *= 1000
    want, want_lse, _ = oracle.attention(q, k, v, visible(q, k, None, {}))
    got, lse = maskattn.attention(q, k, v, return_lse=True)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3)  # scores of 3000 have seven digits
    np.testing.assert_allclose(lse, want_lse, rtol=1e-6, atol=0)


# Memory layouts


def transposed(rng: np.random.Generator, b: int, h: int, n: int, d: int) -> Array:
    """As a linear layer writes it: (batch, length, heads, dim)."""
    return normal(rng, b, n, h, d).transpose(0, 2, 1, 3)


def sliced(rng: np.random.Generator, b: int, h: int, n: int, d: int) -> Array:
    """Every other head and row, and a few coordinates, of a bigger array."""
    return normal(rng, b, 2 * h, 3 * n + 2, d + 5)[:, 1::2, 2::3, 2 : d + 2]


def backwards(rng: np.random.Generator, b: int, h: int, n: int, d: int) -> Array:
    return normal(rng, b, h, n, d)[::-1, ::-1, ::-1]


def repeated(rng: np.random.Generator, b: int, h: int, n: int, d: int) -> Array:
    """The same rows for every sequence and head: strides 0."""
    return np.broadcast_to(normal(rng, n, d), (b, h, n, d))


def one_row(rng: np.random.Generator, b: int, h: int, n: int, d: int) -> Array:
    return np.broadcast_to(normal(rng, b, h, 1, d), (b, h, n, d))


@pytest.mark.parametrize("layout", [transposed, sliced, backwards, repeated, one_row])
@pytest.mark.parametrize("dim", [5, 32])
def test_views_are_read_where_they_are(isa: str, layout: Any, dim: int, rng: np.random.Generator) -> None:
    q, k, v = layout(rng, 3, 4, 9, dim), layout(rng, 3, 2, 140, dim), layout(rng, 3, 2, 140, dim)
    got = maskattn.attention(q, k, v, mask=Causal())
    if layout is not one_row:  # equal values are no standard normal ones: their rounding errors add up
        check(q, k, v, mask=Causal())
    assert got.tobytes() == maskattn.attention(*(x.copy() for x in (q, k, v)), mask=Causal()).tobytes()
    out = layout(rng, 3, 4, 9, dim)
    if out.flags.writeable:
        assert maskattn.attention(q, k, v, mask=Causal(), out=out) is out
        np.testing.assert_array_equal(out, got)


def test_a_view_is_written_and_nothing_around_it(isa: str, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 2, 3, 3, 5, 9, 7)
    around = np.full((2, 5, 6, 20), 77, np.float32)
    out = around[:, :, ::2, 5:12].transpose(0, 2, 1, 3)
    maskattn.attention(q, k, v, out=out)
    np.testing.assert_array_equal(out, maskattn.attention(q, k, v))
    out[:] = 77
    assert (around == 77).all()


def test_fortran_order_of_one_dimension_is_contiguous(isa: str, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 2, 2, 1, 3, 20, head_dim=1)
    check(*(np.asfortranarray(x) for x in arrays))


# out, return_lse, threads


def test_out_is_written_and_returned(isa: str, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 2, 4, 2, 5, 9)
    want, want_lse = maskattn.attention(q, k, v, return_lse=True)
    out = np.full_like(want, np.nan)
    assert maskattn.attention(q, k, v, out=out) is out
    assert out.tobytes() == want.tobytes()
    got, lse = maskattn.attention(q, k, v, out=out, return_lse=True)
    assert got is out
    assert lse.tobytes() == want_lse.tobytes()


def test_values_of_ones_give_ones(isa: str, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 1, 2, 2, 50, 700)
    got = maskattn.attention(q, k, np.ones_like(v), mask=Causal())
    np.testing.assert_allclose(got, 1, rtol=0, atol=1e-6)


def test_inputs_are_not_changed(rng: np.random.Generator) -> None:
    arrays = qkv(rng, 1, 2, 1, 5, 9)
    bias, keep = normal(rng, 5, 9), rng.random((5, 9)) < 0.5
    before = [x.copy() for x in (*arrays, bias, keep)]
    for x in (*arrays, bias, keep):
        x.flags.writeable = False
    maskattn.attention(*arrays, bias=bias, mask=keep, scale=-1)
    for x, y in zip((*arrays, bias, keep), before, strict=True):
        np.testing.assert_array_equal(x, y)


# All of it together


@given(problem=problems(), scale=st.sampled_from([None, 1 / 16, -0.1]), threads=st.integers(1, 3))
def test_any_shape_and_mask(isa: str, problem: Problem, scale: float | None, threads: int) -> None:
    p = problem
    check(p.q, p.k, p.v, mask=p.mask, bias=p.bias, scale=scale, threads=threads, **p.where())


# attention_weights


@given(problem=problems(), scale=st.sampled_from([None, 1 / 16, -0.1]))
def test_weights_at_every_stage(isa: str, problem: Problem, scale: float | None) -> None:
    p, atol = problem, TOLERANCE[problem.q.dtype]
    seen, exist = (visible(p.q, p.k, mask, p.where()) for mask in (p.mask, None))

    def weights(stage: Any) -> Array:
        return maskattn.attention_weights(
            p.q, p.k, stage=stage, mask=p.mask, bias=p.bias, scale=scale, **p.where()
        )  # fmt: skip

    scores = np.where(exist, oracle.scores(p.q, p.k, scale=scale), -np.inf)
    np.testing.assert_allclose(weights("scores"), scores, rtol=0, atol=atol)
    np.testing.assert_array_equal(weights("softcap"), weights("scores"))
    biased = np.where(seen, oracle.scores(p.q, p.k, bias=p.bias, scale=scale), -np.inf)
    np.testing.assert_allclose(weights("bias"), biased, rtol=0, atol=atol)
    want = oracle.attention(p.q, p.k, p.v, seen, bias=p.bias, scale=scale)[2]
    softmax = weights("softmax")
    assert softmax.dtype == p.q.dtype
    np.testing.assert_allclose(softmax, want, rtol=0, atol=atol)
    assert not softmax[~seen].any()


def test_weights_of_a_row_sum_to_one_or_zero(isa: str, rng: np.random.Generator) -> None:
    q, k, _ = qkv(rng, 1, 2, 1, 600, 600)
    weights = maskattn.attention_weights(q, k, mask=Causal() & ~Padding(10))
    np.testing.assert_allclose(weights[:, :, 10:].sum(axis=-1), 1, rtol=0, atol=1e-6)
    assert not weights[:, :, :10].any()


def test_weights_are_those_of_attention(isa: str, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 2, 4, 2, 5, 300, 40)
    weights = maskattn.attention_weights(q, k, mask=Causal())
    got = maskattn.attention(q, k, v, mask=Causal())
    np.testing.assert_allclose(weights @ np.repeat(v, 2, axis=1), got, rtol=0, atol=4e-6)


def test_scores_of_a_plan_keep_its_lengths(rng: np.random.Generator) -> None:
    q, k, _ = qkv(rng, 2, 2, 2, 3, 9)
    k[1, :, 4:] = np.nan
    scores = maskattn.attention_weights(q, k, stage="scores", mask=Causal().plan(3, 9, batch=2, kv_lengths=[9, 4]))
    assert np.isfinite(scores[0]).all()
    assert np.isneginf(scores[1, :, :, 4:]).all()
    assert np.isfinite(scores[1, :, :, :4]).all()


def test_identical_keys_do_not_bias_the_sum(isa: str) -> None:
    """Sums of equal terms round the same way each time: what long chains would show."""
    q, k = np.ones((1, 1, 1, 8), np.float32), np.ones((1, 1, 4099, 8), np.float32)
    v = np.full((1, 1, 4099, 3), 3.3, np.float32)
    np.testing.assert_allclose(maskattn.attention(q, k, v), v[:, :, :1], rtol=0, atol=4e-6)


def test_a_dense_mask_is_immutable() -> None:
    array = np.ones((5, 9), bool)
    mask = Dense(array)
    array[:] = False
    assert mask.to_bool(5, 9).all()
    assert mask.allows(0, 0, 1, 1).all()
