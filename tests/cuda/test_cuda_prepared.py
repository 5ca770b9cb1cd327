"""Prepared calls on a device: the bits of attention, the plan kept there, and the errors of the CPU's."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_arrays import Interface, Lent, back, lent, on_device
from hypothesis import given, settings
from hypothesis import strategies as st

import maskattn
from maskattn import ALiBi, KVCache, RelativeBias, cuda
from maskattn.cuda import prepared as module
from maskattn.cuda.places import PER_THREAD_STREAM, place_of
from maskattn.masks import Causal, Padding, SlidingWindow
from strategies import Problem, normal, problems, qkv

DTYPES: list[Any] = [np.float32, np.float16, ml_dtypes.bfloat16]


def same_bits(got: Any, want: Any) -> None:
    for x, y in zip(got, want, strict=True):
        assert type(x) is type(y) is Lent
        np.testing.assert_array_equal(back(x), back(y))


@settings(max_examples=15)
@given(
    problem=problems(),
    dtype=st.sampled_from(DTYPES[:2]),
    scale=st.sampled_from([None, 0.3, -1]),
    softcap=st.sampled_from([0, 5]),
)
def test_the_bits_of_attention(
    kernels: None, problem: Problem, dtype: Any, scale: float | None, softcap: float
) -> None:
    p = dataclasses.replace(problem, **{name: getattr(problem, name).astype(dtype) for name in ("q", "k", "v")})
    bias = None if p.bias is None else lent(p.bias.astype(dtype))
    options: dict[str, Any] = {"mask": p.mask, "bias": bias, "scale": scale, "softcap": softcap, **p.where()}
    call: Any = maskattn.prepare(*(lent(np.empty_like(x)) for x in (p.q, p.k, p.v)), return_lse=True, **options)
    want = maskattn.attention(*map(lent, (p.q, p.k, p.v)), return_lse=True, **options)
    same_bits(call(*map(lent, (p.q, p.k, p.v))), want)
    transposed = [lent(np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)) for x in (p.q, p.k, p.v)]
    out = lent(np.full_like(p.q, np.nan, shape=back(want[0]).shape))
    got = call(*transposed, out=out)
    assert got[0] is out
    same_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [None, "array", "alibi", "relative"])
def test_lengths_of_each_call(dtype: Any, bias: Any, rng: np.random.Generator) -> None:
    arrays = [lent(x) for x in qkv(rng, 2, 4, 2, 3, 300, dtype=dtype)]
    made: Any = {
        None: None,
        "array": lent(normal(rng, 4, 3, 300, dtype=dtype)),
        "alibi": ALiBi.for_heads(4),
        "relative": RelativeBias(normal(rng, 8, 4), max_distance=20),
    }[bias]
    call: Any = maskattn.prepare(*arrays, bias=made, sinks=np.ones(4), kv_lengths=[7, 290])
    out = lent(np.zeros((2, 4, 3, 16), dtype))
    lengths: list[Any] = [None, 300, 0, [1, 299], np.array([5, 70], np.int32), lent(np.array([300, 64], np.int32))]
    for given_lengths in lengths:
        where = [7, 290] if given_lengths is None else given_lengths
        want = maskattn.attention(*arrays, bias=made, sinks=np.ones(4), kv_lengths=where)
        assert call(*arrays, out=out, kv_lengths=given_lengths) is out
        same_bits([out], [want])


def test_arrays_of_the_device_are_read_in_every_call(rng: np.random.Generator) -> None:
    arrays = [lent(x) for x in qkv(rng, 2, 4, 2, 1, 16)]
    bias, sinks = (on_device(normal(rng, *shape)) for shape in ((4, 1, 16), (4,)))
    call: Any = maskattn.prepare(*arrays, bias=bias, sinks=sinks)
    before = back(call(*arrays))
    module = cuda.module.load()
    for array in (bias, sinks):  # written by somebody else
        plan = cuda.plan(Causal(), 1, array.size // array.shape[0] if array.ndim > 1 else 1, heads=4)
        assert plan is not None
        module.fill_from_plan(plan, array, 0x3F800000, 0x3F800000)
    after = call(*arrays)
    same_bits([after], [maskattn.attention(*arrays, bias=bias, sinks=sinks)])
    assert not np.array_equal(before, back(after))


def test_the_mask_is_lowered_once(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    arrays = [lent(x) for x in qkv(rng, 2, 4, 2, 40, 70)]
    options: dict[str, Any] = {"mask": Causal() & SlidingWindow(20), "bias": ALiBi.for_heads(4), "q_offset": 60}
    want = back(maskattn.attention(*arrays, **options))
    call: Any = maskattn.prepare(*arrays, **options)
    del options

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("everything but the arrays has been looked at")

    monkeypatch.setattr(module, "plan_of", refuse)
    monkeypatch.setattr(module.GivenTerms, "on", refuse)
    for _ in range(2):
        np.testing.assert_array_equal(back(call(*arrays)), want)


def test_a_call_works_on_the_stream_of_its_arrays(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    on = [on_device(x) for x in qkv(rng, 2, 4, 2, 5, 70)]
    call: Any = maskattn.prepare(*on, mask=Causal(), bias=ALiBi.for_heads(4))
    want = back(call(*on))
    place = dataclasses.replace(place_of("q", on[0]), stream=PER_THREAD_STREAM)
    monkeypatch.setattr(module, "place_of", lambda name, array: place)
    got = call(*on)
    assert got.stream == PER_THREAD_STREAM
    np.testing.assert_array_equal(back(got), want)


def test_plans_and_kinds(rng: np.random.Generator) -> None:
    host = qkv(rng, 2, 4, 2, 4, 16)
    arrays = [Interface(on_device(x)) for x in host]
    plan = Causal().plan(4, 16)
    want = back(maskattn.attention(*arrays, mask=plan))
    for mask in (plan, cuda.plan(Causal(), 4, 16)):
        call: Any = maskattn.prepare(*map(on_device, host), mask=mask)
        if mask is plan:
            plan.extend()
        got = call(*arrays)
        assert isinstance(got, cuda.Array)
        np.testing.assert_array_equal(back(got), want)
        assert type(call(*map(lent, host))) is Lent


def test_repr() -> None:
    kv = "float32 (2, 2, 16, 8)"
    want = f"<maskattn call prepared for q float32 (2, 4, 3, 8), k {kv}, v {kv} on cuda:0>"
    assert repr(maskattn.prepare(ones(2, 4, 3, 8), ones(2, 2, 16, 8), ones(2, 2, 16, 8))) == want


# Errors


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return on_device(np.ones(shape, dtype))


class Elsewhere(Lent):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 1)


Q, K = (2, 4, 3, 8), (2, 2, 16, 8)
WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: {"q": np.ones(Q, np.float32)}, TypeError, "^q must be a CUDA array, as the call was prepared for, got nd"),
    (lambda: {"q": Elsewhere(ones(*Q))}, ValueError, "^q must be on cuda:0, .* got an array on cuda:1; move it there"),
    (lambda: {"k": np.ones(K, np.float32)}, TypeError, "^k must be a CUDA array, as q is, got ndarray"),
    (
        lambda: {"q": ones(*Q, dtype=np.float16)},
        TypeError,
        r"^q must be float32 \(2, 4, 3, 8\), as .* got float16 array",
    ),
    (
        lambda: {"k": ones(1, 2, 16, 8)},
        ValueError,
        r"^k must be float32 .* shape \(1, 2, 16, 8\); prepare another call$",
    ),
    (lambda: {"v": ones(2, 16, 8)}, ValueError, r"^v must be float32 \(2, 2, 16, 8\), .* shape \(2, 16, 8\)"),
    (lambda: {"out": ones(1, 4, 3, 8)}, ValueError, r"^out must have shape \(2, 4, 3, 8\), got"),
    (lambda: {"out": ones(*Q, dtype=np.float16)}, TypeError, "^out must have the dtype of q, float32, got float16"),
    (lambda: {"kv_lengths": 17}, ValueError, "^kv_lengths must be from 0 to kv_len = 16, got 17"),
    (lambda: {"kv_lengths": ones(2)}, TypeError, "^kv_lengths and q_offset must be int32 or int64 on CUDA"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG, ids=[case[2] for case in WRONG])
def test_errors_of_the_call(given: Any, error: type[Exception], message: str) -> None:
    call: Any = maskattn.prepare(ones(*Q), ones(*K), ones(*K))
    with pytest.raises(error, match=message):
        call(**({"q": ones(*Q), "k": ones(*K), "v": ones(*K)} | given()))


def test_errors_of_the_preparation() -> None:
    with pytest.raises(ValueError, match=r"^k must have q's head_dim 8, got 7"):
        maskattn.prepare(ones(*Q), ones(2, 2, 16, 7), ones(*K))
    with pytest.raises(ValueError, match=r"^softcap must be at least 0"):
        maskattn.prepare(ones(*Q), ones(*K), ones(*K), softcap=-1)
    with pytest.raises(ValueError, match=r"^mask must be planned for .* = \(2, 4, 3, 16\)"):
        maskattn.prepare(ones(*Q), ones(*K), ones(*K), mask=Causal().plan(2, 16))
    with pytest.raises(ValueError, match=r"^bias must be broadcastable to .*got .*\(3, 3, 16\)"):
        maskattn.prepare(ones(*Q), ones(*K), ones(*K), bias=ones(3, 3, 16))
    layer: Any = KVCache(layers=1, batch=2, kv_heads=2, capacity=16, head_dim=8)[0]
    with pytest.raises(TypeError, match=r"^k must be an array, got a cache's Layer"):
        maskattn.prepare(ones(*Q), layer, layer)


@pytest.mark.parametrize("options", [{"mask": Causal()}, {"mask": Padding([3, 4])}, {"q_offset": 2}], ids=str)
def test_a_lowered_mask_keeps_its_lengths(options: dict[str, Any]) -> None:
    call: Any = maskattn.prepare(ones(*Q), ones(*K), ones(*K), **options)
    with pytest.raises(ValueError, match=r"^kv_lengths must be left out where .* a mask or q_offset"):
        call(ones(*Q), ones(*K), ones(*K), kv_lengths=3)
