"""What constrained beam search must write, and how far a sequence has come with it (arXiv:1704.07138, 1804.06609)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

import numpy as np

Phrase = tuple[int, ...]


@dataclass(frozen=True)
class PhrasalConstraint:
    """These tokens must appear, one after the other.

    Raises:
        TypeError, ValueError: ``token_ids`` is no sequence of token ids, or has none.
    """

    token_ids: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", _phrase("token_ids", self.token_ids))

    @property
    def phrases(self) -> tuple[Phrase, ...]:
        return (tuple(self.token_ids),)


@dataclass(frozen=True)
class DisjunctiveConstraint:
    """One of these sequences of tokens must appear; none may begin with another of them.

    Raises:
        TypeError, ValueError: ``nested_token_ids`` is not as above.
    """

    nested_token_ids: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        nested = self.nested_token_ids
        if not isinstance(nested, Sequence) or not nested:
            raise TypeError(f"nested_token_ids must be lists of token ids, got {nested!r:.60}; pass at least one")
        phrases = tuple(_phrase("nested_token_ids", phrase) for phrase in nested)
        if any(a[: len(b)] == b for i, a in enumerate(phrases) for j, b in enumerate(phrases) if i != j):
            raise ValueError(
                f"nested_token_ids must have no list that begins with another, got {nested!r:.60}; leave out the longer"
            )
        object.__setattr__(self, "nested_token_ids", phrases)

    @property
    def phrases(self) -> tuple[Phrase, ...]:
        return tuple(tuple(phrase) for phrase in self.nested_token_ids)


Constraint = Union[PhrasalConstraint, DisjunctiveConstraint]  # noqa: UP007 - an alias, evaluated by Python 3.10


def _phrase(name: str, value: Any) -> Phrase:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) == 0:
        raise TypeError(f"{name} must be a list of token ids, got {value!r:.60}; pass at least one token id")
    if not all(isinstance(token, int | np.integer) and not isinstance(token, bool) for token in value):
        raise TypeError(f"{name} must be token ids, got {value!r:.60}; pass integers")
    if min(value) < 0:
        raise ValueError(f"{name} must be token ids from 0 up, got {min(value)}; pass other {name}")
    return tuple(int(token) for token in value)


@dataclass(frozen=True)
class ConstraintState:
    """How far a sequence has come: one constraint after another, in whatever order its tokens meet them.

    Attributes:
        constraints: the phrases of each, of which one must be written.
        pending: those that have not begun. The first that a token begins is the current one.
        current: the constraint within which the sequence stands, and ``written``, what it has of one of its phrases.
    """

    constraints: tuple[tuple[Phrase, ...], ...]
    pending: tuple[int, ...]
    current: int | None = None
    written: Phrase = ()

    @classmethod
    def start(cls, constraints: Sequence[Constraint]) -> ConstraintState:
        phrases = tuple(constraint.phrases for constraint in constraints)
        return cls(phrases, tuple(range(len(phrases))))

    @property
    def complete(self) -> bool:
        return not self.pending and self.current is None

    @property
    def bank(self) -> int:
        """Tokens that have been met: each whole constraint counts as the longest of all phrases."""
        longest = max(len(phrase) for phrases in self.constraints for phrase in phrases)
        whole = len(self.constraints) - len(self.pending)
        if self.current is None:
            return whole * longest
        missing = max(map(len, self.constraints[self.current])) - len(self.written)
        return (whole - 1) * longest + longest - missing

    @property
    def missing(self) -> int:
        """How many tokens it takes at least until all is written."""
        missing = sum(min(map(len, self.constraints[index])) for index in self.pending)
        if self.current is not None:
            begun = [p for p in self.constraints[self.current] if p[: len(self.written)] == self.written]
            missing += min(map(len, begun)) - len(self.written)
        return missing

    def tokens(self) -> list[int]:
        """Those that bring it further."""
        begun = self.pending if self.current is None else (self.current,)
        return list(dict.fromkeys(token for index in begun for token in self._next(index, self.written)))

    def add(self, token: int) -> ConstraintState:
        """After ``token``. As in ``transformers``, one that breaks a phrase off does not begin another."""
        if self.current is not None:
            if token in self._next(self.current, self.written):
                return self._enter(self.current, self.pending, (*self.written, token))
            return replace(self, pending=(*self.pending, self.current), current=None, written=())
        for index in self.pending:
            if token in self._next(index, ()):
                return self._enter(index, tuple(i for i in self.pending if i != index), (token,))
        return self

    def _enter(self, index: int, pending: tuple[int, ...], written: Phrase) -> ConstraintState:
        whole = written in self.constraints[index]
        return ConstraintState(self.constraints, pending, None if whole else index, () if whole else written)

    def _next(self, index: int, written: Phrase) -> list[int]:
        n = len(written)
        return [phrase[n] for phrase in self.constraints[index] if len(phrase) > n and phrase[:n] == written]
