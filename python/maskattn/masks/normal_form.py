"""Masks compared as sets of pairs, over the few calls that decide (docs/design.md, "Equal masks")."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from maskattn.masks.algebra import All, Any, Not
from maskattn.masks.base import Mask
from maskattn.masks.boxes import Box, boxes, joined, least, size
from maskattn.masks.edges import Edges
from maskattn.masks.full import Full

WORK = 1 << 24  # spans of the rows that are compared at most; a second or so, a few where there are many leaves
_MOST_ATOMS = 10  # leaves of a truth table
_MOST_UNKNOWN = 5  # unknown sets whose combinations are tried


class Calls(NamedTuple):
    """Which calls a mask accepts: extents and limits, as in :class:`Edges`; 1 and None are any."""

    batch: int
    heads: int
    q_len: int | None
    kv_len: int | None
    max_queries: int | None
    max_keys: int | None


def equal(a: Mask, b: Mask, work: int = WORK) -> bool:
    """Whether both accept the same calls and let the same pairs attend in each."""
    if alike(a, b):
        return True
    calls = accepted(a)
    if calls is None or calls != accepted(b):
        return False
    return bool(_decide(a, b, False, work))


def subset(a: Mask, b: Mask) -> bool:
    """Whether what ``a`` lets attend, ``b`` does in every call that both accept."""
    if alike(a, b):
        return True
    if accepted(a & b) is None:
        raise ValueError("other must accept a call that self accepts, got masks of other batch, heads or lengths")
    answer = _decide(a, b, True, WORK)
    if answer is None:
        raise ValueError(
            "other must have smaller constants or periods, as self, to be compared for every call; "
            "pass q_len and kv_len"
        )
    return answer


def alike(a: Mask, b: Mask) -> bool:
    """Whether both are written alike, arrays compared by content."""
    pairs: list[tuple[object, object]] = [(a, b)]
    while pairs:
        x, y = pairs.pop()
        if x is y:
            continue
        if type(x) is not type(y):
            return False
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            if x.shape != y.shape or not np.array_equal(x, y):
                return False
        elif isinstance(x, Mask) and isinstance(y, Mask):
            mine, yours = (sorted(mask.__getstate__().items()) for mask in (x, y))
            if [name for name, _ in mine] != [name for name, _ in yours]:
                return False
            pairs += [(left, right) for (_, left), (_, right) in zip(mine, yours, strict=True)]
        elif isinstance(x, tuple) and isinstance(y, tuple) and any(isinstance(each, Mask) for each in x):
            if len(x) != len(y):
                return False
            pairs += zip(x, y, strict=True)
        elif x != y:
            return False
    return True


def accepted(mask: Mask) -> Calls | None:
    """The calls that a mask accepts; None if there are none."""
    try:
        batch, heads = mask.expr.batch, mask.expr.heads
    except ValueError:
        return None
    parts = [edges for leaf in leaves(mask) if (edges := edges_of(leaf)) is not None]
    q_lens, kv_lens = ({n for part in parts if (n := getattr(part, name)) is not None} for name in ("q_len", "kv_len"))
    max_queries, max_keys = (least(getattr(part, name) for part in parts) for name in ("max_queries", "max_keys"))
    kv_len = max(kv_lens, default=None)
    if kv_len is not None and max_keys is not None:
        if kv_len > max_keys:
            return None
        max_keys = None  # kv_len says more
    if len(q_lens) > 1 or len(kv_lens) > 1:
        return None
    return Calls(batch, heads, max(q_lens, default=None), kv_len, max_queries, max_keys)


def fingerprint(mask: Mask) -> int:
    """A hash of which calls the mask accepts, and of what it shows in one or two small ones: equal for equal masks."""
    calls = accepted(mask)
    if calls is None:
        return hash(tuple(type(leaf).__name__ for leaf in leaves(mask)))
    facts: list[object] = [calls]
    unknown = [leaf for leaf in leaves(mask) if edges_of(leaf) is None]
    # Masks with and without unknown leaves may be equal, so both have facts of each case.
    for everything in (Full(), ~Full()):
        known = _replaced(mask, {id(leaf): everything for leaf in unknown})
        for box in _probes(calls):
            plan = known.plan(box.q_len, box.kv_len, q_offset=box.q_offset, batch=calls.batch, heads=calls.heads)
            tiles = plan.tiles(max(1, -(-box.q_len // 16)), max(1, -(-box.kv_len // 16)), threads=1)
            facts += [plan.count(), tiles.tobytes()]
    return hash(tuple(facts))


def leaves(*masks: Mask) -> list[Mask]:
    """The leaves of expressions, from left to right, one object once."""
    found: dict[int, Mask] = {}
    rest = list(reversed(masks))
    while rest:
        mask = rest.pop()
        if isinstance(mask, Not):
            rest.append(mask.term)
        elif isinstance(mask, (All, Any)):
            rest += reversed(mask.terms)
        else:
            found[id(mask)] = mask
    return list(found.values())


def _probes(calls: Calls) -> Iterator[Box]:
    """Calls that the mask accepts: a small one and a row far from the start, or one of the size that the mask wants."""
    for keys, rows in ((16, 16), (4096, 1)):
        kv_len = least([keys, calls.max_keys]) if calls.kv_len is None else calls.kv_len
        q_len = rows if calls.q_len is None else calls.q_len
        last = least([keys - 2, calls.max_queries])
        assert kv_len is not None
        assert last is not None
        yield Box(q_len, kv_len, last - q_len, kv_len)
        if calls.q_len is not None or calls.kv_len is not None:
            return


def _decide(a: Mask, b: Mask, inside: bool, work: int) -> bool | None:
    """Whether a == b, or with ``inside`` whether a is a subset of b; None where it is not known."""
    atoms, index = _atoms(a, b)
    if len(atoms) <= _MOST_ATOMS and _holds_by_logic(a, b, inside, index, len(atoms)):
        return True
    if not inside and hash(a) != hash(b):
        return False
    known = {i: edges for i, atom in enumerate(atoms) if (edges := edges_of(atom)) is not None}
    exact = len(known)
    batch, heads = (max(x, y) for x, y in ((a.expr.batch, b.expr.batch), (a.expr.heads, b.expr.heads)))
    # What holds whatever a leaf says holds for what it does say: leaves that ask for too many calls count as unknown.
    while (calls := boxes(joined(known.values()), work // (batch * heads))) is None:
        if not known:
            return None
        del known[max(known, key=lambda i: size(known[i]))]
    unknown = [i for i in range(len(atoms)) if i not in known]
    if len(unknown) > _MOST_UNKNOWN:
        return None
    for answers in itertools.product((Full(), ~Full()), repeat=len(unknown)):
        by_atom = dict(zip(unknown, answers, strict=True))
        said = {leaf: by_atom[i] for leaf, i in index.items() if i in by_atom}
        if not _holds(_replaced(a, said), _replaced(b, said), inside, calls, batch, heads):
            return False if len(known) == exact else None
    return True


def _atoms(*masks: Mask) -> tuple[list[Mask], dict[int, int]]:
    """Leaves that are written differently, and the index among them of every leaf, by its id."""
    atoms: list[Mask] = []
    index: dict[int, int] = {}
    for leaf in leaves(*masks):
        index[id(leaf)] = next((i for i, atom in enumerate(atoms) if alike(atom, leaf)), len(atoms))
        if index[id(leaf)] == len(atoms):
            atoms.append(leaf)
    return atoms, index


def _holds(a: Mask, b: Mask, inside: bool, calls: list[Box], batch: int, heads: int) -> bool:
    for q_len, kv_len, q_offset, kv_lengths in calls:
        x, y = (
            mask.plan(q_len, kv_len, batch=batch, heads=heads, q_offset=q_offset, kv_lengths=kv_lengths, threads=1)
            for mask in (a, b)
        )
        if not (x.is_subset(y) if inside else x == y):
            return False
    return True


def _holds_by_logic(a: Mask, b: Mask, inside: bool, index: dict[int, int], atoms: int) -> bool:
    """The same for leaves that may be any sets of pairs."""
    x, y = _table(a, index, atoms), _table(b, index, atoms)
    return not x & ~y and (inside or x == y)


def edges_of(leaf: Mask) -> Edges | None:
    """The leaf's edges, found on first use; None for an unknown set."""
    if "_known_edges" not in leaf.__dict__:
        object.__setattr__(leaf, "_known_edges", leaf._edges())
    cached: Edges | None = leaf.__dict__["_known_edges"]
    return cached


def _table(mask: Mask, index: dict[int, int], atoms: int) -> int:
    """The truth table of an expression over its leaves, a bit for each combination."""
    everything = (1 << (1 << atoms)) - 1
    if isinstance(mask, Not):
        return everything & ~_table(mask.term, index, atoms)
    if isinstance(mask, (All, Any)):
        table = everything if isinstance(mask, All) else 0
        for term in mask.terms:
            other = _table(term, index, atoms)
            table = table & other if isinstance(mask, All) else table | other
        return table
    if isinstance(mask, Full):
        return everything
    half = 1 << index[id(mask)]  # the table repeats half a run of 0, half a run of 1
    return everything // ((1 << 2 * half) - 1) * ((1 << half) - 1 << half)


def _replaced(mask: Mask, known: dict[int, Mask]) -> Mask:
    """The expression with other leaves, by the id of the leaf."""
    if not known:
        return mask
    if isinstance(mask, Not):
        return Not(_replaced(mask.term, known))
    if isinstance(mask, (All, Any)):
        return type(mask)(tuple(_replaced(term, known) for term in mask.terms))
    return known.get(id(mask), mask)
