from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import Edges
from maskattn.masks.parameters import Integers, count, known_length


@dataclass(frozen=True)
class Tree(Mask):
    """A tree of drafted tokens behind a prefix (arXiv:2305.09781): a node sees itself, its ancestors and the prefix.

    ``parents[t]`` is the node before node ``t``, an earlier one, or -1 for a root. Node ``t`` stands at position
    ``start + t``; without ``start`` the nodes are the last keys that exist. Queries before the tree are causal; those
    behind it see the prefix alone.

    >>> Tree([-1, 0, 0]).to_bool(3, 4).astype(int).tolist()
    [[[[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]]]
    """

    parents: tuple[int, ...]
    start: int | None = None

    if TYPE_CHECKING:  # what the constructor takes; the fields say what it keeps

        def __init__(self, parents: Integers, start: int | None = None) -> None: ...

    def __post_init__(self) -> None:
        parents = np.asarray(self.parents)
        if parents.ndim != 1 or (parents.size and parents.dtype.kind not in "iu"):
            raise TypeError(f"parents must be one integer per node, got {parents.dtype} of shape {parents.shape}")
        for node, parent in enumerate(parents):
            if not -1 <= parent < node:
                raise ValueError(
                    f"parents must be -1 (a root) or the index of an earlier node, got {parent} for node {node}; "
                    "number nodes so that parents come first"
                )
        object.__setattr__(self, "parents", tuple(int(parent) for parent in parents))
        if self.start is not None:
            object.__setattr__(self, "start", count("start", self.start, also="or None (the last keys)"))

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        n = len(self.parents)
        start = known_length("Tree", kv_length) - n if self.start is None else self.start
        on_path = np.zeros((n + 1, n), np.bool_)  # the last row: no node
        for t, parent in enumerate(self.parents):
            on_path[t] = on_path[parent]
            on_path[t, t] = True
        query, key = np.subtract(q_pos, start), np.subtract(kv_pos, start)
        node = np.where((query >= 0) & (query < n), query, n)
        if n == 0:
            return np.less(kv_pos, np.minimum(start, np.add(q_pos, 1)))
        seen = on_path[node, np.clip(key, 0, n - 1)] & (key >= 0) & (key < n)
        return np.asarray(seen | ((key < 0) & np.less_equal(kv_pos, q_pos)))

    def _edges(self) -> Edges:
        nodes = len(self.parents)
        if self.start is None:
            places = range(-nodes, 1)
            return Edges(keys_from_end=places, queries_from_end=places, ahead=(1,), spans=nodes + 1)
        places = range(self.start, self.start + nodes + 1)
        return Edges(keys=places, queries=places, ahead=(1,), spans=nodes + 1)

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_tree(np.array(self.parents, np.int64), self.start)
