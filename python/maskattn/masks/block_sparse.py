from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges, changes
from maskattn.masks.parameters import read_only, size


@dataclass(frozen=True)
class BlockSparse(Mask):
    """Blocks of ``size`` x ``size`` positions, kept or not: bool array (..., query blocks, key blocks), True = attend.

    Leading axes, if any, are batch and heads and may be 1 (arXiv:2007.14062 builds BigBird of such blocks).

    >>> BlockSparse(np.array([[True, False], [True, True]]), 1).to_bool(2, 2).astype(int).tolist()
    [[[[1, 0], [1, 1]]]]
    """

    blocks: BoolArray
    size: int

    def __post_init__(self) -> None:
        blocks = np.asarray(self.blocks)
        if blocks.dtype != np.bool_:
            raise TypeError(
                f"blocks must be a bool array (True = attend), got {blocks.dtype}; pass blocks.astype(bool)"
            )
        if not 2 <= blocks.ndim <= 4 or 0 in blocks.shape[:-2]:
            raise ValueError(
                f"blocks must have shape (query blocks, key blocks), with batch and heads in front if they differ, "
                f"got {blocks.shape}"
            )
        object.__setattr__(self, "blocks", read_only(blocks.reshape((1,) * (4 - blocks.ndim) + blocks.shape)))
        object.__setattr__(self, "size", size("size", self.size))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        batch, heads, rows, columns = self.blocks.shape
        row, column = np.floor_divide(q_pos, self.size), np.floor_divide(kv_pos, self.size)
        inside = (row >= 0) & np.less(row, rows) & np.less(column, columns)
        at = (
            np.minimum(b, batch - 1),
            np.minimum(h, heads - 1),
            np.clip(row, 0, rows - 1),
            np.minimum(column, columns - 1),
        )
        return np.asarray(self.blocks[at] & inside)

    def _edges(self) -> Edges:
        rows, columns = self.blocks.shape[2:]
        keys = self.size * changes(self.blocks)
        return Edges(
            keys=keys,
            queries=self.size * changes(self.blocks.swapaxes(2, 3)),
            spans=len(keys),
            max_queries=rows * self.size,
            max_keys=columns * self.size,
        )

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_block_sparse(self.blocks, self.size)
