from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges, changes
from maskattn.masks.parameters import read_only, sequences_of_bool


@dataclass(frozen=True)
class QueryPadding(Mask):
    """Queries that are real, by position: bool array (batch, length) or (length,); others see nothing.

    >>> QueryPadding(np.array([True, False])).to_bool(2, 2).astype(int).tolist()
    [[[[1, 1], [0, 0]]]]
    """

    keep: BoolArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", read_only(sequences_of_bool("keep", self.keep)))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        real = self.keep[np.minimum(b, len(self.keep) - 1), np.maximum(q_pos, 0)] & np.greater_equal(q_pos, 0)
        return np.asarray(real & np.ones(np.shape(kv_pos), np.bool_))

    def _edges(self) -> Edges:
        return Edges(queries=changes(self.keep), max_queries=self.keep.shape[1])

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_queries(self.keep)
