"""Why a query sees a key, or does not: one sentence that names the terms that decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from maskattn.masks.algebra import All, Any, Not
from maskattn.masks.base import Mask
from maskattn.masks.block_diffusion import BlockDiffusion
from maskattn.masks.block_sparse import BlockSparse
from maskattn.masks.causal import Causal
from maskattn.masks.chunked import Chunked
from maskattn.masks.dense import Dense
from maskattn.masks.dilated import Dilated
from maskattn.masks.documents import Documents
from maskattn.masks.first_tokens import FirstTokens
from maskattn.masks.function import Function
from maskattn.masks.global_tokens import GlobalTokens
from maskattn.masks.key_padding import KeyPadding
from maskattn.masks.neighborhood import Neighborhood
from maskattn.masks.padding import Padding
from maskattn.masks.parameters import per_sequence
from maskattn.masks.prefix_lm import PrefixLM
from maskattn.masks.query_padding import QueryPadding
from maskattn.masks.sliding_window import SlidingWindow
from maskattn.masks.tree import Tree

_LONGEST = 24  # characters of a parameter that a sentence repeats


@dataclass(frozen=True)
class _Pair:
    """One query and one key, and what the definitions ask of the call: its first query's position, its keys."""

    b: int
    h: int
    q_pos: int
    kv_pos: int
    q_offset: int
    kv_length: int | None


@dataclass(frozen=True)
class _Verdict:
    """What one leaf says, after the ``~`` around it: De Morgan's laws carry every ``~`` down to the leaves."""

    leaf: Mask
    turned: bool
    seen: bool
    detail: str

    def name(self) -> str:
        return "~" * self.turned + label(self.leaf)

    def reason(self) -> str:
        """The detail of a leaf that hides; under ``~``, first the leaf's own answer."""
        own = f"{label(self.leaf)} {'hides' if self.seen else 'allows'}, turned around" if self.turned else ""
        return ", ".join(filter(None, (own, self.detail)))

    def short(self) -> str:
        said = f"{self.name()} {'allows' if self.seen else 'hides'}"
        return (
            f"{said} ({label(self.leaf)} {'hides' if self.seen else 'allows'}, turned around)" if self.turned else said
        )


def explain(
    mask: Mask, b: int, h: int, q_pos: int, kv_pos: int, *, q_offset: int = 0, kv_length: int | None = None
) -> str:
    """See :meth:`maskattn.masks.Mask.explain`."""
    _check(mask, b, h, q_pos, kv_pos, q_offset)
    if kv_length is not None and kv_pos >= kv_length:
        return f"does not exist: key {kv_pos} is at or past kv_length {kv_length}"
    seen, because, besides = _decide(mask, _Pair(b, h, q_pos, kv_pos, q_offset, kv_length), turned=False)
    if seen:
        deciding = "seen: " + " and ".join(_unique(verdict.short() for verdict in because))
    else:
        reasons = _unique(": ".join(filter(None, (verdict.name(), verdict.reason()))) for verdict in because)
        deciding = "hidden by " + ", and by ".join(reasons)
    return "; ".join([deciding, *_unique(verdict.short() for verdict in besides)])


def _check(mask: Mask, b: int, h: int, q_pos: int, kv_pos: int, q_offset: int) -> None:
    for name, index, extent in (("b", b, mask.expr.batch), ("h", h, mask.expr.heads)):
        if index < 0 or 1 < extent <= index:
            below = f" and below {extent}" if extent > 1 else ""
            raise ValueError(f"{name} must be at least 0{below}, got {index}")
    if kv_pos < 0:
        raise ValueError(f"kv_pos must be at least 0, got {kv_pos}")
    if q_pos < q_offset:
        raise ValueError(f"q_pos must be at least q_offset={q_offset}, the first query's position, got {q_pos}")


def _decide(mask: Mask, pair: _Pair, turned: bool) -> tuple[bool, list[_Verdict], list[_Verdict]]:
    """Whether the pair is seen, the verdicts that decide it, and the others; ``turned``: an odd number of ``~``."""
    if isinstance(mask, Not):
        return _decide(mask.term, pair, not turned)
    if not isinstance(mask, (All, Any)):
        verdict = _ask(mask, pair, turned)
        return verdict.seen, [verdict], []
    answers = [_decide(term, pair, turned) for term in mask.terms]
    needs_all = isinstance(mask, All) != turned
    seen = (all if needs_all else any)(answer[0] for answer in answers)
    because = [verdict for answer in answers if answer[0] == seen for verdict in answer[1]]
    besides = [verdict for answer in answers for verdict in answer[1] * (answer[0] != seen) + answer[2]]
    return seen, because, besides


def _ask(leaf: Mask, pair: _Pair, turned: bool) -> _Verdict:
    try:
        allowed = leaf.allows(pair.b, pair.h, pair.q_pos, pair.kv_pos, q_offset=pair.q_offset, kv_length=pair.kv_length)
    except IndexError:
        raise ValueError(f"{label(leaf)} does not reach query {pair.q_pos} and key {pair.kv_pos}") from None
    return _Verdict(leaf, turned, bool(np.asarray(allowed).item()) != turned, _detail(leaf, pair))


def _unique(phrases: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(phrases))


def label(leaf: Mask) -> str:
    """A leaf's name with those parameters that are short and not the default: ``SlidingWindow(left=128)``."""
    said = []
    fields: tuple[dataclasses.Field[object], ...] = dataclasses.fields(leaf) if dataclasses.is_dataclass(leaf) else ()
    for field in fields:
        value = getattr(leaf, field.name)
        if isinstance(value, (bool, int, str, tuple)) and value != field.default and len(repr(value)) <= _LONGEST:
            said.append(f"{field.name}={value!r}")
    return type(leaf).__name__ + (f"({', '.join(said)})" if said else "")


# What a leaf adds: the numbers that its answer hangs on. A leaf without a line here says it in Mask.detail.


@singledispatch
def _detail(leaf: Mask, pair: _Pair) -> str:
    return leaf.detail(pair.b, pair.h, pair.q_pos, pair.kv_pos)


@_detail.register(Causal)
@_detail.register(SlidingWindow)
@_detail.register(Dilated)
def _(leaf: Mask, pair: _Pair) -> str:
    return _distance(pair)


@_detail.register
def _(leaf: FirstTokens, pair: _Pair) -> str:
    return f"key {pair.kv_pos}"


@_detail.register
def _(leaf: Padding, pair: _Pair) -> str:
    length = f"length {_of_sequence(leaf.lengths, pair)}"
    return f"key {pair.kv_pos}, {length}" + (f" of {pair.kv_length}" if leaf.side == "left" else "")


@_detail.register
def _(leaf: PrefixLM, pair: _Pair) -> str:
    return f"key {pair.kv_pos}, prefix {_of_sequence(leaf.lengths, pair)}, {_distance(pair)}"


@_detail.register
def _(leaf: KeyPadding, pair: _Pair) -> str:
    return f"key {pair.kv_pos} is {'real' if leaf.allows(pair.b, pair.h, 0, pair.kv_pos) else 'padding'}"


@_detail.register
def _(leaf: QueryPadding, pair: _Pair) -> str:
    return f"query {pair.q_pos} is {'real' if leaf.allows(pair.b, pair.h, pair.q_pos, 0) else 'padding'}"


@_detail.register
def _(leaf: Documents, pair: _Pair) -> str:
    assert leaf.kv_ids is not None
    sequence = min(pair.b, len(leaf.ids) - 1)
    query = f"document {leaf.ids[sequence, pair.q_pos]}" if pair.q_pos >= 0 else "no document"
    return f"query in {query}, key in document {leaf.kv_ids[sequence, pair.kv_pos]}"


@_detail.register
def _(leaf: Chunked, pair: _Pair) -> str:
    return f"query in chunk {pair.q_pos // leaf.size}, key in chunk {pair.kv_pos // leaf.size}"


@_detail.register
def _(leaf: BlockSparse, pair: _Pair) -> str:
    return f"block ({pair.q_pos // leaf.size}, {pair.kv_pos // leaf.size})"


@_detail.register
def _(leaf: BlockDiffusion, pair: _Pair) -> str:
    def block(position: int) -> str:
        if leaf.length is None:
            return f"block {position // leaf.size}"
        if not 0 <= position < 2 * leaf.length:
            return "no block"
        kind = "noisy" if position < leaf.length else "clean"
        return f"{kind} block {position % leaf.length // leaf.size}"

    return f"query in {block(pair.q_pos)}, key in {block(pair.kv_pos)}"


@_detail.register
def _(leaf: GlobalTokens, pair: _Pair) -> str:
    named = {"query": pair.q_pos, "key": pair.kv_pos}
    chosen = [f"{name} {at}" for name, at in named.items() if at in leaf.indices]
    return f"{' and '.join(chosen)} global" if chosen else f"neither query {pair.q_pos} nor key {pair.kv_pos} global"


@_detail.register
def _(leaf: Neighborhood, pair: _Pair) -> str:
    if isinstance(leaf.shape, int):
        return _distance(pair)
    columns = leaf.shape[1]
    return f"query at {divmod(pair.q_pos, columns)}, key at {divmod(pair.kv_pos, columns)}"


@_detail.register
def _(leaf: Tree, pair: _Pair) -> str:
    nodes = len(leaf.parents)
    start = (pair.kv_length or 0) - nodes if leaf.start is None else leaf.start

    def place(position: int) -> str:
        node = position - start
        return "before the tree" if node < 0 else f"node {node}" if node < nodes else "behind the tree"

    return f"query {place(pair.q_pos)}, key {place(pair.kv_pos)}"


@_detail.register
def _(leaf: Function, pair: _Pair) -> str:
    return f"{getattr(leaf.f, '__name__', 'f')}({pair.b}, {pair.h}, {pair.q_pos}, {pair.kv_pos})"


@_detail.register
def _(leaf: Dense, pair: _Pair) -> str:
    return f"row {pair.q_pos - pair.q_offset}, key {pair.kv_pos}"


def _distance(pair: _Pair) -> str:
    behind = pair.q_pos - pair.kv_pos
    return f"distance {behind}" if behind >= 0 else f"distance {-behind} ahead"


def _of_sequence(values: int | tuple[int, ...], pair: _Pair) -> int:
    each = per_sequence(values)
    return int(each[min(pair.b, len(each) - 1)])
