from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges, changes
from maskattn.masks.parameters import read_only


@dataclass(frozen=True)
class Dense(Mask):
    """A bool array (True = attend) that broadcasts to (batch, heads, q_len, kv_len): the call's own rows and keys.

    The array is copied: a mask is immutable. A call that takes a bare array reads it into one bit an element instead.

    >>> (Dense(np.array([[True, True], [False, True]])) & ~Dense(np.array([False, True]))).to_bool(2, 2).tolist()
    [[[[True, False], [False, False]]]]
    """

    keep: BoolArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", read_only(four_axes(self.keep)))

    @classmethod
    def from_ignore(cls, ignore: BoolArray) -> Dense:
        """From an array where True (1) means ignore, as in ``nn.MultiheadAttention``."""
        array = np.asarray(ignore)
        if array.dtype != np.bool_:
            raise TypeError(f"ignore must be a bool array (True = ignore), got {array.dtype}; pass ignore.astype(bool)")
        return cls(~array)

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        at = (b, h, np.subtract(q_pos, q_offset), kv_pos)
        return np.asarray(self.keep[tuple(np.minimum(i, n - 1) for i, n in zip(at, self.keep.shape, strict=True))])

    def _edges(self) -> Edges:
        q_len, kv_len = (None if extent == 1 else extent for extent in self.keep.shape[2:])
        spans = self.keep.shape[3] // 64 + 1
        return Edges(keys=changes(self.keep), spans=spans, q_len=q_len, kv_len=kv_len)

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_dense(self.keep)


def four_axes(mask: object) -> BoolArray:
    """A bool array as (batch, heads, q_len, kv_len) or what broadcasts to it.

    Raises:
        TypeError: it is not bool. ValueError: its rank is not 1 to 4, or it is empty where it must not be.
    """
    keep = np.asarray(mask)
    if keep.dtype != np.bool_:
        raise TypeError(
            f"mask must be a bool array (True = attend), got {keep.dtype}; pass mask.astype(bool), "
            "Dense.from_ignore for arrays where 1 = ignore, or an additive array as bias"
        )
    if not 1 <= keep.ndim <= 4 or 0 in keep.shape[:-2]:
        raise ValueError(f"mask must broadcast to (batch, heads, q_len, kv_len), got shape {keep.shape}")
    return keep.reshape((1,) * (4 - keep.ndim) + keep.shape)
