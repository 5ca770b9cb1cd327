from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges
from maskattn.masks.parameters import count


@dataclass(frozen=True)
class SlidingWindow(Mask):
    """A query sees ``left`` keys before its own position, its own, and ``right`` after it; None is unbounded.

    The units of ONNX Attention (opset 25) and flash-attn. A "window of w tokens" elsewhere (arXiv:2310.06825,
    section 2) counts the query's own position: ``Causal() & SlidingWindow(left=w - 1)``.

    >>> SlidingWindow(1, 0).to_bool(3, 3).astype(int).tolist()
    [[[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]]
    """

    left: int | None = None
    right: int | None = None

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, count(name, getattr(self, name), also="or None (unbounded)"))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        ahead = np.subtract(kv_pos, q_pos)
        left = np.ones(ahead.shape, np.bool_) if self.left is None else ahead >= -self.left
        return left if self.right is None else left & (ahead <= self.right)

    def _edges(self) -> Edges:
        left = () if self.left is None else (-self.left,)
        return Edges(ahead=(*left, *(() if self.right is None else (self.right + 1,))))

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_band(self.left, self.right)
