from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import MOST_EDGES, Edges
from maskattn.masks.parameters import size


@dataclass(frozen=True)
class BlockDiffusion(Mask):
    """Blocks of ``size`` positions that are denoised one after another (arXiv:2503.09573).

    Generation (no ``length``): a query sees its own block and all earlier ones. Training, on ``[noisy; clean]`` of
    ``length`` positions each: a noisy block sees itself and the clean blocks before it, a clean block itself and the
    clean blocks before it.

    >>> BlockDiffusion(1, length=2).to_bool(4, 4).astype(int).tolist()
    [[[[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]]
    """

    size: int
    length: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", size("size", self.size))
        if self.length is not None:
            object.__setattr__(self, "length", size("length", self.length))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        if self.length is None:
            return np.less_equal(np.floor_divide(kv_pos, self.size), np.floor_divide(q_pos, self.size))
        n = self.length
        query, key = np.mod(q_pos, n) // self.size, np.mod(kv_pos, n) // self.size
        noisy_query, noisy_key = np.less(q_pos, n), np.less(kv_pos, n)
        seen = np.where(noisy_key, noisy_query & (query == key), np.where(noisy_query, key < query, key <= query))
        inside = np.greater_equal(q_pos, 0) & np.less(q_pos, 2 * n) & np.less(kv_pos, 2 * n)
        return np.asarray(seen & inside)

    def _edges(self) -> Edges | None:
        if self.length is None:
            return Edges(ahead=(0,), period=self.size)
        if self.length > MOST_EDGES * self.size:
            return None
        edges = [start + i for start in (0, self.length) for i in range(0, self.length, self.size)] + [2 * self.length]
        return Edges(keys=edges, queries=edges, spans=2)

    def _lower(self) -> _core.MaskExpr:
        if self.length is None:
            return _core.mask_chunks(self.size, True)
        return _core.mask_block_diffusion(self.size, self.length)
