from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges
from maskattn.masks.parameters import Integers, counts


@dataclass(frozen=True)
class GlobalTokens(Mask):
    """The query or the key is one of ``indices``, by position (arXiv:2004.05150, section 3.1; arXiv:2007.14062).

    >>> GlobalTokens([1]).to_bool(3, 3).astype(int).tolist()
    [[[[0, 1, 0], [1, 1, 1], [0, 1, 0]]]]
    """

    indices: tuple[int, ...]

    if TYPE_CHECKING:  # what the constructor takes; the fields say what it keeps

        def __init__(self, indices: Integers) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", counts("indices", self.indices))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        return np.isin(q_pos, self.indices) | np.isin(kv_pos, self.indices)

    def _edges(self) -> Edges:
        edges = [edge for index in self.indices for edge in (index, index + 1)]
        return Edges(keys=edges, queries=edges, spans=len(self.indices))

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_global_tokens(np.array(self.indices, np.int64))
