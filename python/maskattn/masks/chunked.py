from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges
from maskattn.masks.parameters import size


@dataclass(frozen=True)
class Chunked(Mask):
    """Query and key stand in the same chunk of ``size`` positions, both directions (Llama 4, with ``Causal() &``).

    >>> Chunked(2).to_bool(3, 3).astype(int).tolist()
    [[[[1, 1, 0], [1, 1, 0], [0, 0, 1]]]]
    """

    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", size("size", self.size))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        return np.equal(np.floor_divide(q_pos, self.size), np.floor_divide(kv_pos, self.size))

    def _edges(self) -> Edges:
        return Edges(ahead=(0,), period=self.size)

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_chunks(self.size, False)
