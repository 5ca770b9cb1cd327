"""Where two masks differ."""

from __future__ import annotations

import typing
from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import Mask


@dataclass(frozen=True, eq=False)
class Difference:
    """The pairs of query and key on which two masks differ in one geometry; false where there are none.

    Attributes:
        a, b: the masks.
        only_a, only_b: plans of the pairs that only one of them lets attend.
    """

    a: Mask
    b: Mask
    only_a: _core.MaskPlan
    only_b: _core.MaskPlan

    def count(self) -> int:
        """Pairs on which the masks differ."""
        return self.only_a.count() + self.only_b.count()

    def __bool__(self) -> bool:
        return self.count() > 0

    def first(self) -> tuple[int, int, int, int] | None:
        """The first pair that differs, as (sequence, head, row, key), or None."""
        return min(filter(None, map(_first, (self.only_a, self.only_b))), default=None)

    def explain(self, b: int, h: int, row: int, key: int) -> str:
        """What each mask says about a pair, as :meth:`Mask.explain`."""
        plan = self.only_a
        q_offset, kv_length = (each[min(b, len(each) - 1)] for each in (plan.q_offset, plan.kv_lengths))
        at = {"q_offset": q_offset, "kv_length": kv_length}
        return "; ".join(
            f"{name}: {mask.explain(b, h, q_offset + row, key, **at)}" for name, mask in (("a", self.a), ("b", self.b))
        )

    def __str__(self) -> str:
        return "; ".join(self._side(name, plan) for name, plan in (("a", self.only_a), ("b", self.only_b)))

    def _side(self, name: str, plan: _core.MaskPlan) -> str:
        first = _first(plan)
        if first is None:
            return f"none only in {name}"
        b, h, row, key = first
        q_pos = plan.q_offset[min(b, len(plan.q_offset) - 1)] + row
        pairs = plan.count()
        at = f"b={b} h={h} q_pos={q_pos} kv_pos={key}"
        return f"{pairs} pair{'s' * (pairs != 1)} only in {name}, first {at} ({self.explain(*first)})"


def diff(a: Mask, b: Mask, q_len: int, kv_len: int, **geometry: typing.Any) -> Difference:
    """The pairs on which two masks differ in one geometry, found from spans, without arrays.

    >>> from maskattn.masks import Causal, SlidingWindow
    >>> print(diff(Causal(), SlidingWindow(left=2, right=0), 4, 4))
    1 pair only in a, first b=0 h=0 q_pos=3 kv_pos=0 (a: seen: Causal allows; b: hidden by SlidingWindow(left=2, right=0): distance 3); none only in b

    Args:
        a, b: the masks.
        q_len, kv_len, geometry: as in :meth:`Mask.plan`.

    Raises:
        TypeError, ValueError: as :meth:`Mask.plan`, for either mask.
    """  # noqa: E501
    for name, mask in (("a", a), ("b", b)):
        if not isinstance(mask, Mask):
            raise TypeError(f"{name} must be a mask, got {type(mask).__name__}; wrap a bool array in Dense")
    return Difference(a, b, *((x & ~y).plan(q_len, kv_len, **geometry) for x, y in ((a, b), (b, a))))


def _first(plan: _core.MaskPlan) -> tuple[int, int, int, int] | None:
    """The first pair of a plan, as (sequence, head, row, key)."""
    empty = plan.empty_rows()
    if empty.all():
        return None
    b, h, row = (int(i) for i in np.unravel_index(int(np.argmin(empty)), empty.shape))
    spans, _ = plan.spans(b, h, row)  # also of an irregular row: it begins with a key that is seen
    return b, h, row, spans[0][0]
