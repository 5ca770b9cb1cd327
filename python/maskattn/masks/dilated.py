from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges
from maskattn.masks.parameters import count, size


@dataclass(frozen=True)
class Dilated(Mask):
    """``window`` keys on either side of the query's own position, ``stride`` apart (arXiv:2004.05150, section 3.1).

    >>> Dilated(1, 2).to_bool(4, 4).astype(int).tolist()
    [[[[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]]]
    """

    window: int
    stride: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", count("window", self.window))
        object.__setattr__(self, "stride", size("stride", self.stride))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        ahead = np.subtract(kv_pos, q_pos)
        return np.asarray((ahead % self.stride == 0) & (np.abs(ahead) <= self.window * self.stride))

    def _edges(self) -> Edges:
        reach = self.window * self.stride
        return Edges(ahead=(-reach, reach + 1), period=self.stride, spans=2 * self.window + 1)

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_dilated(self.window, self.stride)
