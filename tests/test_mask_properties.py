"""Random expressions in random geometries: everything the core says of a mask is what the definition in NumPy says.

A new way to look at a mask or a plan is compared here by one more function and its line in CHECKS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import maskattn
import oracle
from maskattn import masks
from maskattn._core import MaskPlan
from maskattn.masks import Causal, Dense, Full, Function, Mask, Tree
from strategies import (
    LEAVES,
    MAX_DEPTH,
    OPERATORS,
    Formula,
    Geometry,
    Residues,
    built,
    fold,
    formulas,
    geometries,
    normal,
    seeds,
)

BoolArray = npt.NDArray[np.bool_]
# Positions near the ends of 32-bit integers, and of what is allowed.
places = st.sampled_from([31, 32, 62]).flatmap(lambda bits: geometries(bits=bits))


@dataclass(frozen=True)
class Case:
    """An expression as drawn and as built, which pairs it shows by definition, and its plan."""

    geometry: Geometry
    formula: Formula
    mask: Mask
    seen: BoolArray  # (batch, heads, q_len, kv_len)
    plan: MaskPlan

    @classmethod
    def of(cls, g: Geometry, formula: Formula) -> Case:
        mask = built(formula)
        return cls(g, formula, mask, definition(formula, g), mask.plan(g.q_len, g.kv_len, **g.options()))


def definition(formula: Formula, g: Geometry) -> BoolArray:
    """NumPy's operators over the leaves' own definitions: no mask's ``&``, ``|`` or ``~`` has a part in it."""
    where = g.q_len, g.kv_len
    exist = oracle.visible(None, *where, **g.options())
    return np.asarray(fold(formula, lambda leaf: oracle.visible(leaf, *where, **g.options())) & exist)


def runs(seen: BoolArray) -> list[list[tuple[int, int]]]:
    """Of every row, the intervals of keys that it sees."""
    rows = seen.reshape(int(np.prod(seen.shape[:-1])), seen.shape[-1])
    edges = np.diff(np.pad(rows, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    intervals: list[list[tuple[int, int]]] = [[] for _ in rows]
    (row, begin), (_, end) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    for r, b, e in zip(row.tolist(), begin.tolist(), end.tolist(), strict=True):
        intervals[r].append((b, e))
    return intervals


UNION: dict[str, Callable[..., set[object]]] = dict.fromkeys(OPERATORS, lambda *operands: set().union(*operands))


def where(g: Geometry) -> tuple[Any, Any]:
    """q_offset and kv_lengths, one or one per sequence, the defaults filled in."""
    kv_lengths = g.kv_len if g.kv_lengths is None else np.asarray(g.kv_lengths)
    return (kv_lengths - g.q_len if g.q_offset is None else g.q_offset), kv_lengths


# What is compared


def definitions_agree(case: Case, draw: st.DrawFn) -> None:
    g = case.geometry
    np.testing.assert_array_equal(oracle.visible(case.mask, g.q_len, g.kv_len, **g.options()), case.seen)


def rows(case: Case, draw: st.DrawFn) -> None:
    """A row is its runs of keys, or bits with the interval around them where those take less memory."""
    g, plan = case.geometry, case.plan
    assert (plan.batch, plan.heads, plan.q_len, plan.kv_len) == case.seen.shape
    words = -(-np.broadcast_to(where(g)[1], g.batch) // 64)
    for (b, h, i), want in zip(np.ndindex(case.seen.shape[:3]), runs(case.seen), strict=True):
        spans, irregular = plan.spans(b, h, i)
        assert irregular == (len(want) > words[b])
        assert spans == ([(want[0][0], want[-1][1])] if irregular else want)


def facts(case: Case, draw: st.DrawFn) -> None:
    g, plan, seen = case.geometry, case.plan, case.seen
    assert plan.count() == seen.sum()
    np.testing.assert_array_equal(plan.empty_rows(), ~seen.any(axis=-1))
    assert case.mask.density(g.q_len, g.kv_len, **g.options()) == (seen.mean() if seen.size else 0)
    assert case.mask.flops(g.q_len, g.kv_len, 64, **g.options()) == 256 * seen.sum()
    np.testing.assert_array_equal(case.mask.empty_rows(g.q_len, g.kv_len, **g.options()), ~seen.any(axis=-1))


TILE_SIZES = st.sampled_from([1, 2, 3, 7, 16, 63, 64, 65, 256, 1000])
THREADS = st.sampled_from([*[1] * 15, 2])  # on a busy machine a second one takes milliseconds to come


def tiles(case: Case, draw: st.DrawFn) -> None:
    batch, heads, q_len, kv_len = case.seen.shape
    for q_size, kv_size in {(64, 64), (draw(TILE_SIZES), draw(TILE_SIZES))}:
        got = case.plan.tiles(q_size, kv_size, threads=draw(THREADS))
        assert got.shape == (batch, heads, -(-q_len // q_size), -(-kv_len // kv_size))
        if got.size:
            blocks = range(0, q_len, q_size), range(0, kv_len, kv_size)
            some, every = (
                reduce.reduceat(reduce.reduceat(case.seen, blocks[0], axis=2), blocks[1], axis=3)
                for reduce in (np.logical_or, np.logical_and)
            )
            np.testing.assert_array_equal(got, np.where(every, 2, np.where(some, 1, 0)))


FLOATS = st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16])


def materialised(case: Case, draw: st.DrawFn) -> None:
    g, dtype = case.geometry, np.dtype(draw(FLOATS))
    for got, want in (
        (case.mask.to_bool(g.q_len, g.kv_len, **g.options()), case.seen),
        (case.mask.to_ignore(g.q_len, g.kv_len, **g.options()), ~case.seen),
        (
            case.mask.to_additive(g.q_len, g.kv_len, dtype, **g.options()),
            np.where(case.seen, 0, -np.inf).astype(dtype),
        ),
        (
            case.mask.to_bits(g.q_len, g.kv_len, **g.options()),
            np.packbits(case.seen, axis=-1, bitorder="little"),
        ),
    ):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes()


def sliced(case: Case, draw: st.DrawFn) -> None:
    g = case.geometry
    begin, end = sorted(draw(st.integers(0, g.q_len)) for _ in range(2))
    assert case.plan[begin:end] == Dense(case.seen[:, :, begin:end]).plan(end - begin, g.kv_len)


def grown(case: Case, draw: st.DrawFn) -> None:
    """The plan of a call that is some rows and keys shorter, extended by them, is the plan; its slices stay."""
    g = case.geometry
    q_offset, kv_lengths = where(g)
    n = draw(st.integers(0, int(min(g.q_len, np.min(kv_lengths)))))
    shorter = Geometry(g.q_len - n, g.kv_len - n, g.batch, g.heads, q_offset, kv_lengths - n)
    if Dense in fold(case.formula, lambda leaf: {type(leaf)}, UNION):
        return  # it speaks of the rows and keys of one call
    plan = case.mask.plan(shorter.q_len, shorter.kv_len, **shorter.options())
    before = plan[:]
    assert plan.extend(n) == case.plan
    assert before == Dense(definition(case.formula, shorter)).plan(shorter.q_len, shorter.kv_len)


DE_MORGAN = {"~": lambda a: ~a, "&": lambda a, b: ~(~a | ~b), "|": lambda a, b: ~(~a & ~b)}
COMMUTED = {"~": lambda a: ~a, "&": lambda a, b: b & a, "|": lambda a, b: b | a}
LAWS: dict[str, Callable[[Formula], Mask]] = {
    "a = ~~a": lambda a: ~~built(a),
    "a & b = ~(~a | ~b), a | b = ~(~a & ~b)": lambda a: fold(a, lambda leaf: leaf, DE_MORGAN),
    "a & b = b & a, a | b = b | a": lambda a: fold(a, lambda leaf: leaf, COMMUTED),
    "a = a & Full": lambda a: built(a) & Full(),
    "a = a | ~Full": lambda a: built(a) | ~Full(),
    "a = a & (a | b)": lambda a: built(a) & (built(a) | Causal()),
    "a = a & b | a & ~b": lambda a: (built(a) & Causal()) | (built(a) & ~Causal()),
}


def rewritten(case: Case, draw: st.DrawFn) -> None:
    """The same set of pairs by another expression: the plans are equal, and the masks, whatever the geometry."""
    g, law = case.geometry, draw(st.sampled_from(list(LAWS)))
    other = LAWS[law](case.formula)
    assert other.plan(g.q_len, g.kv_len, **g.options()) == case.plan
    if fold(case.formula, lambda leaf: 1, dict.fromkeys(OPERATORS, lambda *terms: sum(terms))) <= 8:
        assert other == case.mask  # of more leaves it may be called unequal, and takes seconds
        assert hash(other) == hash(case.mask)


def compared(case: Case, draw: st.DrawFn) -> None:
    """With the plan of another expression: of any other, or of a larger or smaller set of pairs."""
    other = draw(formulas(case.geometry, max_depth=2))
    symbol = draw(st.sampled_from(["", "&", "|"]))
    beside = Case.of(case.geometry, (symbol, case.formula, other) if symbol else other)
    if case.mask == beside.mask:
        assert hash(case.mask) == hash(beside.mask)
        assert np.array_equal(case.seen, beside.seen)
    assert (case.plan == beside.plan) == np.array_equal(case.seen, beside.seen)
    assert (case.plan != beside.plan) != (case.plan == beside.plan)
    assert case.plan.is_subset(beside.plan) == (not (case.seen & ~beside.seen).any())
    assert beside.plan.is_subset(case.plan) == (not (beside.seen & ~case.seen).any())


def explained(case: Case, draw: st.DrawFn) -> None:
    if not case.seen.size:
        return
    for _ in range(2):
        b, h, i, key = (draw(st.integers(0, n - 1)) for n in case.seen.shape)
        offset, length = (int(np.broadcast_to(each, case.geometry.batch)[b]) for each in where(case.geometry))
        sentence = case.mask.explain(b, h, offset + i, key, q_offset=offset, kv_length=length)
        kind = "seen: " if case.seen[b, h, i, key] else "hidden by " if key < length else "does not exist: "
        assert sentence.startswith(kind)
        assert "\n" not in sentence


def attended(case: Case, draw: st.DrawFn) -> None:
    g, dtype = case.geometry, draw(st.sampled_from([np.float32, np.float64]))
    kv_heads = draw(st.sampled_from([n for n in range(1, g.heads + 1) if g.heads % n == 0]))
    rng, dim, v_dim = np.random.default_rng(draw(seeds)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    q = normal(rng, g.batch, g.heads, g.q_len, dim, dtype=dtype)
    k, v = (normal(rng, g.batch, kv_heads, g.kv_len, n, dtype=dtype) for n in (dim, v_dim))
    options: dict[str, Any] = {"mask": case.mask, "q_offset": g.q_offset, "kv_lengths": g.kv_lengths}
    got = maskattn.attention(q, k, v, **(options if draw(st.booleans()) else {"mask": case.plan}), return_lse=True)
    want = oracle.attention(q, k, v, case.seen)
    atol = {np.float32: 4e-6, np.float64: 1e-12}[dtype]
    for ours, theirs in zip(got, want, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


CHECKS: list[Callable[[Case, st.DrawFn], None]] = [
    definitions_agree,
    rows,
    facts,
    tiles,
    materialised,
    sliced,
    grown,
    rewritten,
    compared,
    explained,
    attended,
]


@settings(settings.get_profile("masks"))
@given(st.data())
def test_everything_said_of_a_mask_is_its_definition(data: st.DataObject) -> None:
    g = data.draw(places)
    case = Case.of(g, data.draw(formulas(g)))
    for check in CHECKS:
        check(case, data.draw)


# What is drawn


def of_leaf(leaf: Mask) -> set[object]:
    lengths, start, f = (getattr(leaf, name, None) for name in ("lengths", "start", "f"))
    holds = {
        type(leaf): True,
        "padding on the left": getattr(leaf, "side", None) == "left",
        "a number a sequence": isinstance(lengths, tuple),
        "a tree at the end": isinstance(leaf, Tree) and start is None,
        "a tree that starts somewhere": start is not None,
        "a C function": isinstance(leaf, Function) and not isinstance(f, Residues),
    }
    return {name for name, held in holds.items() if held}


def of_place(g: Geometry) -> set[object]:
    offsets, kv_lengths = where(g)
    holds = {
        "decode step": g.q_len == 1 and g.kv_len > 1,
        "chunk of a prefill": 1 < g.q_len < g.kv_len and np.all(np.add(offsets, g.q_len) <= kv_lengths),
        "several sequences": g.batch > 1,
        "several heads": g.heads > 1,
        "several words of keys": g.kv_len > 64,
        "several segments of keys": g.kv_len > 256,
        "several blocks of queries": g.q_len > 64,
        "keys that do not exist": np.min(kv_lengths) < g.kv_len,
        "an offset a sequence": np.unique(offsets).size > 1,
        "negative offset": np.min(offsets) < 0,
        "far offset": np.max(offsets) > 1000,
        "no queries": g.q_len == 0,
        "no keys": g.kv_len == 0,
    }
    return {name for name, held in holds.items() if held}


def test_every_kind_of_case_is_drawn_often() -> None:
    """Each in 1 of 200 at least: nothing that the test above is for comes up by a rare accident."""
    drawn: Counter[object] = Counter()

    @settings(max_examples=1000, derandomize=True, database=None, phases=[Phase.generate])
    @given(st.data())
    def count(data: st.DataObject) -> None:
        g = data.draw(places)
        formula = data.draw(formulas(g))
        depth = fold(formula, lambda leaf: 0, dict.fromkeys(OPERATORS, lambda *depths: 1 + max(depths)))
        drawn.update(fold(formula, of_leaf, UNION))
        drawn.update(of_place(g) | {f"depth {depth}"})

    count()
    kinds = {getattr(masks, name) for name in masks.__all__} - {masks.All, masks.Any, masks.Mask, masks.Not}
    assert kinds == set(LEAVES)
    assert len(drawn) == len(kinds) + 5 + 13 + MAX_DEPTH + 1
    assert min(drawn.values()) >= 5, drawn
    assert drawn[f"depth {MAX_DEPTH}"] >= 100, drawn
