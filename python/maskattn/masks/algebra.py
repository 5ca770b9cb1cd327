"""``&``, ``|`` and ``~``: the nodes above the leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask


@dataclass(frozen=True)
class All(Mask):
    """What every term allows: ``a & b``."""

    terms: tuple[Mask, ...]

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        return np.asarray(
            np.logical_and.reduce(_broadcast(self.terms, b, h, q_pos, kv_pos, q_offset, kv_length)), np.bool_
        )

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_and([term.expr for term in self.terms])

    def __repr__(self) -> str:
        return " & ".join(_operand(term, All) for term in self.terms)


@dataclass(frozen=True)
class Any(Mask):
    """What some term allows: ``a | b``."""

    terms: tuple[Mask, ...]

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        return np.asarray(
            np.logical_or.reduce(_broadcast(self.terms, b, h, q_pos, kv_pos, q_offset, kv_length)), np.bool_
        )

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_or([term.expr for term in self.terms])

    def __repr__(self) -> str:
        return " | ".join(_operand(term, Any) for term in self.terms)


@dataclass(frozen=True)
class Not(Mask):
    """What the term hides: ``~a``. Keys that do not exist stay unseen."""

    term: Mask

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        return np.logical_not(self.term.allows(b, h, q_pos, kv_pos, q_offset=q_offset, kv_length=kv_length))

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_not(self.term.expr)

    def __repr__(self) -> str:
        return f"~{_operand(self.term, Not)}"


def _broadcast(
    terms: tuple[Mask, ...], b: Index, h: Index, q_pos: Index, kv_pos: Index, q_offset: Index, kv_length: Index | None
) -> list[BoolArray]:
    answers = (term.allows(b, h, q_pos, kv_pos, q_offset=q_offset, kv_length=kv_length) for term in terms)
    return list(np.broadcast_arrays(*answers))


def _operand(term: Mask, inside: type[Mask]) -> str:
    loose = isinstance(term, (All, Any)) and not isinstance(term, inside)
    return f"({term!r})" if loose else repr(term)
