"""One sequence and head of a mask in one geometry, counted cell by cell: what all pictures are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.masks.base import Lengths, Mask

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]

_AT_ONCE = 1 << 22  # elements of a definition's answer that are held in memory


@dataclass(frozen=True)
class View:
    """One sequence and head of a mask in one geometry."""

    mask: Mask
    plan: _core.MaskPlan
    b: int
    h: int

    @classmethod
    def of(
        cls, mask: Mask, q_len: int, kv_len: int, q_offset: Lengths, kv_lengths: Lengths, batch_index: int, head: int
    ) -> View:
        expr = mask.expr
        batch = max(expr.batch, np.asarray(q_offset).size, np.asarray(kv_lengths).size)
        for name, index, extent in (("batch_index", batch_index, batch), ("head", head, expr.heads)):
            if index < 0 or 1 < extent <= index:
                below = f" and below {extent}" if extent > 1 else ""
                raise ValueError(f"{name} must be at least 0{below}, got {index}")
        plan = mask.plan(q_len, kv_len, batch=batch, q_offset=q_offset, kv_lengths=kv_lengths)
        return cls(mask, plan, min(batch_index, batch - 1), min(head, plan.heads - 1))

    @property
    def q_offset(self) -> int:
        return self.plan.q_offset[min(self.b, len(self.plan.q_offset) - 1)]

    @property
    def kv_length(self) -> int:
        return self.plan.kv_lengths[min(self.b, len(self.plan.kv_lengths) - 1)]

    def same_place(self, mask: Mask) -> View:
        """Another mask, seen in this view's geometry."""
        return View.of(mask, self.plan.q_len, self.plan.kv_len, self.q_offset, self.kv_length, self.b, self.h)

    def counts(self, rows: int, columns: int) -> Counts:
        """Pairs seen in each cell of ``rows`` queries x ``columns`` keys; cells at the end may be smaller."""
        plan = self.plan
        tops, starts = range(0, plan.q_len, rows), np.arange(0, plan.kv_len, columns)
        counts = np.zeros((len(tops), len(starts)), np.int64)
        for line, top in enumerate(tops if len(starts) else ()):
            counts[line] = np.add.reduceat(self._per_key(top, min(top + rows, plan.q_len)), starts)
        return counts

    def areas(self, rows: int, columns: int) -> Counts:
        """Pairs that exist in each such cell."""
        heights, widths = (
            np.minimum(step, extent - np.arange(0, extent, step))
            for step, extent in ((rows, self.plan.q_len), (columns, self.plan.kv_len))
        )
        return np.asarray(heights[:, None] * widths, np.int64)

    def shares(self, rows: int, columns: int) -> Shares:
        """The share of each cell's pairs that is seen, from 0 to 1."""
        return np.asarray(self.counts(rows, columns) / self.areas(rows, columns))

    def _per_key(self, top: int, bottom: int) -> Counts:
        """How many of the rows ``top`` to ``bottom`` see each key: from their spans, else from the definition."""
        rows = [(i, *self.plan.spans(self.b, self.h, i)) for i in range(top, bottom)]
        spans = [span for _, row, irregular in rows if not irregular for span in row]
        begins, ends = np.array(spans, np.int64).reshape(-1, 2).T
        keys = self.plan.kv_len + 1
        seen = np.cumsum(np.bincount(begins, minlength=keys) - np.bincount(ends, minlength=keys))[:-1]
        irregular_rows = np.array([i for i, _, irregular in rows if irregular], np.int64)
        step = max(1, _AT_ONCE // keys)
        for start in range(0, len(irregular_rows), step):
            answers = self._ask(irregular_rows[start : start + step])
            seen[: self.kv_length] += answers.sum(axis=0)
        return np.asarray(seen, np.int64)

    def _ask(self, rows: Counts) -> npt.NDArray[np.bool_]:
        positions, keys = self.q_offset + rows[:, None], np.arange(self.kv_length)[None, :]
        answer = self.mask.allows(self.b, self.h, positions, keys, q_offset=self.q_offset, kv_length=self.kv_length)
        return np.broadcast_to(answer, (len(rows), self.kv_length))
