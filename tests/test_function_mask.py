"""Function masks: Python callables and C function pointers, evaluated when a plan is made."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskattn
import oracle
from maskattn.masks import Causal, Function, Mask
from maskattn.masks.function import C_SIGNATURE
from strategies import Geometry, geometries_and_masks, normal


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


class Asked:
    """A function that notes what it is asked: calls, pairs, and how often each."""

    def __init__(self, f: Any = checker) -> None:
        self.f, self.calls, self.pairs = f, 0, Counter[tuple[int, int, int, int]]()

    def __call__(self, b: int, h: int, q: Any, k: Any) -> Any:
        assert isinstance(b, int)
        assert isinstance(h, int)
        assert (q.shape, k.shape) == ((q.size, 1), (1, k.size))
        assert 0 < q.size * k.size <= 2**20
        self.calls += 1
        self.pairs.update((b, h, int(i), int(j)) for i in q.ravel() for j in k.ravel())
        return self.f(b, h, q, k)

    def since(self) -> set[tuple[int, ...]]:
        """Pairs asked since the last call of this, (q, k) where b and h are 0; none of them twice."""
        assert set(self.pairs.values()) <= {1}
        asked = {pair if any(pair[:2]) else pair[2:] for pair in self.pairs}
        self.pairs.clear()
        return asked


def rectangle(rows: range, keys: range) -> set[tuple[int, ...]]:
    return {(q, k) for q in rows for k in keys}


def test_evaluated_when_a_plan_is_made_and_not_again(rng: np.random.Generator) -> None:
    f = Asked(lambda b, h, q, k: k <= q)
    x = normal(rng, 1, 2, 20, 8)
    mask = Function(f, per_sequence=False, per_head=False)
    plan = mask.plan(20, 20)
    assert f.calls == 1
    assert f.since() == rectangle(range(20), range(20))
    for _ in range(3):
        maskattn.attention(x, x, x, mask=plan)
        maskattn.attention(x, x, x, mask=mask)
    mask.to_bool(20, 20)
    (~mask | (Causal() & mask)).count(7, 18)
    mask.plan(3, 12, batch=5, heads=9, kv_lengths=[9, 10, 11, 12, 0], q_offset=2)
    assert f.calls == 1


def test_asked_about_new_rows_and_keys_only() -> None:
    f = Asked()
    mask = Function(f, per_sequence=False, per_head=False)
    plan, causal = mask.plan(5, 9, q_offset=2), (mask & Causal()).plan(5, 9, q_offset=2)
    assert f.since() == rectangle(range(2, 7), range(9))
    causal.extend(3)  # what is known before the mask is combined counts
    assert f.since() == rectangle(range(7, 10), range(12))
    causal.extend(2)
    assert f.since() == rectangle(range(10, 12), range(14))
    plan.extend(3)  # it may look ahead: former rows learn the new keys
    assert f.since() == rectangle(range(2, 7), range(9, 12))
    mask.plan(1, 15)
    assert f.since() == rectangle(range(14, 15), range(15))
    mask.plan(15, 15)
    missing = rectangle(range(15), range(15)) - rectangle(range(2, 7), range(12))
    missing -= (
        rectangle(range(7, 10), range(12)) | rectangle(range(10, 12), range(14)) | rectangle(range(14, 15), range(15))
    )
    assert f.since() == missing
    np.testing.assert_array_equal(mask.to_bool(15, 15), oracle.visible(Function(checker), 15, 15))
    assert f.since() == set()


def test_never_asked_about_what_is_not_in_the_call() -> None:
    f = Asked()
    Function(f).plan(3, 9, batch=2, heads=2, kv_lengths=[0, 5], q_offset=[0, -1])
    assert f.since() == {(1, h, q, k) for h in range(2) for q in (-1, 0, 1) for k in range(5)}
    plan = Function(f, per_head=False).plan(0, 9)
    assert f.since() == set()
    plan[:0].extend(2)
    assert f.since() == rectangle(range(9, 11), range(11))


@pytest.mark.parametrize(("q_len", "kv_len"), [(1500, 1500), (1, 2**20 + 70), (2, 2**20 - 1)])
def test_asked_in_tiles(q_len: int, kv_len: int) -> None:
    asked: list[int] = []

    def f(b: Any, h: Any, q: Any, k: Any) -> Any:
        asked.append(q.size * k.size)
        return (k & (q + 5) & 67) == 0

    got = Function(f).to_bool(q_len, kv_len)[0, 0]
    np.testing.assert_array_equal(got, f(0, 0, np.arange(kv_len - q_len, kv_len)[:, None], np.arange(kv_len)[None, :]))
    assert sum(asked[:-1]) == q_len * kv_len
    assert max(asked[:-1]) <= 2**20
    assert len(asked[:-1]) <= 4


def test_a_c_function_is_asked_once_a_pair() -> None:
    asked: list[tuple[int, int]] = []

    @C_SIGNATURE
    def f(b: int, h: int, q: int, k: int, data: int | None) -> int:
        asked.append((q, k))
        return q % 3 == k % 2

    mask = Function(f, per_head=False)
    want = (np.arange(300)[:, None] % 3) == (np.arange(300)[None] % 2)
    np.testing.assert_array_equal(mask.to_bool(300, 300, heads=2)[0, 1], want)
    np.testing.assert_array_equal((mask & Causal()).to_bool(300, 300)[0, 0], np.tril(want))
    assert sorted(asked) == sorted(rectangle(range(300), range(300)))


@pytest.mark.parametrize("keys", [1, 7, 8, 63, 64, 65, 130])
def test_answers_join_at_any_key(keys: int) -> None:
    mask = Function(checker)
    for more in (keys, keys + 1, keys + 9, keys + 70):
        got = mask.to_bool(3, more, q_offset=4)
        np.testing.assert_array_equal(got, oracle.visible(mask, 3, more, q_offset=4))
    np.testing.assert_array_equal(mask.to_bool(3, keys, q_offset=4), oracle.visible(mask, 3, keys, q_offset=4))


@given(geometries_and_masks(), st.booleans(), st.booleans(), st.data())
def test_kept_answers_say_what_the_definition_says(
    drawn: tuple[Geometry, Mask], per_sequence: bool, per_head: bool, data: st.DataObject
) -> None:
    g, other = drawn
    function = Function(checker, per_sequence, per_head)
    for _ in range(3):  # whatever was asked before
        function.plan(
            data.draw(st.integers(0, 9)), data.draw(st.integers(0, 80)), q_offset=data.draw(st.integers(-5, g.kv_len))
        )
    for mask in (function & other, function | ~other):
        np.testing.assert_array_equal(
            mask.to_bool(g.q_len, g.kv_len, **g.options()), oracle.visible(mask, g.q_len, g.kv_len, **g.options())
        )


@pytest.mark.parametrize("f", [checker, compiled], ids=["python", "c"])
def test_threads_plan_with_one_mask_at_once(f: Any) -> None:
    def slow(b: Any, h: Any, q: Any, k: Any) -> Any:
        time.sleep(1e-4)  # gives the GIL away
        return checker(b, h, q, k)

    mask = Function(slow if f is checker else f) & Causal()
    want = oracle.visible(Function(checker) & Causal(), 40, 40, heads=2)
    wrong: list[int] = []
    plan = mask.plan(1, 1, heads=2)

    def work(seed: int) -> None:
        for i in range(20):
            n = 1 + (7 * seed + 3 * i) % 40
            if not np.array_equal(mask.to_bool(n, n, heads=2), want[:, :, :n, :n]):
                wrong.append(n)
            if i % 4 == 0:
                plan.extend(1, threads=2)

    team = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert wrong == []
    assert plan == mask.plan(21, 21, heads=2)


def test_a_function_may_plan_with_its_own_mask() -> None:
    def f(b: Any, h: Any, q: Any, k: Any) -> Any:
        length = int(q.max()) // 2
        return (mask.count(length, length, q_offset=0) if length else 1) * k % 2 == 0

    mask = Function(f, per_sequence=False, per_head=False)
    assert mask.to_bool(8, 8).shape == (1, 1, 8, 8)


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"^f must be a callable f\(b, h, q_pos, kv_pos\) or a C .*, got int"):
        Function(3)
    with pytest.raises(ValueError, match=r"^f must be vectorised: .* broadcast to \(3, 7\), got shape \(2,\)"):
        Function(lambda b, h, q, k: np.ones(2, bool)).plan(3, 7)
    with pytest.raises(ZeroDivisionError):  # its own error comes through
        Function(lambda b, h, q, k: 1 // 0).plan(2000, 7, threads=2)
    assert Function(lambda b, h, q, k: True).to_bool(2, 3).all()


def test_an_error_leaves_mask_and_plan_as_they_were() -> None:
    def f(b: Any, h: Any, q: Any, k: Any) -> Any:
        if q.max() > limit:
            raise RuntimeError("too far")
        return checker(b, h, q, k)

    limit, mask = 4, Function(f)
    plan = mask.plan(5, 5)
    with pytest.raises(RuntimeError, match="too far"):
        plan.extend()
    assert plan == Function(checker).plan(5, 5)
    limit = 5
    assert plan.extend() == Function(checker).plan(6, 6)
