from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges, changes
from maskattn.masks.parameters import read_only, sequences_of_bool


@dataclass(frozen=True)
class KeyPadding(Mask):
    """Keys that are real, by position: bool array (batch, kv_len) or (kv_len,), True = attend.

    It may be longer than a call's kv_len (a mask for the whole cache serves every step), not shorter.

    >>> KeyPadding(np.array([True, False, True])).to_bool(1, 3).astype(int).tolist()
    [[[[1, 0, 1]]]]
    """

    keep: BoolArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", read_only(sequences_of_bool("keep", self.keep)))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        seen = self.keep[np.minimum(b, len(self.keep) - 1), kv_pos]
        return np.asarray(seen & np.ones(np.shape(q_pos), np.bool_))

    def _edges(self) -> Edges:
        keys = changes(self.keep)
        return Edges(keys=keys, spans=len(keys), max_keys=self.keep.shape[1])

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_keys(self.keep)
