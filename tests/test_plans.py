"""Plans: they grow, are sliced and share memory, and say after all that what the mask says."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import maskattn
import oracle
from maskattn import MaskPlan, _core
from maskattn.masks import (
    BlockSparse,
    Causal,
    Chunked,
    Dense,
    Documents,
    FirstTokens,
    Full,
    KeyPadding,
    Mask,
    Padding,
    PrefixLM,
    QueryPadding,
    SlidingWindow,
    Tree,
)
from strategies import Geometry, bools, geometries_and_masks, normal

PIECE = 512  # rows that are stored together


def plan_of(mask: Mask, g: Geometry) -> MaskPlan:
    return mask.plan(g.q_len, g.kv_len, **g.options())


def shorter(g: Geometry, n: int) -> Geometry:
    """The geometry that n rows and keys more make ``g`` of."""
    exist = np.asarray(g.kv_len if g.kv_lengths is None else g.kv_lengths)
    offset = exist - g.q_len if g.q_offset is None else np.asarray(g.q_offset)
    return replace(g, q_len=g.q_len - n, kv_len=g.kv_len - n, kv_lengths=(exist - n).tolist(), q_offset=offset.tolist())


def to_bool(plan: MaskPlan) -> npt.NDArray[np.bool_]:
    out = np.empty((plan.batch, plan.heads, plan.q_len, plan.kv_len), np.bool_)
    _core.fill_from_plan(plan, out, 1, 0, None)
    return out


def rows_of(plan: MaskPlan) -> list[Any]:
    return [plan.spans(*at) for at in np.ndindex(plan.batch, plan.heads, plan.q_len)]


def assert_same(got: MaskPlan, want: MaskPlan) -> None:
    assert (got.batch, got.heads, got.q_len, got.kv_len) == (want.batch, want.heads, want.q_len, want.kv_len)
    for name in ("kv_lengths", "q_offset"):
        np.testing.assert_array_equal(*np.broadcast_arrays(getattr(got, name), getattr(want, name)))
    assert got == want


# Growing


@given(geometries_and_masks(), st.lists(st.integers(0, 5), max_size=4))
def test_extended_is_planned_from_scratch(drawn: tuple[Geometry, Mask], steps: list[int]) -> None:
    g, mask = drawn
    total = sum(steps)
    assume(total <= g.q_len and total <= np.min(g.kv_len if g.kv_lengths is None else g.kv_lengths))
    try:
        plan = plan_of(mask, shorter(g, total))
    except ValueError:
        assume(False)  # a dense mask of other rows or keys
    for i, n in enumerate(steps, 1):
        try:
            assert plan.extend(n) is plan
        except ValueError:
            assume(False)  # a dense mask on the way
        assert_same(plan, plan_of(mask, shorter(g, total - sum(steps[:i]))))


GROWING: list[Mask] = [
    Full(),
    Causal(),
    Causal() & SlidingWindow(70),
    SlidingWindow(3, 5),
    SlidingWindow(2, None),
    ~Causal(),
    Padding(1100),
    Padding([40, 1700]),
    Padding([40, 90], "left"),
    Causal() & Padding(300, "left"),
    Causal() | Padding(300),
    PrefixLM([700, 1100]),
    Chunked(64),
    Causal() & Chunked(100),
    Tree([-1, 0, 0, 1]),
    Tree([-1, 0, 0, 1], 1030),
    FirstTokens(4) | SlidingWindow(9, 0),
    Causal() & Documents(np.arange(1700) // 300),
    Documents(np.arange(1700) // 300),
    KeyPadding(np.arange(1700) % 7 > 2) & Causal(),
    KeyPadding(np.arange(1700) < 60),
    QueryPadding(np.arange(1700) % 7 > 2),
    BlockSparse(bools(3, 1, 3, 27, 27), 64),
    BlockSparse(bools(4, 2, 1, 27, 27), 64) & Causal(),
]


@pytest.mark.parametrize("mask", GROWING, ids=repr)
@pytest.mark.parametrize("q_offset", [None, 0, [3, -20]])
def test_extended_past_many_pieces(mask: Mask, q_offset: Any) -> None:
    options: dict[str, Any] = {"batch": 2, "heads": 3}
    kv_len, q_len = 1020, 505
    lengths = np.array([1000, 600])
    plan = mask.plan(q_len, kv_len, kv_lengths=lengths, q_offset=q_offset, **options)
    offset = np.array(plan.q_offset)
    for n in (1, 6, 1, 600):
        plan.extend(n, threads=2)
        q_len, kv_len, lengths = q_len + n, kv_len + n, lengths + n
        assert_same(plan, mask.plan(q_len, kv_len, kv_lengths=lengths, q_offset=offset, **options))


def test_a_plan_of_no_rows_grows() -> None:
    plan = Causal().plan(0, 3)
    assert rows_of(plan.extend(2)) == [([(0, 4)], False), ([(0, 5)], False)]
    assert Causal().plan(0, 0).extend(3) == Causal().plan(3, 3)
    for end in (7, PIECE, PIECE + 1):
        assert rows_of(Causal().plan(end, end)[end:].extend()) == [([(0, end + 1)], False)]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Documents(np.zeros(5, int)), "Documents: kv_ids must cover the call's 6 keys"),
        (Documents(np.zeros(5, int), np.zeros(9, int)), "Documents: ids must cover the call's 6 query positions"),
        (KeyPadding(np.ones(5, bool)), "KeyPadding must cover the call's 6 keys"),
        (QueryPadding(np.ones(5, bool)) | Causal(), "QueryPadding must cover the call's 6 query positions"),
        (Dense(np.eye(5, dtype=bool)), "Dense must have a q_len of 6 or 1, got 5"),
        (Dense(np.ones((1, 5), bool)), "Dense must have a kv_len of 6 or 1, got 5"),
        (BlockSparse(np.ones((1, 1), bool), 5), "BlockSparse must cover the call's 6 keys"),
    ],
    ids=lambda x: repr(x)[:40],
)
def test_a_mask_that_does_not_reach_further_changes_nothing(mask: Mask, message: str) -> None:
    plan, part = mask.plan(5, 5), mask.plan(5, 5)[1:]
    for grown in (plan, part):
        before = repr(grown), rows_of(grown)
        with pytest.raises(ValueError, match=f"^{message}"):
            grown.extend()
        assert (repr(grown), rows_of(grown)) == before


def test_bad_arguments_of_extend() -> None:
    plan = Causal().plan(2, 2)
    with pytest.raises(ValueError, match=r"^n must be from 0 to 2\*\*31 - 1, got -1"):
        plan.extend(-1)
    with pytest.raises(TypeError, match=r"^n must be an integer, got float"):
        plan.extend(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^threads must be from 1"):
        plan.extend(threads=0)
    with pytest.raises(ValueError, match=r"^kv_len must be below 2\*\*31"):
        plan.extend(2**31 - 1)
    assert plan == Causal().plan(2, 2)


# Slices


@given(geometries_and_masks(), st.data())
def test_a_slice_has_those_rows(drawn: tuple[Geometry, Mask], data: st.DataObject) -> None:
    g, mask = drawn
    plan = plan_of(mask, g)
    bound = st.none() | st.integers(-g.q_len - 2, g.q_len + 2)
    begin, end = data.draw(bound), data.draw(bound)
    rows, part = range(g.q_len)[begin:end], plan[begin:end]
    assert (part.batch, part.heads, part.q_len, part.kv_len) == (g.batch, g.heads, len(rows), g.kv_len)
    assert part.kv_lengths == plan.kv_lengths
    assert part.q_offset == [offset + rows.start for offset in plan.q_offset]
    for b, h, i in np.ndindex(part.batch, part.heads, part.q_len):
        assert part.spans(b, h, i) == plan.spans(b, h, rows[i])
    want = oracle.visible(mask, g.q_len, g.kv_len, **g.options())[:, :, begin:end]
    np.testing.assert_array_equal(to_bool(part), want)
    np.testing.assert_array_equal(part.empty_rows(), ~want.any(axis=-1))
    assert part.count() == want.sum()
    assert (part == plan) == (want.shape == (g.batch, g.heads, g.q_len, g.kv_len))
    assert part.is_subset(plan[begin:end])
    np.testing.assert_array_equal(part.tiles(), Dense(want).plan(len(rows), g.kv_len).tiles())
    assert part.agrees(plan.kv_lengths, part.q_offset)


@given(geometries_and_masks(), st.data())
def test_a_slice_grows_as_its_plan_does(drawn: tuple[Geometry, Mask], data: st.DataObject) -> None:
    g, mask = drawn
    n = data.draw(st.integers(0, 3))
    assume(n <= g.q_len and n <= np.min(g.kv_len if g.kv_lengths is None else g.kv_lengths))
    begin = data.draw(st.integers(0, g.q_len - n))
    try:
        plan = plan_of(mask, shorter(g, n))
        part = plan[begin:].extend(n)
    except ValueError:
        assume(False)  # a dense mask of other rows or keys
    assert_same(part, plan_of(mask, g)[begin:])
    assert_same(plan, plan_of(mask, shorter(g, n)))  # which the slice shared its rows with


def test_slices_of_slices_across_pieces() -> None:
    mask, n = Causal() & SlidingWindow(70), 3 * PIECE + 100
    plan = mask.plan(n, n)
    want = rows_of(plan)
    for begin, end in [(0, n), (PIECE, 2 * PIECE), (PIECE - 1, PIECE + 1), (700, 1600), (n - 1, n), (n, n)]:
        part = plan[begin:end]
        assert rows_of(part) == want[begin:end]
        assert rows_of(part[5:]) == want[begin:end][5:]
        assert rows_of(part[:-3]) == want[begin:end][:-3]
        assert rows_of(part[-600:][7:-1]) == want[begin:end][-600:][7:-1]
    short = plan[100 : PIECE + 50]
    for _ in range(3):  # over rows that the plan has, and past them
        short.extend(PIECE - 20)
    assert_same(short, mask.plan(short.q_len, n + 3 * (PIECE - 20), q_offset=100))
    assert rows_of(plan) == want


def test_a_slice_stays_when_its_plan_grows() -> None:
    plan = SlidingWindow(2, 3).plan(20, 20)
    part, before = plan[15:], rows_of(plan)
    plan.extend(4)
    assert rows_of(part) == before[15:]
    assert rows_of(plan) == rows_of(SlidingWindow(2, 3).plan(24, 24))
    part.extend(1)
    assert rows_of(plan) == rows_of(SlidingWindow(2, 3).plan(24, 24))


def test_bad_slices() -> None:
    plan = Causal().plan(4, 4)
    with pytest.raises(TypeError, match=r"^rows must be a slice, got int; pass plan\[i : i \+ 1\]"):
        plan[1]  # type: ignore[index]
    for step in (2, -1):
        with pytest.raises(ValueError, match=r"^rows of a plan must be sliced with a step of 1, got slice\(None, None"):
            plan[::step]
    with pytest.raises(ValueError, match="step cannot be zero"):
        plan[::0]
    with pytest.raises(TypeError, match="slice indices"):
        plan["a":]  # type: ignore[misc]


# Decoding with one plan


@pytest.mark.parametrize("mask", [Causal(), Causal() & SlidingWindow(20), PrefixLM([3, 30])], ids=repr)
def test_a_step_of_decoding(mask: Mask, rng: np.random.Generator) -> None:
    steps, lengths = 8, np.array([40, 25])
    q, k, v = (normal(rng, 2, 2, 60, 16) for _ in range(3))
    plan = mask.plan(1, 40, batch=2, heads=2, kv_lengths=lengths)
    for step in range(1, steps):
        plan.extend(1)
        now = lengths + step
        got = maskattn.attention(q[:, :, :1], k[:, :, : 40 + step], v[:, :, : 40 + step], mask=plan[-1:])
        want = maskattn.attention(q[:, :, :1], k[:, :, : 40 + step], v[:, :, : 40 + step], mask=mask, kv_lengths=now)
        np.testing.assert_array_equal(got, want)


def test_threads_extend_one_plan_while_others_read_it(rng: np.random.Generator) -> None:
    mask = Causal() & SlidingWindow(40)
    plan = mask.plan(1, 1)
    x = normal(rng, 1, 1, 400, 8)
    wrong: list[str] = []

    def extend() -> None:
        for _ in range(150):
            plan.extend(1)

    def read() -> None:
        for _ in range(150):
            part = plan[-5:]
            n = part.kv_len
            if part != mask.plan(part.q_len, n):
                wrong.append(repr(part))
            if not np.isfinite(maskattn.attention(x[:, :, : part.q_len], x[:, :, :n], x[:, :, :n], mask=part)).all():
                wrong.append("not finite")

    team = [threading.Thread(target=f) for f in (extend, extend, read, read)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert wrong == []
    assert_same(plan, mask.plan(301, 301))


# Memory


def test_heads_and_sequences_that_agree_share_memory(rng: np.random.Generator) -> None:
    keep = rng.random((700, 700)) < 0.5
    one = Dense(keep).plan(700, 700).nbytes
    assert one > 700 * 700 / 8
    for extents in [(1, 16), (16, 1), (4, 4)]:
        plan = Dense(np.broadcast_to(keep, (*extents, 700, 700))).plan(700, 700)
        assert (plan.batch, plan.heads) == extents
        assert plan.nbytes < one + 16 * 100
        assert plan == Dense(keep).plan(700, 700, batch=extents[0], heads=extents[1])
    half = np.stack([keep, keep])
    half[1, :600] ^= True  # they differ in the first piece of 512 rows, and in part of the second
    assert 1.9 * one < Dense(half[None]).plan(700, 700).nbytes < 2.1 * one
    half[1, PIECE:] = keep[PIECE:]  # in the first only
    assert 1.6 * one < Dense(half[None]).plan(700, 700).nbytes < 1.8 * one


def test_heads_that_agree_still_share_memory_when_they_have_grown() -> None:
    blocks = bools(7, 1, 2, 30, 30)
    shared, single = BlockSparse(blocks[:, [0, 1, 0, 1, 0, 0]], 50), BlockSparse(blocks, 50)
    plan, want = shared.plan(40, 40), single.plan(40, 40)
    for n in (1, 1, 700, 3):
        plan.extend(n)
        want.extend(n)
        assert plan.nbytes < want.nbytes + 200
        assert plan == shared.plan(plan.q_len, plan.kv_len)


def test_heads_that_differ_further_on_part_when_they_grow() -> None:
    blocks = np.tri(4, dtype=bool)[None, None].repeat(3, axis=1)
    blocks[0, 1, 2:] ^= True
    mask = Causal() & BlockSparse(blocks, 300)
    plan = mask.plan(590, 590)
    small = plan.nbytes
    for n in (5, 5, 1, 500):
        plan.extend(n)
        assert_same(plan, mask.plan(plan.q_len, plan.kv_len))
    assert plan.nbytes > 1.5 * small


def test_rows_that_repeat_take_the_memory_of_one_piece() -> None:
    assert Full().plan(100 * PIECE, 1000).nbytes < 2 * Full().plan(PIECE, 1000).nbytes


def test_a_slice_takes_the_memory_of_its_pieces() -> None:
    plan = Causal().plan(100 * PIECE, 100 * PIECE)
    assert plan[-1:].nbytes < plan.nbytes / 50
    assert Causal().plan(1, 9).nbytes < 1000


def test_growing_by_rows_takes_memory_by_rows() -> None:
    plan = SlidingWindow(30, 5).plan(1, 1)  # five rows are lowered again each time
    for _ in range(3 * PIECE):
        plan.extend(1)
    assert plan.nbytes < 2 * SlidingWindow(30, 5).plan(3 * PIECE + 1, 3 * PIECE + 1).nbytes
