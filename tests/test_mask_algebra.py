"""Masks as values: equal by meaning, hashed alike, in one another, their difference, simplified, printed as Python."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import oracle
import strategies
from maskattn import masks
from maskattn.masks import (
    BlockDiffusion,
    BlockSparse,
    Causal,
    Chunked,
    Dense,
    Dilated,
    Documents,
    FirstTokens,
    Full,
    Function,
    GlobalTokens,
    KeyPadding,
    Mask,
    Neighborhood,
    Padding,
    PrefixLM,
    QueryPadding,
    SlidingWindow,
    Tree,
    diff,
)
from maskattn.masks.boxes import boxes, joined
from maskattn.masks.normal_form import WORK, accepted, alike, edges_of, leaves
from strategies import Geometry, per_sequence

NOTHING = ~Full()
HALF = KeyPadding([True, False, True, True])
PACKED = Documents([0, 0, 1, 1, 1, 0])
SPARSE = BlockSparse([[True, False], [True, True]], 2)
TREE = Tree([-1, 0, 0, 1], start=2)
LAST = QueryPadding(np.arange(51) == 50)


def asked(*_: Any) -> Any:
    raise AssertionError("a function is not called to compare masks")


F, G = Function(asked), Function(asked, per_head=False)

LEAVES: list[Mask] = [
    Full(), Causal(), SlidingWindow(2, 1), Padding(3), Padding([2, 4]), Padding(2, side="left"), PrefixLM(2), HALF,
    QueryPadding([True, False, True]), PACKED, Chunked(3), Dilated(2, 3), GlobalTokens([1, 4]), FirstTokens(2), TREE,
    Tree([-1, 0]), SPARSE, Neighborhood(3, 5), Neighborhood((3, 1), (4, 2)), BlockDiffusion(2), BlockDiffusion(2, 4),
    Dense([[True, False, True], [False, True, True]]), F,
]  # fmt: skip


@st.composite
def small_geometries(draw: st.DrawFn) -> Geometry:
    """Small enough for every pair of a decisive call to be asked for in NumPy."""
    batch, kv_len = draw(st.integers(1, 2)), draw(st.integers(0, 9))
    return Geometry(
        q_len=draw(st.integers(0, 6)),
        kv_len=kv_len,
        batch=batch,
        heads=draw(st.integers(1, 2)),
        q_offset=draw(st.none() | per_sequence(batch, -3, kv_len + 3)),
        kv_lengths=draw(st.none() | per_sequence(batch, 0, kv_len)),
    )


def is_small(leaf: Mask) -> bool:
    """No function, and no parameter so large that every pair could not be asked for."""
    numbers = [value for value in leaf.__getstate__().values() if isinstance(value, int)]
    return not isinstance(leaf, Function) and max(numbers, default=0) < 100


@st.composite
def small_leaves(draw: st.DrawFn, g: Geometry) -> Mask:
    kind = draw(st.sampled_from([kind for kind in strategies.LEAVES if kind is not Function]))
    leaf = strategies.LEAVES[kind](draw, g)
    assume(is_small(leaf))
    return leaf


def expressions(g: Geometry) -> st.SearchStrategy[Mask]:
    return strategies.expressions(g).filter(lambda mask: all(map(is_small, leaves(mask))))


def like(data: st.DataObject, g: Geometry, mask: Mask) -> Mask:
    """A mask that is often equal to this one."""
    other = data.draw(expressions(g))
    return data.draw(
        st.sampled_from(
            [
                ~~mask, mask & mask, mask | mask & other, mask & (mask | other), ~(~mask | ~mask), mask & Full(),
                (mask & other) | (mask & ~other), mask | NOTHING, mask & SlidingWindow(), mask.simplify(), other,
                mask & Causal(), mask | Padding(1),
            ]
        )
    )  # fmt: skip


# Laws, and masks that are the same by another name


def laws() -> list[Any]:
    a, b, c = Causal() | Padding(2), SlidingWindow(3, 1) & ~GlobalTokens([1]), Chunked(4) | Padding(3, side="left")
    return [
        pytest.param(left, right, id=name)
        for name, left, right in [
            ("commutative &", a & b, b & a),
            ("commutative |", a | b, b | a),
            ("associative &", (a & b) & c, a & (b & c)),
            ("associative |", (a | b) | c, a | (b | c)),
            ("distributive &", a & (b | c), (a & b) | (a & c)),
            ("distributive |", a | (b & c), (a | b) & (a | c)),
            ("De Morgan &", ~(a & b), ~a | ~b),
            ("De Morgan |", ~(a | b), ~a & ~b),
            ("absorption &", a & (a | b), a),
            ("absorption |", a | (a & b), a),
            ("identity &", a & Full(), a),
            ("identity |", a | NOTHING, a),
            ("zero &", a & NOTHING, NOTHING),
            ("zero |", a | Full(), Full()),
            ("complement &", a & ~a, NOTHING),
            ("complement |", a | ~a, Full()),
            ("double negation", ~~a, a),
        ]
    ]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        *laws(),
        (Causal(), SlidingWindow(None, 0)),
        (Causal() & SlidingWindow(left=3), SlidingWindow(3, 0)),
        (SlidingWindow(2**31 - 1, 0), SlidingWindow(2**31 - 1) & Causal()),
        (SlidingWindow(), Full()),
        (PrefixLM(0), Causal()),
        (PrefixLM([3, 0]), Causal() | Padding([3, 0])),
        (Padding(3), FirstTokens(3)),
        (Padding(3) & Padding(5), Padding(3)),
        (Padding([3]), Padding(3)),
        (Padding([3, 5]) | Padding([4, 2]), Padding([4, 5])),
        (Padding(0), NOTHING),
        (Padding(3, side="left") | Padding(5, side="left"), Padding(5, side="left")),
        (Padding(0, side="left"), NOTHING),
        (Chunked(2) & Chunked(4), Chunked(2)),
        (Chunked(6) & Chunked(4) & Causal(), Chunked(4) & Causal() & Chunked(6)),
        (Chunked(1), SlidingWindow(0, 0)),
        (BlockDiffusion(1), Causal()),
        (BlockDiffusion(4), Causal() | Chunked(4)),
        (BlockDiffusion(4) & ~Chunked(4), Causal() & ~Chunked(4)),
        (Dilated(3, 1), SlidingWindow(3, 3)),
        (Dilated(0, 5), SlidingWindow(0, 0)),
        (Dilated(6, 2) & Dilated(4, 3), Dilated(2, 6)),
        (GlobalTokens([2, 1]) | GlobalTokens([1]), GlobalTokens([1, 2])),
        (GlobalTokens([]), NOTHING),
        (Neighborhood(3, 8), Neighborhood((1, 3), (1, 8))),
        (Neighborhood(8, 8), FirstTokens(8) & Neighborhood(8, 8)),
        (Tree([-1, 0, 1], start=2) & Padding(5), Tree([-1, 0, 1], start=2)),
        (Tree([-1, 0, 1]) & Causal(), Tree([-1, 0, 1])),
        (KeyPadding([True, False]) & KeyPadding([False, True]), ~KeyPadding([True, True])),
        (Documents([5, 5, 7]), Documents([1, 1, 0], [1, 1, 0])),
        (Documents([1, 2, 1]) & Documents([3, 3, 4]), Documents([0, 1, 2])),
        (BlockSparse([[True, False], [True, True]], 2), SPARSE | (Chunked(2) & SPARSE)),
        (Dense([[True, False]] * 3), Dense([True, False]) & Dense([[True], [True], [True]])),
        (F & Causal() | F & ~Causal(), F),
        ((F | Causal()) & (F | ~Causal()), F),
        ((F & PrefixLM(0)) | (G & SlidingWindow(None, 0)), (G | F) & Causal()),
    ],
)
def test_equal_masks(a: Mask, b: Mask) -> None:
    assert a == b
    assert b == a
    assert hash(a) == hash(b)
    assert len({a, b}) == 1
    if F not in leaves(a):
        assert a.is_subset(b)
        assert b.is_subset(a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Causal(), SlidingWindow(None, 1)),
        (Causal(), SlidingWindow(4095, 0)),
        (Causal(), SlidingWindow(2**31 - 1, 0)),
        (SlidingWindow(4095, 0), SlidingWindow(4096, 0)),
        (Padding(4095), Padding(4096)),
        (Padding([1, 5]), Padding([1, 6])),
        (Padding(3, side="left"), Padding(3)),
        (Padding(100, side="left"), Padding(101, side="left")),
        (PrefixLM(100), PrefixLM(101)),
        (Chunked(100), Chunked(101)),
        (Chunked(6), Chunked(2) & Chunked(3)),
        (Dilated(50, 3), Dilated(51, 3)),
        (Dilated(5, 30), Dilated(5, 31)),
        (GlobalTokens([1, 500]), GlobalTokens([1, 501])),
        (GlobalTokens([1]), FirstTokens(2) & ~FirstTokens(1)),  # queries at 1 see every key
        (Tree([-1, 0, 0]), Tree([-1, 0, 1])),
        (Tree([-1, 0], start=9), Tree([-1, 0], start=10)),
        (Neighborhood(3, 40), Neighborhood(3, 41)),
        (Neighborhood(3, 8), SlidingWindow(1, 1) & FirstTokens(8)),
        (BlockDiffusion(2, 40), BlockDiffusion(2, 41)),
        (HALF, KeyPadding([True, False, True, False])),
        (QueryPadding([True, True]), KeyPadding([True, True])),
        (Dense(np.eye(3) == 1), SlidingWindow(0, 0) & Dense(np.eye(3) == 1)),  # rows are not positions
        # Pairs in one place only: the last row before the keys; the query at 50 where 31 keys exist
        (Dense([[False] * 2] * 9 + [[True] * 2]) & ~Causal(), Dense([[False] * 2] * 10)),
        (LAST & SlidingWindow(20) & ~SlidingWindow(19) & Padding(1, side="left"), LAST & NOTHING),
        (F, G),
        (F, ~F),
        (F, Full()),
        (F & G, F),
        (F, Function(asked, data=1)),
    ],
)
def test_masks_that_differ(a: Mask, b: Mask) -> None:
    assert a != b
    assert ~a != ~b


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Padding(3), Padding([3, 3])),
        (Full(), KeyPadding([True] * 5)),
        (KeyPadding([True] * 5), KeyPadding([True] * 6)),
        (Full(), QueryPadding([True] * 5) | Full()),
        (HALF & ~HALF, NOTHING),
        (Dense(np.ones((2, 3), bool)), Full()),
        (Dense(np.ones((2, 1), bool)), Dense(np.ones((1, 2), bool))),
    ],
)
def test_masks_of_other_calls_differ(a: Mask, b: Mask) -> None:
    """Also where they agree on all calls that both accept."""
    assert a != b
    assert a.is_subset(b)


def test_masks_that_no_call_accepts_equal_what_is_written_alike() -> None:
    two, three = Padding([1, 2]), Padding([1, 2, 3])
    assert two & three == Padding((1, 2)) & three
    assert hash(two & three) == hash(Padding((1, 2)) & three)
    assert two & three != three & two
    assert Dense(np.eye(3) == 1) & Dense(np.eye(4) == 1) != NOTHING
    assert Dense(np.eye(5) == 1) & HALF != NOTHING  # KeyPadding ends at 4


def test_masks_equal_masks_only() -> None:
    assert Causal() != "Causal()"
    assert Causal() != True  # noqa: E712
    assert Causal() != None  # noqa: E711


def test_every_kind_is_compared_by_meaning() -> None:
    kinds = [kind for name in masks.__all__ if isinstance(kind := getattr(masks, name), type) and kind is not Mask]
    assert {type(leaf) for leaf in LEAVES} | {masks.All, masks.Any, masks.Not} == set(kinds)
    for kind in kinds:
        assert (kind.__eq__, kind.__hash__) == (Mask.__eq__, Mask.__hash__)
    for leaf in set(LEAVES) - {F}:
        assert edges_of(leaf) is not None
        assert leaf == leaf & (leaf | Causal())


def test_a_kind_of_ones_own_is_an_unknown_set() -> None:
    @dataclass(frozen=True)
    class Even(Mask):
        of: str = "keys"

        def _lower(self) -> Any:
            return Full().expr

    assert Even() == Even("keys") == Even() & (Even() | Causal())
    assert hash(Even()) == hash(Even() | Even())
    assert Even() != Even("queries")
    assert Even() != Full()
    assert not Even().is_subset(Causal())


# Equal exactly where no call can tell the masks apart


def signature(leaf: Mask, length: int, q_pos: Any, kv_pos: Any) -> Any:
    """All that the leaf's answer may hang on, by its edges: a row of numbers for each pair."""
    edges = edges_of(leaf)
    assert edges is not None
    compared = {
        "keys": kv_pos, "queries": q_pos, "ahead": kv_pos - q_pos,
        "keys_from_end": kv_pos - length, "queries_from_end": q_pos - length,
    }  # fmt: skip
    seen = [np.searchsorted(np.sort(getattr(edges, name)), value, "right") for name, value in compared.items()]
    seen += [q_pos % edges.period, kv_pos % edges.period]
    if 0 in edges.ahead:
        sizes = [size for size in range(1, edges.period + 1) if edges.period % size == 0]
        seen += [np.sign(q_pos // size - kv_pos // size) for size in sizes]
    if edges.q_len is not None:
        seen.append(q_pos)
    return np.stack(np.broadcast_arrays(*seen), axis=-1)


def says_the_same_between_edges(leaf: Mask) -> bool:
    edges = edges_of(leaf)
    assert edges is not None
    rows = (-9, 40) if edges.max_queries is None else (-9, edges.max_queries)
    rows = rows if edges.q_len is None else (0, edges.q_len)
    keys = 40 if edges.max_keys is None else edges.max_keys
    keys = keys if edges.kv_len is None else edges.kv_len
    q_pos = np.arange(*rows)[:, None]
    for b, h in np.ndindex(leaf.expr.batch, leaf.expr.heads):
        signatures, answers = [], []
        for length in {keys, keys // 2, max(0, keys - 1)} if edges.kv_len is None else {keys}:
            kv_pos = np.arange(length)[None, :]
            answer = leaf.allows(b, h, q_pos, kv_pos, q_offset=rows[0], kv_length=length)
            answers.append(np.broadcast_to(answer, (q_pos.size, length)).ravel())
            numbers = signature(leaf, length, q_pos, kv_pos)
            signatures.append(numbers.reshape(-1, numbers.shape[-1]))
        group = np.unique(np.concatenate(signatures), axis=0, return_inverse=True)[1].ravel()
        seen, pairs = np.bincount(group, np.concatenate(answers)), np.bincount(group)
        if not ((seen == 0) | (seen == pairs)).all():
            return False
    return True


@pytest.mark.parametrize("leaf", set(LEAVES) - {F}, ids=repr)
def test_a_leaf_changes_at_its_edges_only(leaf: Mask) -> None:
    assert says_the_same_between_edges(leaf)


@given(data=st.data())
def test_any_leaf_changes_at_its_edges_only(data: st.DataObject) -> None:
    assert says_the_same_between_edges(data.draw(small_leaves(data.draw(small_geometries()))))


@settings(max_examples=60)
@given(data=st.data())
def test_equality_is_agreement_in_every_call(data: st.DataObject) -> None:
    g = data.draw(small_geometries())
    a = data.draw(expressions(g))
    b = like(data, g, a)
    if a == b:
        assert hash(a) == hash(b)
        assert accepted(a) == accepted(b)
        x, y = (oracle.visible(mask, g.q_len, g.kv_len, **g.options()) for mask in (a, b))
        np.testing.assert_array_equal(x, y)
    elif accepted(a) == accepted(b):
        calls = accepted(a)
        decisive = boxes(joined(edges for leaf in leaves(a, b) if (edges := edges_of(leaf)) is not None), WORK // 4)
        assume(decisive is not None)
        assert calls is not None
        assert decisive is not None
        extents = {"batch": calls.batch, "heads": calls.heads}
        for box in decisive:
            options = {**extents, "q_offset": box.q_offset, "kv_lengths": box.kv_lengths}
            if a.plan(box.q_len, box.kv_len, **options) != b.plan(box.q_len, box.kv_len, **options):
                x, y = (oracle.visible(mask, box.q_len, box.kv_len, **options) for mask in (a, b))
                assert (x != y).any()
                return
        raise AssertionError("the decisive calls do not tell the masks apart")


tiny = st.integers(0, 4)
unbounded_leaves: st.SearchStrategy[Mask] = st.one_of(
    st.builds(Causal),
    st.builds(SlidingWindow, st.none() | tiny, st.none() | tiny),
    st.builds(Padding, tiny, st.sampled_from(["right", "left"])),
    st.builds(PrefixLM, tiny),
    st.builds(Chunked, st.integers(1, 3)),
    st.builds(Dilated, st.integers(0, 2), st.integers(1, 3)),
    st.builds(GlobalTokens, st.lists(tiny, max_size=2)),
    st.builds(BlockDiffusion, st.integers(1, 3), st.none() | st.integers(1, 4)),
    st.builds(Tree, st.sampled_from([[], [-1], [-1, 0, 0]]), st.none() | tiny),
    st.sampled_from([Neighborhood(2, 4), Neighborhood(3, 3), Neighborhood((1, 2), (2, 2))]),
)


def combined(leaf: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
    return st.recursive(
        leaf,
        lambda m: st.one_of(
            st.tuples(m, m).map(lambda p: p[0] & p[1]), st.tuples(m, m).map(lambda p: p[0] | p[1]), m.map(lambda p: ~p)
        ),
        max_leaves=4,
    )


@pytest.fixture
def no_short_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that the argument asks for and no other, and no look at hashes first."""
    monkeypatch.setattr(masks.boxes, "_CLOSE", 0)
    monkeypatch.setattr(masks.normal_form, "fingerprint", lambda _: 0)


@settings(max_examples=200)
@given(combined(unbounded_leaves), combined(unbounded_leaves), st.sampled_from(["b", "a & b", "a | b", "~a"]))
def test_equality_is_agreement_far_and_wide(no_short_cuts: None, a: Mask, b: Mask, changed: str) -> None:
    """Against brute force, over a range far larger than the constants, from every number of keys."""
    b = {"b": b, "a & b": a & b, "a | b": a | b, "~a": ~a}[changed]
    lengths = range(0, 36) if any("end" in name for name in constants(a, b)) else [60]
    same = all(
        a.plan(100, length, q_offset=-40) == b.plan(100, length, q_offset=-40)
        for length in lengths
    )  # fmt: skip
    assert (a == b) == same
    inside = all(
        a.plan(100, length, q_offset=-40).is_subset(b.plan(100, length, q_offset=-40))
        for length in lengths
    )  # fmt: skip
    assert a.is_subset(b) == inside


def constants(*some: Mask) -> set[str]:
    """Which kinds of constants the masks have."""
    all_edges = [edges for leaf in leaves(*some) if (edges := edges_of(leaf)) is not None]
    return {
        name for edges in all_edges for name, value in edges._asdict().items() if not isinstance(value, int) and value
    }


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Chunked(10**9), Chunked(10**9) & Chunked(10**9 - 1) | Chunked(10**9)),
        (Documents(np.arange(3000) % 7) & Causal(), Documents(np.arange(3000) % 7) & SlidingWindow(None, 0)),
        (Dense(np.ones((900, 900), bool)) & Causal(), SlidingWindow(right=0) & Dense(np.ones((900, 900), bool))),
        (Dilated(10**9, 2) & PrefixLM(0), Causal() & Dilated(10**9, 2)),
        (Padding(range(0, 6400, 50), side="left") & PrefixLM(0), Causal() & Padding(range(0, 6400, 50), side="left")),
    ],
    ids=["period", "documents", "rows", "spans", "sequences"],
)
def test_leaves_that_are_too_large_count_as_unknown_sets(a: Mask, b: Mask) -> None:
    assert a == b
    assert a != b & ~GlobalTokens([7])


def test_large_masks_that_logic_cannot_tell_apart_are_called_unequal_but_never_a_subset() -> None:
    a, b = Chunked(10**8), Chunked(10**8) & Chunked(10**9)  # the same
    assert a != b
    assert b.is_subset(a)
    with pytest.raises(ValueError, match=r"^other must have smaller constants or periods.*pass q_len and kv_len"):
        a.is_subset(b)
    assert a.is_subset(b, 10, 10)


# Subsets


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Causal(), Full()),
        (NOTHING, Causal()),
        (SlidingWindow(3, 0), Causal()),
        (Causal(), PrefixLM(3)),
        (Chunked(2), Chunked(4)),
        (Padding(3, side="left"), Padding(4, side="left")),
        (F & Causal(), F),
        (F, F | G),
    ],
)
def test_subsets_of_every_call(a: Mask, b: Mask) -> None:
    assert a.is_subset(b)
    assert not b.is_subset(a)
    assert (~b).is_subset(~a)


@settings(max_examples=20)
@given(data=st.data())
def test_subsets_of_one_call(data: st.DataObject) -> None:
    g = data.draw(small_geometries())
    a, b = data.draw(expressions(g)), data.draw(expressions(g))
    x, y = (oracle.visible(mask, g.q_len, g.kv_len, **g.options()) for mask in (a, b))
    assert a.is_subset(b, g.q_len, g.kv_len, **g.options()) == bool((~x | y).all())
    assert (a & b).is_subset(a | b, g.q_len, g.kv_len, **g.options())


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda: Causal().is_subset(np.ones((2, 2), bool)), TypeError, "other must be a mask, got ndarray; wrap"),
        (lambda: Causal().is_subset(Full(), 3), TypeError, "q_len and kv_len must both be given.*3 and None"),
        (lambda: Causal().is_subset(Full(), batch=3), TypeError, "q_len and kv_len must both be given"),
        (lambda: Padding([1, 2]).is_subset(Padding([1, 2, 3])), ValueError, "other must accept a call that self"),
        (lambda: Causal().is_subset(HALF, 5, 5), ValueError, "KeyPadding must cover the call's 5 keys"),
        (lambda: diff(Causal(), np.ones((2, 2), bool), 2, 2), TypeError, "b must be a mask, got ndarray; wrap"),
        (lambda: diff("causal", Causal(), 2, 2), TypeError, "a must be a mask, got str"),
        (lambda: diff(Causal(), HALF, 5, 5), ValueError, "KeyPadding must cover the call's 5 keys"),
    ],
)
def test_questions_without_an_answer(ask: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ask()


# Differences


@settings(max_examples=40)
@given(data=st.data())
def test_differences_are_what_numpy_counts(data: st.DataObject) -> None:
    g = data.draw(small_geometries())
    a = data.draw(expressions(g))
    b = like(data, g, a)
    x, y = (oracle.visible(mask, g.q_len, g.kv_len, **g.options()) for mask in (a, b))
    found = diff(a, b, g.q_len, g.kv_len, **g.options())
    assert found.only_a.count() == (x & ~y).sum()
    assert found.only_b.count() == (y & ~x).sum()
    assert found.count() == (x ^ y).sum()
    assert bool(found) == (x ^ y).any()
    if not found:
        assert found.first() is None
        assert str(found) == "none only in a; none only in b"
        return
    first = found.first()
    assert first == tuple(np.argwhere(x ^ y)[0])
    assert f"{(x & ~y).sum() or 'none'} " in str(found).split(";")[0]
    said = found.explain(*first)
    assert said.startswith("a: seen" if x[first] else "a: hidden")
    assert ("b: seen" if y[first] else "b: hidden") in said


def test_a_difference_reads_well() -> None:
    found = diff(Causal(), PrefixLM([0, 3]), 3, 5, q_offset=[0, 1], kv_lengths=[5, 4])
    assert str(found) == (
        "none only in a; 1 pair only in b, first b=1 h=0 q_pos=1 kv_pos=2 "
        "(a: hidden by Causal: distance 1 ahead; b: seen: PrefixLM(lengths=(0, 3)) allows)"
    )
    assert found.first() == (1, 0, 0, 2)  # a row, not a position
    assert str(diff(SlidingWindow(2, 1), Causal(), 3, 3)).startswith(
        "2 pairs only in a, first b=0 h=0 q_pos=0 kv_pos=1 ("
    )


def test_the_difference_of_large_masks_takes_no_array() -> None:
    n = 1 << 18
    found = diff(Causal() & SlidingWindow(4095), Causal() & SlidingWindow(4096), n, n)
    assert (found.only_a.count(), found.only_b.count()) == (0, n - 4096)
    assert found.first() == (0, 0, 4096, 0)


# The shortest expression that a search finds


@pytest.mark.parametrize(
    ("mask", "want"),
    [
        (Causal() & Full(), "Causal()"),
        (Causal() & SlidingWindow(left=3, right=None), "SlidingWindow(left=3, right=0)"),
        (~~Causal(), "Causal()"),
        (Causal() | (Causal() & Padding(3)), "Causal()"),
        (~(~Causal() | ~Padding(3)), "Causal() & Padding(lengths=3, side='right')"),
        (~(~Causal() | Chunked(3)), "Causal() & ~Chunked(size=3)"),
        (Causal() & ~Causal(), "~Full()"),
        (SlidingWindow(None, 0), "Causal()"),
        (SlidingWindow(), "Full()"),
        (Padding(0), "~Full()"),
        (PrefixLM(0), "Causal()"),
        (Causal() | PrefixLM([2, 0]), "PrefixLM(lengths=(2, 0))"),
        (Causal() | Padding([2, 3]), "PrefixLM(lengths=(2, 3))"),
        (PrefixLM([2, 3]) & PrefixLM([3, 1]), "PrefixLM(lengths=(2, 1))"),
        (SlidingWindow(2, 5) | SlidingWindow(4, 1), "SlidingWindow(left=4, right=5)"),
        (SlidingWindow(2, 1) & Causal(), "SlidingWindow(left=2, right=0)"),
        (~SlidingWindow(2) | ~SlidingWindow(None, 3), "~SlidingWindow(left=2, right=3)"),
        (Padding([3, 5]) & FirstTokens(4), "Padding(lengths=(3, 4), side='right')"),
        (Padding([3, 5], "left") | Padding([4, 1], "left"), "Padding(lengths=(4, 5), side='left')"),
        (FirstTokens(4) | FirstTokens(7) | Chunked(3), "FirstTokens(n=7) | Chunked(size=3)"),
        (GlobalTokens([4, 1]) | GlobalTokens([2]), "GlobalTokens(indices=(1, 2, 4))"),
        (Dilated(3, 2) & Dilated(4, 2), "Dilated(window=3, stride=2)"),
        (KeyPadding([True, False]) | ~KeyPadding([True, True, False]), "KeyPadding(keep=[True, False])"),
        (QueryPadding([True, False]) & QueryPadding([[True, True], [False, True]]),
         "QueryPadding(keep=[[True, False], [False, False]])"),
        (Documents([7, 7, 9]) & Documents([1, 2, 2, 2]), "Documents(ids=[0, 1, 2])"),
        (Documents([7, 7, 9], [7, 9]) & Documents([1, 2, 2], [2, 2]), "Documents(ids=[0, 1, 2], kv_ids=[1, 2])"),
        (Dense([[True, False]] * 2) | ~Dense([[True, True], [False, True]]),
         "Dense(keep=[[True, False], [True, False]])"),
        (BlockSparse([[True, False]], 2) | BlockSparse([[False, False]], 2),
         "BlockSparse(blocks=[[True, False]], size=2)"),
        ((Chunked(5) & Padding(3)) | (Chunked(5) & Dilated(2, 2)),
         "Chunked(size=5) & (Padding(lengths=3, side='right') | Dilated(window=2, stride=2))"),
        ((Chunked(5) | Padding(3)) & (Chunked(5) | Dilated(2, 2)),
         "Chunked(size=5) | (Padding(lengths=3, side='right') & Dilated(window=2, stride=2))"),
        (F & Causal() | F & ~Causal(), "Function(f=asked, per_sequence=True, per_head=True, data=0)"),
        (HALF & ~HALF, "KeyPadding(keep=[False, False, False, False])"),  # nothing, of at most 4 keys
    ],
)  # fmt: skip
def test_simplify_by_example(mask: Mask, want: str) -> None:
    assert repr(mask.simplify()) == want


@settings(max_examples=20)
@given(data=st.data())
def test_simplified_masks_are_equal_and_no_longer(data: st.DataObject) -> None:
    g = data.draw(small_geometries())
    mask = data.draw(expressions(g))
    mask = data.draw(st.sampled_from([mask, mask & mask, ~mask | mask, mask | Padding(2)]))
    short = mask.simplify()
    assert short == mask
    assert size(short) <= size(mask)
    assert repr(short.simplify()) == repr(short)


def size(mask: Mask) -> tuple[int, int]:
    if isinstance(mask, masks.Not):
        return size(mask.term)[0], len(repr(mask))
    if isinstance(mask, (masks.All, masks.Any)):
        return sum(size(term)[0] for term in mask.terms), len(repr(mask))
    return 1, len(repr(mask))


def test_simplify_leaves_a_mask_of_no_call_as_it_is() -> None:
    mask = Padding([1, 2]) & Padding([1, 2, 3]) & Full()
    assert mask.simplify() is mask


# Python that rebuilds the mask


NAMES = {"np": np, "asked": asked, **{name: getattr(masks, name) for name in masks.__all__}}
NOISE = np.random.default_rng(0).random((5, 4000)) < 0.5


@pytest.mark.parametrize(
    "mask",
    [
        *LEAVES,
        KeyPadding(np.zeros((2, 0), bool)),
        QueryPadding(np.zeros(0, bool)),
        Documents(np.zeros(3, int), np.zeros(0, int)),
        Documents(np.arange(10_000) // 300),
        Documents([np.arange(2000) // 300, np.arange(2000) % 3]),
        KeyPadding(NOISE),
        KeyPadding(np.arange(10_000) < 7000),
        Dense(NOISE),
        Dense(np.zeros((1, 1, 0, 3), bool)),
        Dense(NOISE.reshape(5, 4, 1, 1000)),
        Dense(np.tri(300) == 1),
        BlockSparse(NOISE[:, :5], 64),
        GlobalTokens(np.arange(3)),
        Neighborhood(np.int64(3), np.int64(5)),
        SlidingWindow(np.int32(3)),
    ],
    ids=lambda mask: type(mask).__name__,
)
def test_repr_is_python_that_rebuilds_the_mask(mask: Mask) -> None:
    again = eval(repr(mask), NAMES)
    assert alike(again, mask)
    assert again == mask
    assert hash(again) == hash(mask)
    assert repr(again) == repr(mask)


@settings(max_examples=40)
@given(data=st.data())
def test_repr_of_an_expression_rebuilds_it(data: st.DataObject) -> None:
    mask = data.draw(expressions(data.draw(small_geometries())))
    assert eval(repr(mask), NAMES) == mask


def test_repr_of_arrays() -> None:
    assert repr(PACKED) == "Documents(ids=[0, 0, 1, 1, 1, 0])"
    assert repr(Documents([[0], [1]], [[1], [1]])) == "Documents(ids=[[0], [1]], kv_ids=[[1], [1]])"
    assert repr(Dense([True, False])) == "Dense(keep=[[True, False]])"
    assert repr(Documents(np.arange(1000) // 400)) == "Documents(ids=np.repeat([0, 1, 2], [400, 400, 200]))"
    assert len(repr(Dense(NOISE))) < NOISE.size / 4 + 200  # four bits a character


@pytest.mark.parametrize("mask", [*LEAVES[:-1], Causal() & ~HALF], ids=repr)
def test_a_mask_that_was_used_is_copied_and_pickled(mask: Mask) -> None:
    hash(mask)
    mask.plan(2, 3)
    for again in (pickle.loads(pickle.dumps(mask)), copy.deepcopy(mask)):
        assert alike(again, mask)
        assert "_hash" not in vars(again)  # salted, and so another one in another process
        np.testing.assert_array_equal(again.to_bool(2, 3), mask.to_bool(2, 3))
