from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges
from maskattn.masks.parameters import count


@dataclass(frozen=True)
class FirstTokens(Mask):
    """The first ``n`` keys, as attention sinks beside a window: ``Causal() & (SlidingWindow(w) | FirstTokens(4))``
    (arXiv:2309.17453).

    >>> FirstTokens(1).to_bool(2, 2).astype(int).tolist()
    [[[[1, 0], [1, 0]]]]
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", count("n", self.n))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        return np.less(kv_pos, self.n) & np.ones(np.shape(q_pos), np.bool_)

    def _edges(self) -> Edges:
        return Edges(keys=(self.n,))

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_key_range(np.array([0]), np.array([self.n]))
