"""attention() on a device against the float64 oracle: every argument, and the suites' own random problems."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_arrays import Interface, Lent, back, lent, on_device
from hypothesis import given, settings
from hypothesis import strategies as st

import maskattn
import oracle
from maskattn import ALiBi, RelativeBias, cuda, masks
from maskattn.bias import DistanceBias
from maskattn.cuda.module import compiled, load
from maskattn.cuda.places import named_place
from maskattn.cuda.plans import plan_of
from maskattn.masks import Causal, Dense, Documents, Full, KeyPadding, Mask, Padding, PrefixLM, SlidingWindow
from strategies import Array, normal, problems, qkv

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]

MASKS: list[Any] = [
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
    masks.Function(lambda b, h, q, k: (q + h + 2 * k) % 5 < 2, per_sequence=False),
]


def tolerance(dtype: Any, weights: Array, v: Array) -> Any:
    """Absolute error of an output: of float32 arithmetic, and of weights and results that are rounded to 16 bits."""
    if dtype == np.float32:
        return 4e-6
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    group = weights.shape[1] // v.shape[1]
    return 4e-6 + epsilon * (weights @ np.repeat(np.abs(v.astype(np.float64)), group, axis=1)) + 1e-7


def seen_by(mask: Any, q: Array, k: Array, where: dict[str, Any]) -> Any:
    if isinstance(mask, np.ndarray):
        mask = Dense(mask)
    return oracle.visible(mask, q.shape[2], k.shape[2], batch=q.shape[0], heads=q.shape[1], **where)


def check(q: Array, k: Array, v: Array, *, mask: Any = None, bias: Any = None, **options: Any) -> Array:
    """attention() of arrays on the device gives the oracle's output and LSE."""
    where = {name: options[name] for name in ("q_offset", "kv_lengths") if name in options}
    scores = {name: options[name] for name in ("scale", "softcap", "sinks") if name in options}
    seen = seen_by(mask, q, k, where)
    matrix = bias
    if isinstance(bias, DistanceBias):
        matrix = oracle.distance_bias(bias, q.shape[2], k.shape[2], batch=q.shape[0], **where)
    with np.errstate(invalid="ignore"):
        want, want_lse, weights = oracle.attention(q, k, v, seen, bias=matrix, **scores)
    on = [lent(each) for each in (q, k, v)]
    on_bias = lent(bias) if isinstance(bias, np.ndarray) else bias
    out, lse = maskattn.attention(*on, mask=mask, bias=on_bias, return_lse=True, **options)
    assert type(out) is type(lse) is Lent
    got, got_lse = back(out), back(lse)
    assert (got.dtype, got_lse.dtype) == (q.dtype, np.float32)
    error = np.abs(got.astype(np.float64) - want)
    assert (error <= tolerance(q.dtype, weights, v)).all(), error.max()
    np.testing.assert_allclose(got_lse, want_lse, rtol=1e-6, atol=2e-5)
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
def test_masks(kernels: None, dtype: Any, mask: Mask | None, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 2, 4, 2, 40, 90, 24, dtype=dtype)
    check(*arrays, mask=mask)
    check(*arrays, mask=mask, kv_lengths=[90, 31])
    check(*arrays, mask=mask, q_offset=[0, 60], kv_lengths=np.array([0, 80], np.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q_len", [1, 2, 7, 33, 130])
@pytest.mark.parametrize("kv_len", [1, 63, 64, 65, 257])
def test_lengths(kernels: None, dtype: Any, q_len: int, kv_len: int, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 2, 2, 1, q_len, kv_len, 8, dtype=dtype)
    check(*arrays)
    check(*arrays, mask=Causal())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [1, 7, 16, 33, 64, 80, 128, 200, 256])
def test_head_dims(kernels: None, dtype: Any, head_dim: int, rng: np.random.Generator) -> None:
    check(*qkv(rng, 1, 2, 1, 5, 67, head_dim, dtype=dtype), mask=Causal())
    check(*qkv(rng, 1, 2, 1, 5, 67, 12, head_dim, dtype=dtype), mask=Causal())


@pytest.mark.parametrize("group", range(1, 9))
def test_query_heads_that_share_a_key_head(group: int, rng: np.random.Generator) -> None:
    for q_len in (1, 30):
        check(*qkv(rng, 2, 2 * group, 2, q_len, 130), mask=Causal())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decode_past_many_keys(dtype: Any, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 2, 4, 2, 1, 2133, 64, dtype=dtype)
    check(*arrays)
    check(*arrays, mask=SlidingWindow(left=1000), kv_lengths=[2133, 900])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q_len", [1, 20])
def test_everything_that_changes_scores(kernels: None, dtype: Any, q_len: int, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 2, 4, 2, q_len, 75, 8, dtype=dtype)
    check(*arrays, scale=0.7, mask=Causal())
    check(*arrays, softcap=5.0, mask=Causal())
    check(*arrays, sinks=rng.standard_normal(4), mask=Causal() & SlidingWindow(left=3))
    check(*arrays, sinks=np.array([0, -np.inf, 1, 2.0]), mask=~Causal())
    check(*arrays, bias=ALiBi.for_heads(4), mask=Causal(), kv_lengths=[75, 60])
    check(*arrays, bias=ALiBi.for_heads(4), q_offset=3)
    check(*arrays, bias=RelativeBias(rng.standard_normal((8, 4)), max_distance=20))
    hidden = normal(rng, 4, 1, 75, dtype=dtype)
    hidden[rng.random(hidden.shape) < 0.3] = -np.inf
    check(*arrays, bias=hidden, softcap=3.0, sinks=rng.standard_normal(4), mask=Causal(), kv_lengths=[75, 60])


@pytest.mark.parametrize(
    "shape", [(70,), (1,), (), (5, 70), (5, 1), (4, 1, 70), (4, 1, 1), (2, 1, 1, 70), (2, 4, 5, 70), (1, 1, 1, 1)]
)
def test_bias_of_every_shape_that_broadcasts(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    check(*qkv(rng, 2, 4, 2, 5, 70), bias=normal(rng, *shape), mask=Causal(), kv_lengths=[70, 66])


@settings(max_examples=25)
@given(st.data())
def test_random_problems(kernels: None, data: st.DataObject) -> None:
    p = data.draw(problems())
    dtype = data.draw(st.sampled_from(DTYPES))
    q, k, v = (each.astype(dtype) for each in (p.q, p.k, p.v))
    check(q, k, v, mask=p.mask, bias=None if p.bias is None else p.bias.astype(dtype), **p.where())


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_precision_of_float32(kernels: None, dim: int, rng: np.random.Generator) -> None:
    """Relative errors (norm) as on the CPU; few rows are multiplied as float32 numbers, whatever is permitted."""
    most = {"highest": 4e-7, "high": 1e-5, "medium": 4e-3}
    for q_len in (1, 80):
        q, k, v = qkv(rng, 1, 4, 2, q_len, 130, dim)
        want, *_ = oracle.attention(q, k, v, seen_by(Causal(), q, k, {}))
        errors = []
        for precision in most:
            got = back(maskattn.attention(*map(lent, (q, k, v)), mask=Causal(), precision=precision))  # type: ignore[call-overload]
            errors.append(np.linalg.norm(got - want) / np.linalg.norm(want))
        assert (np.array(errors) <= list(most.values())).all(), errors
        if q_len > 8:
            assert errors[0] * 5 < errors[1]
            assert errors[1] * 5 < errors[2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q_len", [1, 20])
def test_keys_in_pages(kernels: None, dtype: Any, q_len: int, rng: np.random.Generator) -> None:
    """Pages in any order, the last one partly filled: what the decoder's cache gives the module."""
    page_size, pages, lengths = 32, 5, [150, 70]
    q = normal(rng, 2, 4, q_len, 16, dtype=dtype)
    k, v = (normal(rng, 2 * pages, 2, page_size, 16, dtype=dtype) for _ in range(2))
    table = rng.permutation(2 * pages).astype(np.int32).reshape(2, pages)
    gathered = [each[table].swapaxes(1, 2).reshape(2, 2, pages * page_size, 16) for each in (k, v)]
    want = check(q, *gathered, mask=Causal(), bias=ALiBi.for_heads(4), kv_lengths=lengths)
    place = named_place("cuda")
    plan = plan_of(place, Causal(), q_len, pages * page_size, 2, 4, None, lengths)
    slopes = on_device(ALiBi.for_heads(4).slopes.astype(np.float32))
    out = on_device(np.zeros_like(q))
    on = [on_device(each) for each in (q, k, v)]
    rest = None, 0.25, 0.0, None, None, slopes, 0, (on_device(table), None, None), None, place.stream
    compiled.attention(*on, out, None, plan, *rest)
    np.testing.assert_array_equal(back(out), want)


# Arrays


def test_any_strides_but_the_last(kernels: None, rng: np.random.Generator) -> None:
    q, k, v = (each.transpose(0, 2, 1, 3) for each in qkv(rng, 2, 9, 70, 4, 2, 8))
    q = q.transpose(0, 2, 1, 3)[:, :4]
    got = check(np.ascontiguousarray(q), *(np.ascontiguousarray(each) for each in (k, v)), mask=Causal())
    assert on_device(k).strides != on_device(np.ascontiguousarray(k)).strides
    on = [lent(each) for each in (q, k, v)]
    np.testing.assert_array_equal(back(maskattn.attention(*on, mask=Causal())), got)


def test_numpy_arrays_go_there_and_back(rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 2, 4, 2, 5, 70)
    bias, sinks = normal(rng, 5, 70), normal(rng, 4)
    options: dict[str, Any] = {"mask": Causal(), "bias": bias, "sinks": sinks, "kv_lengths": [70, 30]}
    got, lse = maskattn.attention(q, k, v, return_lse=True, device="cuda", **options)
    want, want_lse = maskattn.attention(q, k, v, return_lse=True, **options)
    assert type(got) is type(lse) is np.ndarray
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-6)
    np.testing.assert_allclose(lse, want_lse, rtol=0, atol=4e-6)
    out = np.zeros_like(got)
    assert maskattn.attention(q, k, v, out=out, device="cuda:0", **options) is out
    np.testing.assert_array_equal(out, got)
    untouched = np.full_like(got, 7)
    for bad, error in ((untouched.astype(np.float16), TypeError), (untouched[:, :1], ValueError)):
        with pytest.raises(error, match=r"^out must "):
            maskattn.attention(q, k, v, out=bad, device="cuda", **options)
        assert (bad == 7).all()
    of_the_host = maskattn.attention(*map(lent, (q, k, v)), like="numpy", mask=Causal())
    np.testing.assert_array_equal(of_the_host, maskattn.attention(q, k, v, device="cuda", mask=Causal()))


def test_results_are_of_the_callers_kind(rng: np.random.Generator) -> None:
    arrays = qkv(rng, 1, 2, 2, 5, 70)
    want = back(maskattn.attention(*map(lent, arrays)))
    through = maskattn.attention(*(Interface(on_device(each)) for each in arrays))
    assert isinstance(through, cuda.Array)
    np.testing.assert_array_equal(back(through), want)
    ours = maskattn.attention(*map(on_device, arrays))
    assert isinstance(ours, cuda.Array)
    np.testing.assert_array_equal(back(ours), want)
    np.testing.assert_array_equal(back(maskattn.attention(*map(on_device, arrays), like=lent(arrays[0]))), want)
    assert ours.__cuda_array_interface__["typestr"] == "<f4"
    out = lent(np.zeros_like(want))
    assert maskattn.attention(*map(lent, arrays), out=out) is out
    np.testing.assert_array_equal(back(out), want)


def test_lenders_hear_on_which_stream_their_arrays_are_used(rng: np.random.Generator) -> None:
    on = [lent(each) for each in qkv(rng, 1, 2, 2, 5, 70)]
    maskattn.attention(*on)
    assert [each.streams for each in on] == [[1], [1], [1]]


PER_THREAD_STREAM = 2  # a handle that every device knows


class OfALibrary(Lent):
    """An array of PyTorch or CuPy, as far as it matters."""

    device = "cuda:0"


def library(name: str) -> Any:
    """A stand-in for the library, which works on another stream than the default one, and makes its own arrays."""

    def empty(shape: Any, dtype: Any, device: str = "cuda:0") -> OfALibrary:
        return OfALibrary(on_device(np.full(shape, np.nan, dtype)))

    if name == "torch":
        current = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=PER_THREAD_STREAM))
        return SimpleNamespace(Tensor=OfALibrary, cuda=current, empty=empty, float32=np.float32)
    current = SimpleNamespace(get_current_stream=lambda device: SimpleNamespace(ptr=PER_THREAD_STREAM))
    return SimpleNamespace(ndarray=OfALibrary, cuda=current, empty=empty)


@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_libraries_have_their_stream_and_their_memory(
    name: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    arrays = qkv(rng, 1, 2, 2, 5, 70)
    want = back(maskattn.attention(*map(lent, arrays), mask=Causal()))
    monkeypatch.setitem(sys.modules, name, library(name))
    on = [OfALibrary(on_device(each)) for each in arrays]
    out, lse = maskattn.attention(*on, mask=Causal(), return_lse=True)
    assert type(out) is type(lse) is OfALibrary
    assert [each.streams for each in (*on, out, lse)] == [[PER_THREAD_STREAM]] * 5
    load().synchronize(PER_THREAD_STREAM)
    np.testing.assert_array_equal(back(out), want)
    plan = cuda.plan(Causal(), 5, 70, like=on[0])
    assert plan.stream == PER_THREAD_STREAM


def test_the_stream_of_the_cuda_array_interface(rng: np.random.Generator) -> None:
    arrays = qkv(rng, 1, 2, 2, 5, 70)
    on = [Interface(on_device(each), stream=PER_THREAD_STREAM) for each in arrays]
    out = maskattn.attention(*on)
    assert out.stream == PER_THREAD_STREAM
    np.testing.assert_array_equal(back(out), back(maskattn.attention(*map(lent, arrays))))


def test_masks_of_the_device(rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 2, 4, 2, 5, 70)
    on = [lent(each) for each in (q, k, v)]
    keep = rng.random((2, 1, 5, 70)) < 0.5
    want = back(maskattn.attention(*on, mask=keep, kv_lengths=[70, 30]))
    np.testing.assert_array_equal(back(maskattn.attention(*on, mask=lent(keep), kv_lengths=[70, 30])), want)
    lengths = lent(np.array([70, 30], np.int32))
    np.testing.assert_array_equal(back(maskattn.attention(*on, mask=keep, kv_lengths=lengths)), want)
    plan = cuda.plan(Dense(keep), 5, 70, kv_lengths=[70, 30], like=on[0])
    np.testing.assert_array_equal(back(maskattn.attention(*on, mask=plan)), want)
    bias = ALiBi.for_heads(4)
    want = back(maskattn.attention(*on, bias=bias, mask=Causal(), kv_lengths=[70, 30]))
    np.testing.assert_array_equal(back(maskattn.attention(*on, bias=bias, mask=Causal(), kv_lengths=lengths)), want)


def test_a_plan_for_any_number_of_sequences_knows_its_positions(rng: np.random.Generator) -> None:
    arrays = qkv(rng, 3, 4, 2, 5, 70)
    on = [lent(each) for each in arrays]
    want = check(*arrays, mask=Causal(), bias=ALiBi.for_heads(4), q_offset=7)
    for plan in (cuda.plan(Causal(), 5, 70, q_offset=7), Causal().plan(5, 70, q_offset=7)):
        np.testing.assert_array_equal(back(maskattn.attention(*on, mask=plan, bias=ALiBi.for_heads(4))), want)


def test_keys_that_nobody_sees_are_not_read(kernels: None, rng: np.random.Generator) -> None:
    for q_len in (1, 40):
        q, k, v = qkv(rng, 2, 4, 2, q_len, 300, 32)
        options: dict[str, Any] = {"mask": Causal() & SlidingWindow(left=20), "kv_lengths": [280, 200]}
        want = back(maskattn.attention(*map(lent, (q, k, v)), **options))
        hidden = ~seen_by(options["mask"], q, k, {"kv_lengths": [280, 200]}).any(axis=(1, 2))
        for array in (k, v):
            array.swapaxes(1, 2)[hidden] = np.nan
        np.testing.assert_array_equal(back(maskattn.attention(*map(lent, (q, k, v)), **options)), want)


def test_nothing_at_all(rng: np.random.Generator) -> None:
    for batch, q_len, kv_len in ((0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0)):
        for mask in (None, Causal()):
            assert check(*qkv(rng, batch, 2, 2, q_len, kv_len), mask=mask).shape == (batch, 2, q_len, 16)


# Errors


class Elsewhere(Lent):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 1)


class OfTheHost(Lent):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class Unlendable(Lent):
    def __dlpack__(self, **options: Any) -> object:
        raise BufferError("sparse")


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return on_device(np.ones(shape, dtype))


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"q": lambda: ones(2, 4, 3, 8, dtype=np.float64)},
        TypeError,
        "^q must be float32, float16 or bfloat16 on CUDA, got float64",
    ),
    (
        {"k": lambda: ones(2, 2, 5, 8, dtype=np.float16)},
        TypeError,
        "^k must have the dtype of q, float32, on CUDA, got float16",
    ),
    ({"q": lambda: ones(4, 3, 8)}, ValueError, r"^q must have shape \(batch, .*got .*\(4, 3, 8\)"),
    ({"k": lambda: ones(2, 3, 5, 8)}, ValueError, "^k must have a number of heads that divides q's 4, got 3"),
    ({"k": lambda: ones(2, 2, 5, 9)}, ValueError, "^k must have q's head_dim 8, got 9"),
    ({"v": lambda: ones(2, 2, 6, 8)}, ValueError, "^v must have k's kv_len 5, got 6"),
    ({"v": lambda: ones(2, 2, 5, 257)}, ValueError, "^v must have a head_dim from 1 to 256 on CUDA"),
    ({"v": lambda: np.ones((2, 2, 5, 8), np.float32)}, TypeError, "^v must be a CUDA array, as q is, got ndarray"),
    (
        {"k": lambda: Elsewhere(ones(2, 2, 5, 8))},
        ValueError,
        "^k must be on cuda:0, where q is, got an array on cuda:1",
    ),
    ({"k": lambda: OfTheHost(ones(2, 2, 5, 8))}, ValueError, "^k must be on cuda:0, .* DLPack's device"),
    (
        {"k": lambda: Unlendable(ones(2, 2, 5, 8))},
        ValueError,
        r"^k must be .* lend by DLPack, got Unlendable \(sparse\)",
    ),
    ({"out": lambda: ones(2, 4, 3, 7)}, ValueError, r"^out must have shape \(2, 4, 3, 8\), got .*\(2, 4, 3, 7\)"),
    (
        {"out": lambda: ones(2, 4, 3, 8, dtype=np.float16)},
        TypeError,
        "^out must have the dtype of q, float32, got float16",
    ),
    ({"bias": lambda: ones(3, 3, 5)}, ValueError, r"^bias must be broadcastable to .*got .*\(3, 3, 5\)"),
    ({"bias": lambda: np.ones((3, 5), np.float32)}, TypeError, "^bias must be a CUDA array, as q is"),
    ({"sinks": lambda: np.ones(3)}, ValueError, "^sinks must have one entry per query head, 4, got 3"),
    ({"sinks": lambda: ones(4, dtype=np.float16)}, TypeError, "^sinks must be float32 on CUDA, got float16"),
    ({"mask": lambda: ones(3, 5)}, TypeError, r"^mask must be a bool array \(True = attend\), got float32"),
    (
        {"mask": lambda: ones(4, 5, dtype=np.bool_)},
        ValueError,
        r"^mask must broadcast to .*\(2, 4, 3, 5\), got shape \(4, 5\)",
    ),
    (
        {"mask": lambda: cuda.plan(Causal(), 3, 6)},
        ValueError,
        r"^mask must be planned for .*\(2, 4, 3, 5\).*\(1, 1, 3, 6\)",
    ),
    ({"mask": lambda: "causal"}, TypeError, "^mask must be a Mask, a MaskPlan or a bool array"),
    ({"kv_lengths": lambda: [5, 6]}, ValueError, "^kv_lengths must be from 0 to kv_len = 5, got 6"),
    (
        {"kv_lengths": lambda: ones(2)},
        TypeError,
        "^kv_lengths and q_offset must be int32 or int64 on CUDA, got float32",
    ),
    ({"scale": lambda: np.nan}, ValueError, "^scale must be finite, got nan"),
    ({"scale": lambda: "1"}, TypeError, "^scale must be a number, got str"),
    ({"softcap": lambda: -1.0}, ValueError, "^softcap must be at least 0"),
    ({"precision": lambda: "best"}, ValueError, "^precision must be one of"),
    ({"strategy": lambda: "delete"}, ValueError, '^strategy must be "mask" or "auto" on CUDA'),
    ({"v": lambda: None}, TypeError, "^v must be an array where k is no layer of a cache, got k of type Array alone"),
]


@pytest.mark.parametrize(("given", "error", "message"), ERRORS)
def test_errors(given: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"q": ones(2, 4, 3, 8), "k": ones(2, 2, 5, 8), "v": ones(2, 2, 5, 8)}
    arguments |= {name: make() for name, make in given.items()}
    with pytest.raises(error, match=message):
        maskattn.attention(**arguments)


def test_a_last_axis_that_is_not_contiguous() -> None:
    wide = on_device(np.ones((2, 16, 5, 2), np.float32).transpose(0, 3, 2, 1))
    with pytest.raises(ValueError, match=r"^k must have a contiguous last axis, got a stride of 40 bytes"):
        maskattn.attention(ones(2, 4, 3, 16), wide, wide)


def test_numpy_arrays_of_other_dtypes_stay() -> None:
    q = np.ones((1, 1, 2, 8))
    with pytest.raises(TypeError, match=r"^q must be float32, float16 or bfloat16 on CUDA, got float64"):
        maskattn.attention(q, q, q, device="cuda")


def test_keys_of_a_device_for_queries_of_the_host() -> None:
    with pytest.raises(NotImplementedError, match=r"^k must be .*CPU's memory .*got a CUDA array"):
        maskattn.attention_topk(np.ones((1, 1, 2, 8), np.float32), ones(1, 1, 2, 8), 1)
