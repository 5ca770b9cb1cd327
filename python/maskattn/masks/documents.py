from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges, changes
from maskattn.masks.parameters import read_only
from maskattn.masks.source import call


@dataclass(frozen=True)
class Documents(Mask):
    """Packed sequences: a query sees the keys whose document id is its own.

    ``ids`` are those of the query positions, ``kv_ids`` those of the keys (default: the same): integers by position,
    shape (length,) or (batch, length). A position below 0 belongs to no document.

    >>> Documents([7, 7, 9]).to_bool(3, 3).astype(int).tolist()
    [[[[1, 1, 0], [1, 1, 0], [0, 0, 1]]]]
    """

    ids: npt.NDArray[np.int64]
    kv_ids: npt.NDArray[np.int64] | None = None

    if TYPE_CHECKING:  # what the constructor takes; the fields say what it keeps

        def __init__(self, ids: npt.ArrayLike, kv_ids: npt.ArrayLike | None = None) -> None: ...

    def __post_init__(self) -> None:
        ids = _as_ids("ids", self.ids)
        kv_ids = ids if self.kv_ids is None else _as_ids("kv_ids", self.kv_ids)
        if len(ids) != len(kv_ids):
            raise ValueError(f"kv_ids must have as many sequences as ids, {len(ids)}, got {len(kv_ids)}")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "kv_ids", kv_ids)

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: npt.ArrayLike, kv_cu_seqlens: npt.ArrayLike | None = None) -> Documents:
        """From cumulative lengths, shape (documents + 1,): 0 first, then the end of each (flash-attn's ``cu_seqlens``).

        >>> Documents.from_cu_seqlens([0, 2, 3]).ids.tolist()
        [[0, 0, 1]]
        """
        kv_ids = None if kv_cu_seqlens is None else _ids_of("kv_cu_seqlens", kv_cu_seqlens)
        return cls(_ids_of("cu_seqlens", cu_seqlens), kv_ids)

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        assert self.kv_ids is not None
        sequence = np.minimum(b, len(self.ids) - 1)
        same = self.ids[sequence, np.maximum(q_pos, 0)] == self.kv_ids[sequence, kv_pos]
        return np.asarray(same & np.greater_equal(q_pos, 0))

    def __repr__(self) -> str:
        return call("Documents", {"ids": self.ids} | ({} if self.kv_ids is self.ids else {"kv_ids": self.kv_ids}))

    def _edges(self) -> Edges:
        assert self.kv_ids is not None
        keys = changes(self.kv_ids)
        runs = max((np.unique(ids[keys], return_counts=True)[1].max() for ids in self.kv_ids if len(ids)), default=0)
        return Edges(
            keys=keys,
            queries=changes(self.ids),
            spans=int(runs),
            max_queries=self.ids.shape[1],
            max_keys=self.kv_ids.shape[1],
        )

    def _lower(self) -> _core.MaskExpr:
        assert self.kv_ids is not None
        return _core.mask_documents(self.ids, self.kv_ids)


def _as_ids(name: str, value: npt.ArrayLike) -> npt.NDArray[np.int64]:
    ids = np.asarray(value)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if ids.ndim not in (1, 2) or (ids.ndim == 2 and len(ids) == 0):
        raise ValueError(f"{name} must have shape (length,) or (batch, length), got {ids.shape}")
    return np.asarray(read_only(np.atleast_2d(ids.astype(np.int64))), np.int64)


def _ids_of(name: str, cu_seqlens: npt.ArrayLike) -> npt.NDArray[np.int64]:
    ends = np.asarray(cu_seqlens)
    if ends.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {ends.dtype}")
    if ends.ndim != 1 or len(ends) == 0 or ends[0] != 0 or (np.diff(ends) < 0).any():
        raise ValueError(f"{name} must start at 0 and not decrease, shape (documents + 1,), got {ends.tolist()}")
    return np.repeat(np.arange(len(ends) - 1), np.diff(ends))
