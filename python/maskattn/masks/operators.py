"""What can be done with a mask before there is a call to use it in: combine, compare, print."""

from __future__ import annotations

import dataclasses
import typing

if typing.TYPE_CHECKING:
    from maskattn.masks.base import Mask

_CACHES = ("_expr", "_hash", "_known_edges")


class Operators:
    """The half of :class:`maskattn.masks.Mask` that knows no geometry.

    Two masks are equal when both accept the same calls and let the same pairs attend in each of them, however they are
    written: ``Causal() == SlidingWindow(None, 0)``. That is decided, without a geometry and without an array, but for
    two things. A :class:`Function` is an unknown set of pairs, equal to itself alone. And where constants are so large,
    or periods go together so badly, that it would take more than some seconds, leaves count as unknown sets too, the
    largest first: masks that are called equal still are, but some that are equal are called unequal.
    A mask that accepts no call at all equals only what is written alike.

    The ``repr`` is Python that rebuilds the mask from the names of this package and ``np``; of a function it has the
    name.
    """

    def __init_subclass__(cls) -> None:
        # What a dataclass finds here it does not generate: its own == would compare how masks are written.
        for name in ("__eq__", "__hash__", "__repr__"):
            if name not in cls.__dict__:
                setattr(cls, name, getattr(cls, name))

    @property
    def _mask(self) -> Mask:
        return typing.cast("Mask", self)

    def __and__(self, other: Mask) -> Mask:
        from maskattn.masks.algebra import All

        return All((self._mask, other)) if isinstance(other, Operators) else NotImplemented

    def __or__(self, other: Mask) -> Mask:
        from maskattn.masks.algebra import Any

        return Any((self._mask, other)) if isinstance(other, Operators) else NotImplemented

    def __invert__(self) -> Mask:
        from maskattn.masks.algebra import Not

        return Not(self._mask)

    def __eq__(self, other: object) -> bool:
        from maskattn.masks.normal_form import equal

        return equal(self._mask, other._mask) if isinstance(other, Operators) else NotImplemented

    def __hash__(self) -> int:
        from maskattn.masks.normal_form import fingerprint

        cached: int | None = self.__dict__.get("_hash")
        if cached is None:
            cached = fingerprint(self._mask)
            object.__setattr__(self, "_hash", cached)
        return cached

    def __repr__(self) -> str:
        from maskattn.masks.source import call

        if not dataclasses.is_dataclass(self):
            return object.__repr__(self)
        return call(type(self).__name__, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def __getstate__(self) -> dict[str, typing.Any]:
        """What a copy or a pickle takes along."""
        return {name: value for name, value in self.__dict__.items() if name not in _CACHES}

    def is_subset(
        self, other: Mask, q_len: int | None = None, kv_len: int | None = None, **geometry: typing.Any
    ) -> bool:
        """Whether every pair that attends here attends in ``other``: in one call, or in all that both accept.

        >>> from maskattn.masks import Causal, Padding, SlidingWindow
        >>> SlidingWindow(left=3, right=0).is_subset(Causal()), Causal().is_subset(Padding(9))
        (True, False)
        >>> Causal().is_subset(Padding(9), 9, 9)
        True

        Args:
            q_len, kv_len, geometry: as in :meth:`Mask.plan`; without any the answer holds for every call, and a
                Function is taken for any set of pairs.

        Raises:
            TypeError: ``other`` is not a mask, or the geometry lacks ``q_len`` or ``kv_len``.
            ValueError: no call suits both masks, or not this one; or constants are too large to speak of every call.
        """
        from maskattn.masks.normal_form import subset

        if not isinstance(other, Operators):
            raise TypeError(f"other must be a mask, got {type(other).__name__}; wrap a bool array in Dense")
        if q_len is None and kv_len is None and not geometry:
            return subset(self._mask, other)
        if q_len is None or kv_len is None:
            raise TypeError(f"q_len and kv_len must both be given, or no geometry, got {q_len} and {kv_len}")
        return (self & ~other).count(q_len, kv_len, **geometry) == 0

    def simplify(self) -> Mask:
        """The shortest equal expression that a search finds: fewest leaves, then the shortest ``repr``.

        Each step drops, merges or rewrites one place and is checked with ``==``. The search tries at most 4000 steps
        and compares in small calls only, so a large expression may stay longer than it need be.

        >>> from maskattn.masks import Causal, Padding, SlidingWindow
        >>> (Causal() & SlidingWindow(left=3, right=None)).simplify()
        SlidingWindow(left=3, right=0)
        >>> (Causal() | (Causal() & Padding(3))).simplify()
        Causal()
        """
        from maskattn.masks.simplify import simplify

        return simplify(self._mask)
