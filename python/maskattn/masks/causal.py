from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges


@dataclass(frozen=True)
class Causal(Mask):
    """The look-ahead mask: a query sees its own position and those before it (arXiv:1706.03762, section 3.2.3).

    >>> Causal().to_bool(2, 3).astype(int).tolist()
    [[[[1, 1, 0], [1, 1, 1]]]]
    """

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        return np.less_equal(kv_pos, q_pos)

    def _edges(self) -> Edges:
        return Edges(ahead=(1,))

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_band(None, 0)
