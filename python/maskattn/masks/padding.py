from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.parameters import counts_per_sequence, per_sequence


@dataclass(frozen=True)
class Padding(Mask):
    """Keys before ``lengths[b]`` are real, the rest is padding on the right; one length, or one per sequence.

    >>> Padding([1, 3]).to_bool(1, 3).astype(int).tolist()
    [[[[1, 0, 0]]], [[[1, 1, 1]]]]
    """

    lengths: int | tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", counts_per_sequence("lengths", self.lengths))

    def allows(self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0) -> BoolArray:
        lengths = per_sequence(self.lengths)
        return np.less(kv_pos, lengths[np.minimum(b, len(lengths) - 1)]) & np.ones(np.shape(q_pos), np.bool_)

    def _lower(self) -> _core.MaskExpr:
        lengths = per_sequence(self.lengths)
        return _core.mask_key_range(np.zeros_like(lengths), lengths)
