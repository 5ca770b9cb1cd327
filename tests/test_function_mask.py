"""Function masks: Python callables and C function pointers, evaluated when a plan is made."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

import maskattn
import oracle
from maskattn.masks import Causal, Function
from maskattn.masks.function import C_SIGNATURE
from strategies import normal


def checker(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (q * 3 + k + 5 * b + 7 * h) % 4 < 2


@C_SIGNATURE
def compiled(b: int, h: int, q: int, k: int, data: int | None) -> int:
    add = ctypes.cast(data, ctypes.POINTER(ctypes.c_int64))[0] if data else 0
    return (q * 3 + k + 5 * b + 7 * h + add) % 4 < 2


@pytest.mark.parametrize("f", [checker, compiled], ids=["python", "c"])
@pytest.mark.parametrize("geometry", [{}, {"kv_lengths": [30, 70]}, {"q_offset": [3, -2]}])
def test_lowering_is_the_definition(f: Any, geometry: dict[str, Any]) -> None:
    for mask in (Function(f), Causal() & ~Function(f), Function(f) | Causal()):
        got = mask.to_bool(5, 70, batch=2, heads=3, **geometry)
        np.testing.assert_array_equal(got, oracle.visible(mask, 5, 70, batch=2, heads=3, **geometry))


@pytest.mark.parametrize("f", [checker, compiled], ids=["python", "c"])
def test_asked_once_where_it_does_not_vary(f: Any) -> None:
    mask = Function(f, per_sequence=False, per_head=False)
    got = mask.to_bool(5, 9, batch=2, heads=3)
    assert got.shape == (2, 3, 5, 9)
    np.testing.assert_array_equal(got, np.broadcast_to(Function(f).to_bool(5, 9), got.shape))
    assert mask.plan(50, 90, batch=8, heads=8).nbytes < 2 * mask.plan(50, 90).nbytes
    assert Function(f).plan(50, 90, batch=8, heads=8) != mask.plan(50, 90, batch=8, heads=8)


def test_data_reaches_a_c_function() -> None:
    add = ctypes.c_int64(1)
    mask = Function(compiled, data=ctypes.addressof(add))
    want = oracle.visible(Function(lambda b, h, q, k: checker(b, h, q, k + 1)), 4, 9)
    np.testing.assert_array_equal(mask.to_bool(4, 9), want)


def test_attention(isa: str, rng: np.random.Generator) -> None:
    q, k, v = normal(rng, 2, 2, 9, 16), normal(rng, 2, 2, 300, 16), normal(rng, 2, 2, 300, 16)
    mask = Function(checker) & Causal()
    want = oracle.attention(q, k, v, oracle.visible(mask, 9, 300, batch=2, heads=2))[0]
    np.testing.assert_allclose(maskattn.attention(q, k, v, mask=mask, threads=2), want, rtol=0, atol=4e-6)


def test_evaluated_when_a_plan_is_made_and_not_again(rng: np.random.Generator) -> None:
    calls = []

    def counted(b: Any, h: Any, q: Any, k: Any) -> Any:
        calls.append(1)
        return k <= q

    x = normal(rng, 1, 2, 20, 8)
    plan = Function(counted, per_sequence=False, per_head=False).plan(20, 20)
    assert len(calls) == 20
    for _ in range(3):
        maskattn.attention(x, x, x, mask=plan)
    assert len(calls) == 20


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"^f must be a callable f\(b, h, q_pos, kv_pos\) or a C .*, got int"):
        Function(3)
    with pytest.raises(ValueError, match=r"^f must be vectorised: .* shape \(7,\), got \(2,\)"):
        Function(lambda b, h, q, k: np.ones(2, bool)).plan(3, 7)
    with pytest.raises(ZeroDivisionError):  # its own error comes through, from whatever thread it was raised on
        Function(lambda b, h, q, k: 1 // 0).plan(2000, 7, threads=2)
    assert Function(lambda b, h, q, k: True).to_bool(2, 3).all()
