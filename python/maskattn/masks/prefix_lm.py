from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges
from maskattn.masks.parameters import Integers, counts_per_sequence, per_sequence


@dataclass(frozen=True)
class PrefixLM(Mask):
    """Keys before ``lengths[b]`` (the prefix, seen from everywhere), or not after the query (arXiv:1910.10683, 3.2.1).

    The mask of ``[E; o]``: an encoder's output in front of the tokens produced so far.

    >>> PrefixLM(2).to_bool(3, 3).astype(int).tolist()
    [[[[1, 1, 0], [1, 1, 0], [1, 1, 1]]]]
    """

    lengths: int | tuple[int, ...]

    if TYPE_CHECKING:  # what the constructor takes; the fields say what it keeps

        def __init__(self, lengths: int | Integers) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", counts_per_sequence("lengths", self.lengths))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        lengths = per_sequence(self.lengths)
        return np.less(kv_pos, lengths[np.minimum(b, len(lengths) - 1)]) | np.less_equal(kv_pos, q_pos)

    def _edges(self) -> Edges:
        return Edges(keys=per_sequence(self.lengths).tolist(), ahead=(1,))

    def _lower(self) -> _core.MaskExpr:
        lengths = per_sequence(self.lengths)
        return _core.mask_or([_core.mask_key_range(np.zeros_like(lengths), lengths), _core.mask_band(None, 0)])
