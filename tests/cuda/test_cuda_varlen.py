"""Packed sequences on a device: the bits of each sequence alone, and lengths that the host never sees."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_arrays import Interface, Lent, back, lent, on_device

import maskattn
from maskattn import ALiBi, RelativeBias, cuda
from maskattn.cuda.module import compiled
from maskattn.masks import Causal, Dense, Full, Function, KeyPadding, Mask, SlidingWindow
from strategies import Array, normal
from test_varlen import KV_LENGTHS, Q_LENGTHS, ends
from test_varlen import packed as of_lengths

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
#: Few rows, which go to the kernel for decoding; in the second, keys in several splits of it.
STEPS: list[tuple[list[int], list[int]]] = [([1, 3, 0, 8], [70, 3, 40, 130]), ([1, 0, 2], [1100, 5, 514])]


def some(rng: np.random.Generator, q_lengths: list[int], kv_lengths: list[int], dtype: Any) -> tuple[Array, ...]:
    return (normal(rng, sum(q_lengths), 4, 24, dtype=dtype), normal(rng, sum(kv_lengths), 2, 24, dtype=dtype),
            normal(rng, sum(kv_lengths), 2, 16, dtype=dtype))  # fmt: skip


def one_by_one(arrays: Any, q_lengths: list[int], kv_lengths: list[int], **options: Any) -> tuple[Array, Array]:
    """attention() of each sequence alone, packed: out (tokens, heads, dim), lse (tokens, heads)."""
    q, k, v = arrays
    outs, logarithms = [], []
    for i, (a, b) in enumerate(zip(ends(q_lengths), ends(kv_lengths), strict=True)):
        if i == len(q_lengths):
            break
        rows, keys = slice(a, a + q_lengths[i]), slice(b, b + kv_lengths[i])
        alone = (x.transpose(1, 0, 2)[None].copy() for x in (q[rows], k[keys], v[keys]))
        out, lse = maskattn.attention(*map(lent, alone), return_lse=True, **options)
        outs.append(back(out)[0].swapaxes(0, 1))
        logarithms.append(back(lse)[0].T)
    return np.concatenate(outs), np.concatenate(logarithms)


def check(arrays: Any, q_lengths: list[int], kv_lengths: list[int], exact: bool = True, **options: Any) -> Array:
    """The bits of each sequence alone, where the same kernel does it; else its numbers."""
    q, k, v = arrays
    want, want_lse = one_by_one(arrays, q_lengths, kv_lengths, **options)
    out, lse = maskattn.attention_varlen(
        *map(lent, (q, k, v)), ends(q_lengths), ends(kv_lengths), return_lse=True, **options
    )
    assert type(out) is type(lse) is Lent
    got, got_lse = back(out), back(lse)
    assert (got.dtype, got_lse.dtype) == (q.dtype, np.float32)
    epsilon = float(ml_dtypes.finfo(q.dtype).eps)
    tolerance = 0.0 if exact else max(4 * epsilon, 8e-6)
    np.testing.assert_allclose(*(x.astype(np.float64) for x in (got, want)), rtol=0, atol=tolerance)
    np.testing.assert_allclose(got_lse, want_lse, rtol=0, atol=tolerance)
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", [None, Causal(), Causal() & SlidingWindow(30)], ids=repr)
def test_each_sequence_is_as_if_alone(kernels: None, mask: Mask | None, dtype: Any, rng: np.random.Generator) -> None:
    """Long and short ones together go to one kernel, where short ones alone go to another."""
    check(of_lengths(rng, dtype), Q_LENGTHS, KV_LENGTHS, exact=False, mask=mask)
    q_lengths, kv_lengths = [9, 70, 65, 130], [20, 7, 64, 200]
    check(some(rng, q_lengths, kv_lengths, dtype), q_lengths, kv_lengths, mask=mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("q_lengths", "kv_lengths"), STEPS)
def test_steps(kernels: None, dtype: Any, q_lengths: Any, kv_lengths: Any, rng: np.random.Generator) -> None:
    arrays = some(rng, q_lengths, kv_lengths, dtype)
    check(arrays, q_lengths, kv_lengths)
    check(arrays, q_lengths, kv_lengths, mask=Causal() & SlidingWindow(left=600))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_of_the_cpu(kernels: None, dtype: Any, rng: np.random.Generator) -> None:
    arrays, options = of_lengths(rng, dtype), {"mask": Causal(), "bias": ALiBi.for_heads(4), "softcap": 3.0}
    cu = ends(Q_LENGTHS), ends(KV_LENGTHS)
    want = maskattn.attention_varlen(*arrays, *cu, **options)
    got = back(maskattn.attention_varlen(*map(lent, arrays), *cu, **options))
    atol = 1e-5 if dtype == np.float32 else 8 * float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=atol)


@pytest.mark.parametrize(("q_lengths", "kv_lengths"), [STEPS[0], ([9, 20, 65], [30, 70, 64])])
def test_everything_that_changes_scores(
    kernels: None, q_lengths: Any, kv_lengths: Any, rng: np.random.Generator
) -> None:
    arrays = some(rng, q_lengths, kv_lengths, np.float32)
    for options in (
        {"softcap": 5.0, "scale": 0.7},
        {"scale": 0.0},  # which matrix units are not asked
        {"scale": -0.2, "mask": Causal()},
        {"sinks": rng.standard_normal(4), "mask": Causal() & SlidingWindow(left=3)},
        {"bias": ALiBi.for_heads(4), "mask": Causal()},
        {"bias": RelativeBias(rng.standard_normal((8, 4)), max_distance=20), "q_offset": 3},
        {"mask": Function(lambda b, h, q, k: (q + h + 2 * k) % 5 < 2, per_sequence=False)},
        {"mask": ~KeyPadding(np.arange(200) % 3 == 0), "precision": "medium"},
    ):
        check(arrays, q_lengths, kv_lengths, **options)


@pytest.mark.parametrize("as_device", [on_device, Interface, None], ids=["ours", "interface", "host"])
@pytest.mark.parametrize("integer", [np.int32, np.int64])
@pytest.mark.parametrize("bound", [True, False])
def test_lengths_of_the_device(
    bound: bool, integer: Any, as_device: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """With bounds nobody waits for them; positions follow from them all the same."""
    arrays = of_lengths(rng)
    options: dict[str, Any] = {"mask": Causal() & SlidingWindow(50), "bias": ALiBi.for_heads(4)}
    want = check(arrays, Q_LENGTHS, KV_LENGTHS, exact=False, **options)
    cu: list[Any] = [ends(lengths).astype(integer) for lengths in (Q_LENGTHS, KV_LENGTHS)]
    if as_device is not None:
        cu = [on_device(each) if as_device is on_device else Interface(on_device(each)) for each in cu]
    waits = []
    monkeypatch.setattr("maskattn.cuda.varlen.to_host", lambda array: waits.append(array) or back(array))
    most = {"max_q_len": 310, "max_kv_len": 300} if bound else {}
    got = maskattn.attention_varlen(*map(lent, arrays), *cu, **most, **options)
    assert len(waits) == (0 if bound or as_device is None else 2)
    np.testing.assert_array_equal(back(got), want)


def test_more_sequences_than_threads_of_a_block(rng: np.random.Generator) -> None:
    q_lengths, kv_lengths = [n % 3 for n in range(300)], [n % 7 for n in range(300)]
    arrays, cu = some(rng, q_lengths, kv_lengths, np.float32), (ends(q_lengths), ends(kv_lengths))
    got = back(maskattn.attention_varlen(*map(lent, arrays), *cu, mask=Causal()))
    np.testing.assert_allclose(got, maskattn.attention_varlen(*arrays, *cu, mask=Causal()), rtol=0, atol=1e-5)


def test_lengths_that_nobody_checks_are_cut(rng: np.random.Generator) -> None:
    q, k, v = of_lengths(rng)
    cu_q, cu_kv = ([0, 5, 4, 900], [0, 10, 7, 2000])  # each goes back once, and past the end
    out = on_device(np.full((len(q), 4, 20), 7, np.float32))
    got = maskattn.attention_varlen(
        *map(on_device, (q, k, v)),
        *(on_device(np.array(each)) for each in (cu_q, cu_kv)),
        max_q_len=6,
        max_kv_len=12,
        out=out,
    )
    assert got is out
    want = back(maskattn.attention_varlen(*map(on_device, (q[:5], k[:10], v[:10])), [0, 5], [0, 10]))
    np.testing.assert_array_equal(back(out)[:4], want[:4])
    want = back(maskattn.attention_varlen(*map(on_device, (q[4:10], k[7:19], v[7:19])), [0, 6], [0, 12]))
    np.testing.assert_array_equal(back(out)[4:10], want)
    assert (back(out)[10:] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("as_bits", [False, True])
def test_a_plan_for_longer_sequences_shows_no_key_that_is_not_theirs(
    as_bits: bool, dtype: Any, kernels: None, rng: np.random.Generator
) -> None:
    """Nor one past the end of the arrays, which the last sequence would reach."""
    for q_lengths, kv_lengths in (([70, 3, 100], [50, 0, 130]), ([1, 2, 1], [600, 33, 5])):
        arrays = some(rng, q_lengths, kv_lengths, dtype)
        most = max(q_lengths), max(kv_lengths)
        cu = ends(q_lengths), ends(kv_lengths)
        want = maskattn.attention_varlen(*map(lent, arrays), *cu, return_lse=True)
        plan = cuda.plan(Dense(np.ones(most, bool)) if as_bits else Full(), *most, batch=3)
        assert (plan.spans_per_row == 0) == as_bits
        bounds = {"max_q_len": most[0], "max_kv_len": most[1]}
        for given in ((*cu, {}), (*map(on_device, cu), bounds)):
            got = maskattn.attention_varlen(*map(lent, arrays), *given[:2], mask=plan, return_lse=True, **given[2])
            for each, other in zip(got, want, strict=True):
                np.testing.assert_array_equal(back(each), back(other))


def test_keys_of_other_sequences_are_not_read(kernels: None, rng: np.random.Generator) -> None:
    for dtype in (np.float32, ml_dtypes.bfloat16):
        q, k, v = of_lengths(rng, dtype)
        cu_q, cu_kv = ends(Q_LENGTHS), ends(KV_LENGTHS)
        want = back(maskattn.attention_varlen(*map(lent, (q, k, v)), cu_q, cu_kv))
        k[cu_kv[3] : cu_kv[4]], v[cu_kv[3] : cu_kv[4]] = np.nan, np.inf
        got = back(maskattn.attention_varlen(*map(lent, (q, k, v)), cu_q, cu_kv))
        np.testing.assert_array_equal(got[: cu_q[3]], want[: cu_q[3]])
        np.testing.assert_array_equal(got[cu_q[4] :], want[cu_q[4] :])


def test_out_plans_and_kinds(rng: np.random.Generator) -> None:
    arrays = of_lengths(rng)
    on = [lent(each) for each in arrays]
    cu = ends(Q_LENGTHS), ends(KV_LENGTHS)
    want = back(maskattn.attention_varlen(*on, *cu, mask=Causal(), q_offset=0))
    out = lent(np.full_like(want, np.nan))
    geometry: dict[str, Any] = {"batch": 5, "heads": 4, "q_offset": 0, "kv_lengths": KV_LENGTHS}
    for plan in (Causal().plan(300, 300, **geometry), cuda.plan(Causal(), 300, 300, **geometry)):
        assert maskattn.attention_varlen(*on, *cu, mask=plan, out=out) is out
        np.testing.assert_array_equal(back(out), want)
    host = maskattn.attention_varlen(*on, *cu, mask=Causal(), q_offset=0, like="numpy")
    assert type(host) is np.ndarray
    np.testing.assert_array_equal(host, want)
    none = maskattn.attention_varlen(*(lent(each[:0]) for each in arrays), [0], [0], mask=Causal())
    assert back(none).shape == (0, 4, 20)


def test_any_strides_but_the_last(kernels: None, rng: np.random.Generator) -> None:
    q, k, v = of_lengths(rng)
    cu = ends(Q_LENGTHS), ends(KV_LENGTHS)
    want = back(maskattn.attention_varlen(*map(lent, (q, k, v)), *cu))
    turned = (np.ascontiguousarray(each.swapaxes(0, 1)).swapaxes(0, 1) for each in (q, k, v))
    np.testing.assert_array_equal(back(maskattn.attention_varlen(*map(lent, turned), *cu)), want)


# Errors


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return on_device(np.ones(shape, dtype))


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"q": lambda: ones(1, 2, 3, 4)}, ValueError, r"^q must have shape \(tokens, heads, dim\), got .*\(1, 2, 3, 4\)"),
    ({"k": lambda: np.ones((7, 2, 4), np.float32)}, TypeError, "^k must be a CUDA array, as q is, got ndarray"),
    ({"k": lambda: ones(7, 2, 4, dtype=np.float16)}, TypeError, "^k must have the dtype of q, float32, on CUDA"),
    ({"v": lambda: ones(6, 2, 4)}, ValueError, "^v must have k's kv_len 7, got 6"),
    ({"cu_q": lambda: [0, 5]}, ValueError, "^cu_kv must have as many sequences as cu_q, 1, got 2"),
    ({"cu_q": lambda: [0, 3, 6]}, ValueError, "^cu_q must start at 0, not decrease and end at .* 5, got"),
    ({"cu_kv": lambda: on_device(np.array([0, 8, 7]))}, ValueError, "^cu_kv must start at 0"),
    ({"cu_kv": lambda: [0.0, 3.0, 7.0]}, TypeError, "^cu_kv must be integers, got float64"),
    ({"cu_kv": lambda: ones(3)}, TypeError, "^cu_kv must be int32 or int64 on CUDA, got float32"),
    (
        {"cu_kv": lambda: on_device(np.array([[0, 7]])), "max_q_len": lambda: 5, "max_kv_len": lambda: 7},
        ValueError,
        r"^cu_kv must be contiguous and have shape \(sequences \+ 1,\), got shape \(1, 2\)",
    ),
    (
        {"cu_kv": lambda: on_device(np.array([0, 7])), "max_q_len": lambda: 5, "max_kv_len": lambda: 7},
        ValueError,
        "^cu_kv must have as many sequences as cu_q, 2, got 1",
    ),
    ({"max_q_len": lambda: 2}, ValueError, "^max_q_len must be at least 3, the length of a sequence, got 2"),
    ({"max_kv_len": lambda: "4"}, TypeError, "^max_kv_len must be an integer, got str"),
    ({"mask": lambda: np.ones((3, 4), bool)}, TypeError, "^mask must be a Mask, a MaskPlan or None, got ndarray"),
    ({"mask": lambda: Causal().plan(3, 3)}, ValueError, "^mask must be planned for"),
    (
        {"mask": lambda: Causal().plan(3, 4, batch=2)},
        ValueError,
        r"^mask must be planned for kv_lengths .*\[3, 4\], got",
    ),
    (
        {
            "mask": lambda: Causal().plan(3, 4, batch=2, kv_lengths=[3, 4]),
            "cu_kv": lambda: on_device(np.array([0, 3, 7])),
            "max_q_len": lambda: 3,
            "max_kv_len": lambda: 4,
        },
        ValueError,
        "^mask must be a Mask, or a plan of the device, where cu_q or cu_kv is on the device, got a MaskPlan",
    ),
    ({"bias": lambda: ones(3, 4)}, TypeError, "^bias must be ALiBi, RelativeBias or None, got Array"),
    ({"out": lambda: ones(5, 2, 3)}, ValueError, "^out must have shape"),
    ({"out": lambda: ones(5, 2)}, ValueError, r"^out must have shape \(tokens, heads, dim\), got"),
    ({"sinks": lambda: np.ones(3)}, ValueError, "^sinks must have one entry per query head, 2, got 3"),
    ({"precision": lambda: "best"}, ValueError, "^precision must be one of"),
]


@pytest.mark.parametrize(("given", "error", "message"), ERRORS)
def test_errors(given: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"q": ones(5, 2, 4), "k": ones(7, 2, 4), "v": ones(7, 2, 4)}
    arguments |= {"cu_q": [0, 2, 5], "cu_kv": [0, 3, 7]} | {name: make() for name, make in given.items()}
    with pytest.raises(error, match=message):
        maskattn.attention_varlen(**arguments)


def test_a_graph_cannot_wait_for_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "is_capturing", lambda stream: True)
    arrays = [ones(5, 2, 4), ones(7, 2, 4), ones(7, 2, 4)]
    with pytest.raises(ValueError, match=r"^max_q_len and max_kv_len must be given .* got None and 4"):
        maskattn.attention_varlen(*arrays, [0, 5], on_device(np.array([0, 7])), max_kv_len=4)
