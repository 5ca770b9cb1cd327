"""The search behind :meth:`maskattn.masks.Mask.simplify`."""

from __future__ import annotations

from collections.abc import Iterator

from maskattn.masks.algebra import All, Any, Not
from maskattn.masks.base import Mask
from maskattn.masks.causal import Causal
from maskattn.masks.full import Full
from maskattn.masks.merge import merged, turned
from maskattn.masks.normal_form import accepted, alike, equal

_CHECKS = 4000  # steps that are tried
_WORK = 1 << 20  # of one comparison, in spans of rows; some hundredths of a second

_Size = tuple[int, int]


def simplify(mask: Mask) -> Mask:
    """See :meth:`maskattn.masks.Mask.simplify`."""
    if accepted(mask) is None:
        return mask
    best, sizes, checks = _flat(mask), _Sizes(), _CHECKS
    while checks:
        size = sizes.of(best)
        shorter = sorted(
            (pair for step in _steps(best) if (pair := (sizes.of(step), step))[0] < size), key=lambda pair: pair[0]
        )
        for _, step in shorter[:checks]:
            checks -= 1
            if equal(step, best, _WORK):
                best = step
                break
        else:
            break
    return best


class _Sizes:
    """How short expressions are: leaves, then characters. A leaf is printed once."""

    def __init__(self) -> None:
        self._leaves: dict[int, tuple[Mask, int]] = {}  # the mask too, or its id may come again

    def of(self, mask: Mask) -> _Size:
        if isinstance(mask, Not):
            leaves, length = self._operand(mask.term, Not)
            return leaves, length + 1
        if isinstance(mask, (All, Any)):
            sizes = [self._operand(term, type(mask)) for term in mask.terms]
            return sum(leaves for leaves, _ in sizes), sum(length + 3 for _, length in sizes) - 3
        if id(mask) not in self._leaves:
            self._leaves[id(mask)] = mask, len(repr(mask))
        return 1, self._leaves[id(mask)][1]

    def _operand(self, term: Mask, inside: type[Mask]) -> _Size:
        leaves, length = self.of(term)
        return leaves, length + 2 * (isinstance(term, (All, Any)) and not isinstance(term, inside))


def _steps(mask: Mask) -> Iterator[Mask]:
    """Expressions that differ from this one in one place; most are not equal to it."""
    yield from _here(mask)
    if isinstance(mask, Not):
        yield from (_not(step) for step in _steps(mask.term))
    if isinstance(mask, (All, Any)):
        for i, term in enumerate(mask.terms):
            for step in _steps(term):
                yield _join(type(mask), [*mask.terms[:i], step, *mask.terms[i + 1 :]])


def _here(mask: Mask) -> Iterator[Mask]:
    """Other expressions for the node at the top."""
    yield from (Full(), Not(Full()), Causal())
    if isinstance(mask, Not):
        yield mask.term
        yield turned(mask)
        if isinstance(mask.term, (All, Any)):  # De Morgan
            dual = Any if isinstance(mask.term, All) else All
            yield _join(dual, [_not(term) for term in mask.term.terms])
    if not isinstance(mask, (All, Any)):
        return
    kind, terms = type(mask), mask.terms
    dual = Any if kind is All else All
    yield from terms
    yield from (_join(kind, [*terms[:i], *terms[i + 1 :]]) for i in range(len(terms)))
    yield _not(_join(dual, [_not(term) for term in terms]))
    for i, a in enumerate(terms):
        for j, b in enumerate(terms[i + 1 :], i + 1):
            rest = [*terms[i + 1 : j], *terms[j + 1 :]]
            for one in (*merged(a, b, kind is All), *_factored(a, b, kind, dual)):
                yield _join(kind, [*terms[:i], one, *rest])


def _factored(a: Mask, b: Mask, kind: type[All | Any], dual: type[All | Any]) -> Iterator[Mask]:
    """``(a & b) | (a & c)`` as ``a & (b | c)``, and the other way round."""
    if not isinstance(a, dual) or not isinstance(b, dual):
        return
    common = [term for term in a.terms if any(alike(term, other) for other in b.terms)]
    rests = [[term for term in side.terms if not any(alike(term, one) for one in common)] for side in (a, b)]
    if common and all(rests):
        yield _join(dual, [*common, _join(kind, [_join(dual, rest) for rest in rests])])


def _flat(mask: Mask) -> Mask:
    """No ``&`` in an ``&``, no ``|`` in an ``|``, no ``~~``."""
    if isinstance(mask, Not):
        return _not(_flat(mask.term))
    if isinstance(mask, (All, Any)):
        return _join(type(mask), [_flat(term) for term in mask.terms])
    return mask


def _join(kind: type[All | Any], terms: list[Mask]) -> Mask:
    flat = [part for term in terms for part in (term.terms if isinstance(term, kind) else (term,))]
    return flat[0] if len(flat) == 1 else kind(tuple(flat))


def _not(mask: Mask) -> Mask:
    return mask.term if isinstance(mask, Not) else Not(mask)
