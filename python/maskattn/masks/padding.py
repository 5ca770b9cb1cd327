from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges
from maskattn.masks.parameters import Integers, counts_per_sequence, known_length, one_of, per_sequence


@dataclass(frozen=True)
class Padding(Mask):
    """``lengths`` keys are real, one number or one per sequence; the rest is padding, on the right or on the left.

    On the right the real keys are the first ones; on the left they are the last of the keys that exist.

    >>> Padding([1, 3]).to_bool(1, 3).astype(int).tolist()
    [[[[1, 0, 0]]], [[[1, 1, 1]]]]
    >>> Padding(1, side="left").to_bool(1, 3).astype(int).tolist()
    [[[[0, 0, 1]]]]
    """

    lengths: int | tuple[int, ...]
    side: str = "right"

    if TYPE_CHECKING:  # what the constructor takes; the fields say what it keeps

        def __init__(self, lengths: int | Integers, side: str = "right") -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", counts_per_sequence("lengths", self.lengths))
        one_of("side", self.side, ("right", "left"))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        lengths = per_sequence(self.lengths)
        length = lengths[np.minimum(b, len(lengths) - 1)]
        if self.side == "right":
            real = np.less(kv_pos, length)
        else:
            real = np.greater_equal(kv_pos, known_length("Padding", kv_length) - length)
        return real & np.ones(np.shape(q_pos), np.bool_)

    def _edges(self) -> Edges:
        lengths = per_sequence(self.lengths)
        if self.side == "left":
            return Edges(keys_from_end=(-lengths).tolist())
        return Edges(keys=lengths.tolist())

    def _lower(self) -> _core.MaskExpr:
        lengths = per_sequence(self.lengths)
        if self.side == "left":
            return _core.mask_last_keys(lengths)
        return _core.mask_key_range(np.zeros_like(lengths), lengths)
