"""strategy="delete" and "auto": hidden keys and rows deleted instead of masked, with the same result."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import maskattn
import oracle
from maskattn import _core
from maskattn.masks import Causal, Dense, Full, KeyPadding, Mask, Padding, PrefixLM, QueryPadding
from strategies import Array, Geometry, Problem, bools, geometries_and_masks, normal, problems

TOLERANCE = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 1e-13}


def attend(p: Problem, strategy: str, **options: Any) -> tuple[Array, Array]:
    options = {"mask": p.mask, "bias": p.bias, "return_lse": True, **p.where(), **options}
    return maskattn.attention(p.q, p.k, p.v, strategy=strategy, **options)


def visible(p: Problem) -> Array:
    g = p.geometry
    return oracle.visible(p.mask, g.q_len, g.kv_len, batch=g.batch, heads=g.heads, **p.where())


def problem(rng: np.random.Generator, mask: Mask, g: Geometry, kv_heads: int = 2, dtype: Any = np.float32) -> Problem:
    return Problem(
        geometry=g,
        mask=mask,
        q=normal(rng, g.batch, g.heads, g.q_len, 24, dtype=dtype),
        k=normal(rng, g.batch, kv_heads, g.kv_len, 24, dtype=dtype),
        v=normal(rng, g.batch, kv_heads, g.kv_len, 20, dtype=dtype),
        bias=None,
    )


def scattered(rng: np.random.Generator, *shape: int) -> KeyPadding:
    return KeyPadding(rng.random(shape) < 0.4)


def test_deleting_agrees_with_the_oracle_and_keeps_bits_where_nothing_moves(isa: str) -> None:
    @given(problems())
    def agrees(p: Problem) -> None:
        seen = visible(p)
        want, want_lse, _ = oracle.attention(p.q, p.k, p.v, seen, bias=p.bias)
        masked, deleted = attend(p, "mask"), attend(p, "delete")
        for got, exact in zip(deleted, (want, want_lse), strict=True):
            assert got.dtype == p.q.dtype
            np.testing.assert_allclose(got, exact, rtol=0, atol=TOLERANCE[p.q.dtype])
        used = seen.any(axis=(1, 2))
        for b in np.flatnonzero((used[:, 1:] <= used[:, :-1]).all(axis=1)):  # only trailing keys are deleted
            for a, d in zip(masked, deleted, strict=True):
                np.testing.assert_array_equal(d[b], a[b])

    agrees()


@given(problems())
def test_auto_is_one_of_the_two(p: Problem) -> None:
    auto, masked, deleted = (attend(p, strategy)[0] for strategy in ("auto", "mask", "delete"))
    assert np.array_equal(auto, masked) or np.array_equal(auto, deleted)


@given(problems())
def test_what_is_deleted_is_not_read(p: Problem) -> None:
    seen = visible(p)
    hidden_keys, hidden_rows = ~seen.any(axis=(1, 2)), ~seen.any(axis=(1, 3))
    q, k, v = p.q.copy(), p.k.copy(), p.v.copy()
    for array, hidden in ((q, hidden_rows), (k, hidden_keys), (v, hidden_keys)):
        array.swapaxes(1, 2)[hidden] = np.nan
    poisoned = attend(replace(p, q=q, k=k, v=v), "delete")
    for got, want in zip(poisoned, attend(p, "delete"), strict=True):
        np.testing.assert_array_equal(got, want)


def test_bits_and_movement_by_sequence(isa: str, rng: np.random.Generator) -> None:
    """One sequence has only trailing padding, the other gaps: the first keeps its bits, the second has others."""
    keep = np.stack([np.arange(600) < 500, rng.random(600) < 0.5])
    p = problem(rng, KeyPadding(keep), Geometry(70, 600, batch=2, heads=4))
    masked, deleted = attend(p, "mask")[0], attend(p, "delete")[0]
    np.testing.assert_array_equal(deleted[0], masked[0])
    assert not np.array_equal(deleted[1], masked[1])
    np.testing.assert_allclose(deleted[1], masked[1], rtol=0, atol=4e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_without_keys_keep_the_bits_of_the_others(threads: int, rng: np.random.Generator) -> None:
    p = problem(rng, QueryPadding(rng.random((2, 300)) < 0.5) & Padding([300, 170]), Geometry(300, 300, 2, 4))
    for got, want in zip(attend(p, "delete", threads=threads), attend(p, "mask"), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_key_is_kept_for_the_one_head_that_sees_it(rng: np.random.Generator) -> None:
    keep = np.zeros((2, 4, 9, 40), np.bool_)
    keep[0, 3, 5, [1, 17, 30]] = True
    keep[1, 0, 8, 39] = True
    p = problem(rng, Dense(keep), Geometry(9, 40, 2, 4))
    want, want_lse, _ = oracle.attention(p.q, p.k, p.v, keep)
    got, lse = attend(p, "delete")
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-6)
    np.testing.assert_allclose(lse, want_lse, rtol=0, atol=4e-6)
    assert not got[~keep.any(axis=3)].any()


@pytest.mark.parametrize("rows", [Full(), QueryPadding(np.arange(90) % 3 > 0)], ids=["all rows", "some rows"])
def test_out_is_written_and_returned(rows: Mask, rng: np.random.Generator) -> None:
    p = problem(rng, scattered(rng, 2, 90) & Causal() & rows, Geometry(90, 90, 2, 4))
    want = attend(p, "delete")[0]
    out = np.full_like(want, np.nan)
    assert attend(p, "delete", out=out)[0] is out
    np.testing.assert_array_equal(out, want)
    backwards = np.full_like(want, np.nan)[:, :, ::-1]
    assert attend(p, "delete", out=backwards, return_lse=False) is backwards
    np.testing.assert_array_equal(backwards, want)


@pytest.mark.parametrize("planned", [{"batch": 2, "heads": 4}, {}], ids=["this batch", "any batch"])
def test_plans_and_arrays_are_masks_too(planned: dict[str, int], rng: np.random.Generator) -> None:
    mask = scattered(rng, 80) & PrefixLM(30)
    p = problem(rng, mask, Geometry(80, 80, 2, 4))
    want = attend(p, "delete")[0]
    assert not np.array_equal(want, attend(p, "mask")[0])  # keys have moved
    plan = mask.plan(80, 80, **planned)
    for same in (plan, mask.to_bool(80, 80)):
        np.testing.assert_array_equal(attend(p, "delete", mask=same)[0], want)


def test_transposed_arrays(rng: np.random.Generator) -> None:
    p = problem(rng, scattered(rng, 70), Geometry(33, 70, 1, 4))
    q, k, v = (np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in (p.q, p.k, p.v))
    for got, want in zip(attend(replace(p, q=q, k=k, v=v), "delete"), attend(p, "delete"), strict=True):
        np.testing.assert_array_equal(got, want)


# What the core tells of a plan


@given(geometries_and_masks())
def test_used_rows_and_keys(case: tuple[Geometry, Mask]) -> None:
    g, mask = case
    seen = oracle.visible(mask, g.q_len, g.kv_len, **g.options())
    rows, keys, pairs = mask.plan(g.q_len, g.kv_len, **g.options()).used()
    np.testing.assert_array_equal(np.broadcast_to(rows, (g.batch, g.q_len)), seen.any(axis=(1, 3)))
    np.testing.assert_array_equal(np.broadcast_to(keys, (g.batch, g.kv_len)), seen.any(axis=(1, 2)))
    panels = [seen[..., begin : begin + 64].any(axis=3).sum() for begin in range(0, g.kv_len, 64)]
    assert pairs == 64 * sum(panels)


@given(geometries_and_masks())
def test_compressed_plans(case: tuple[Geometry, Mask]) -> None:
    """Any rows and keys may go, used or not."""
    g, mask = case
    plan = mask.plan(g.q_len, g.kv_len, **g.options())
    rows, keys = (bools(g.q_len + n, len(used), used.shape[1]) for n, used in enumerate(plan.used()[:2]))
    expr = _core.mask_compressed(plan, rows, keys)
    q_len, kv_len = int(rows.sum(axis=1).max()), int(keys.sum(axis=1).max())
    left = _core.make_plan(expr, q_len, kv_len, g.batch, g.heads, 0, None, None)
    got = np.empty((g.batch, g.heads, q_len, kv_len), np.uint8)
    _core.fill_from_plan(left, got, 1, 0, None)
    want = np.zeros_like(got)
    seen = oracle.visible(mask, g.q_len, g.kv_len, **g.options())
    for b in range(g.batch):
        i, j = (np.flatnonzero(kept[b if len(kept) > 1 else 0]) for kept in (rows, keys))
        want[b, :, : len(i), : len(j)] = seen[b][:, i][:, :, j]
    np.testing.assert_array_equal(got, want)


def test_a_plan_is_not_compressed_into_fewer_rows_than_are_left() -> None:
    expr = _core.mask_compressed(Causal().plan(3, 5), np.ones((1, 3), bool), np.ones((1, 5), bool))
    with pytest.raises(ValueError, match=r"^kv_len must be at least 5, the keys that are left, got 4"):
        _core.make_plan(expr, 3, 4, 1, 1, 0, None, None)


# What "auto" chooses: bits tell, for scattered keys move


@pytest.mark.parametrize(
    ("q_len", "kept", "deletes"), [(1, 0.5, False), (2048, 0.3, True), (2048, 0.99, False)],
    ids=["decode", "scattered", "hardly padded"],
)  # fmt: skip
def test_auto_deletes_where_it_pays(q_len: int, kept: float, deletes: bool, rng: np.random.Generator) -> None:
    p = problem(rng, KeyPadding(rng.random(2048) < kept), Geometry(q_len, 2048, 1, 4))
    masked, deleted = attend(p, "mask")[0], attend(p, "delete")[0]
    assert not np.array_equal(masked, deleted)
    np.testing.assert_array_equal(attend(p, "auto", threads=2)[0], deleted if deletes else masked)


def test_deleting_needs_no_memory_of_all_pairs(rng: np.random.Generator) -> None:
    n = 4096
    p = problem(rng, scattered(rng, n) & Causal(), Geometry(n, n, 1, 1), kv_heads=1)
    tracemalloc.start()
    try:
        attend(p, "delete")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n * n / 8


# Errors are those of masking, and nothing is written


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"strategy": "drop"}, ValueError, "^strategy must be one of mask, delete, auto, got 'drop'"),
        ({"q": [[1.0]]}, TypeError, "^q must be"),
        ({"k": np.ones((1, 2, 9), np.float32)}, ValueError, "^k must have shape"),
        ({"v": np.ones((1, 2, 8, 4), np.float32)}, ValueError, "^v must have k's kv_len 9, got 8"),
        ({"v": np.ones((1, 2, 9, 8), np.float32)[..., ::2]}, ValueError, "^v must have a contiguous last axis"),
        ({"k": np.ones((1, 2, 9, 4), np.int64)}, TypeError, "^k must be float32"),
        ({"k": np.ones((1, 2, 9, 3), np.float32)}, ValueError, "^k must have q's head_dim 4, got 3"),
        ({"bias": np.ones(8, np.float32)}, ValueError, "^bias must be broadcastable"),
        ({"mask": Causal().plan(5, 8)}, ValueError, "^mask must be planned for"),
        ({"scale": np.inf}, ValueError, "^scale must be finite"),
        ({"threads": 0}, ValueError, "^threads must be"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("rows", [Full(), QueryPadding(np.arange(9) % 2 == 0)], ids=["keys", "rows"])
def test_bad_arguments(bad: dict[str, Any], error: type[Exception], message: str, rows: Mask) -> None:
    good = {name: np.ones((1, 2, n, 4), np.float32) for name, n in (("q", 5), ("k", 9), ("v", 9))}
    out = np.full((1, 2, 5, 4), np.nan, np.float32)
    mask = KeyPadding(np.arange(9) % 2 == 0) & rows
    with pytest.raises(error, match=message):
        maskattn.attention(**{**good, "mask": mask, "strategy": "delete", "out": out, **bad})
    assert np.isnan(out).all()


@pytest.mark.parametrize("rows", [Full(), QueryPadding(np.arange(9) % 2 == 0)], ids=["keys", "rows"])
def test_bad_outputs(rows: Mask) -> None:
    q, k, v = (np.ones((1, 2, n, 4), np.float32) for n in (5, 9, 9))
    locked = np.zeros_like(q)
    locked.flags.writeable = False
    mask = KeyPadding(np.arange(9) % 2 == 0) & rows
    for out, error, message in [
        (k[:, :, :5], ValueError, "^out must not share memory with k"),
        (q, ValueError, "^out must not share memory with q"),
        (locked, ValueError, "^out must be writeable"),
        (np.zeros((1, 2, 5, 3), np.float32), ValueError, "^out must have shape"),
        (np.zeros((1, 2, 5, 4)), TypeError, "^out must have the dtype of q"),
        ([0.0], TypeError, "^out must be"),
    ]:
        with pytest.raises(error, match=message):
            maskattn.attention(q, k, v, mask=mask, strategy="delete", out=out)  # type: ignore[call-overload]
