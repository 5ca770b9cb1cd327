from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges


@dataclass(frozen=True)
class Full(Mask):
    """Every query sees every key that exists: cross-attention, or an encoder's self-attention.

    >>> Full().to_bool(1, 3).astype(int).tolist()
    [[[[1, 1, 1]]]]
    """

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        return np.greater_equal(kv_pos, 0) & np.ones(np.shape(q_pos), np.bool_)

    def _edges(self) -> Edges:
        return Edges()

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_band(None, None)
